"""Which language a text is in, by py3langid: n-grams of bytes, a naive Bayes model, no pickle, 97 languages."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ossia.training.data.sources.extras import need

MIN_WORDS = 20
"""Shorter texts are not judged: names and foreign words decide too much in them."""
MAX_CHARACTERS = 4_000
"""Longer texts are judged by their beginning."""


class Language(NamedTuple):
    """An ISO 639-1 code and how probable it is among the languages known."""

    code: str
    probability: float


@cache
def _identifier() -> Any:
    langid = need("py3langid.langid", package="py3langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def identify(text: str) -> Language:
    """The language of a text.

    Raises:
        MissingExtraError: py3langid is not installed.
    """
    code, probability = _identifier().classify(text[:MAX_CHARACTERS])
    return Language(str(code), float(probability))


def language_reason(text: str, *, languages: tuple[str, ...], confidence: float) -> str | None:
    """Why a text is not in one of these languages, or None if it is or is too short to tell."""
    if not languages or len(text.split(maxsplit=MIN_WORDS)) < MIN_WORDS:
        return None
    found = identify(text)
    if found.code not in languages:
        return f"in {found.code}"
    return None if found.probability >= confidence else "language unclear"
