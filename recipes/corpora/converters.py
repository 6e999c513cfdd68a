"""The functions that packages.toml names: from an unpacked package to rows with a `text`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from recipes.corpora.books import austen, moby_dick, scripture, speeches
from recipes.corpora.countries import countries
from recipes.corpora.dialogues import dialogues, small_talk
from recipes.corpora.plain import facts
from recipes.corpora.wordnet import definitions, glosses

Converter = Callable[[Path], Iterator[dict[str, str]]]

CONVERTERS: Mapping[str, Converter] = {
    "austen": austen,
    "countries": countries,
    "definitions": definitions,
    "dialogues": dialogues,
    "facts": facts,
    "glosses": glosses,
    "moby_dick": moby_dick,
    "scripture": scripture,
    "small_talk": small_talk,
    "speeches": speeches,
}
