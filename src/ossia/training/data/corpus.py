"""What a recipe's [data.corpora] may name: a JSONL file, or a folder of `ossia data build`, with its shares."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.manifest import parse_manifest
from ossia.training.data.mixture import plan_mixture
from ossia.training.data.report import read_report
from ossia.training.data.shard_index import INDEX_FILE, TOKENS_FOLDER, read_index, stamp_of
from ossia.training.data.shards import ShardedTokens
from ossia.training.data.text_files import is_corpus, read_documents


class Corpus(Protocol):
    """Documents to draw from."""

    def draw(self, rng: random.Random) -> list[int]:
        """The ids of a random document, the last one `<|endoftext|>`."""
        ...


class TextCorpus:
    """Texts in groups, encoded when they are drawn.

    Args:
        groups: texts by source.
        weights: how often a text of each group is drawn.
        tokenizer: encodes them.
    """

    def __init__(self, groups: Sequence[Sequence[str]], *, weights: Sequence[float], tokenizer: Tokenizer) -> None:
        self._groups = groups
        self._weights = weights
        self._tokenizer = tokenizer

    def draw(self, rng: random.Random) -> list[int]:
        group = rng.choices(self._groups, self._weights)[0] if len(self._groups) > 1 else self._groups[0]
        text = rng.choice(group)
        return [*self._tokenizer.encode(text), self._tokenizer.endoftext]


class ShardCorpus:
    """Documents of token shards, mapped: nothing is encoded and little is in memory."""

    def __init__(self, shards: ShardedTokens) -> None:
        self._shards = shards
        numbers = shards.source_numbers()
        members = [np.flatnonzero(numbers == number) for number in range(len(shards.index.sources))]
        repeats = [source.repeats for source in shards.index.sources]
        self._groups = [group for group in members if len(group)]
        self._weights = [times * len(group) for times, group in zip(repeats, members, strict=True) if len(group)]

    def draw(self, rng: random.Random) -> list[int]:
        group = rng.choices(self._groups, self._weights)[0]
        return self._shards.document(int(group[rng.randrange(len(group))])).tolist()


def open_folder(folder: Path, *, tokenizer: Tokenizer) -> Corpus:
    """A corpus of `ossia data build`: its shards if they are of this tokenizer, else its text.

    Sources come in the ratio of their shares; how long a pass is, and that a longer run repeats documents, is for the
    card to say and for the recipe to heed.

    Raises:
        DatasetError: the folder is no corpus, or is damaged.
    """
    place = folder / TOKENS_FOLDER if (folder / TOKENS_FOLDER / INDEX_FILE).is_file() else folder
    has_shards = (place / INDEX_FILE).is_file()
    if has_shards and (read_index(place).tokenizer.sha256 == stamp_of(tokenizer).sha256 or not is_corpus(folder)):
        return ShardCorpus(ShardedTokens(place, tokenizer=tokenizer))
    return _open_text(folder, tokenizer=tokenizer)


def _open_text(folder: Path, *, tokenizer: Tokenizer) -> TextCorpus:
    manifest = parse_manifest(read_report(folder)["manifest"], folder=folder)
    groups: dict[str, list[str]] = {source.name: [] for source in manifest.sources}
    characters = dict.fromkeys(groups, 0)  # without tokens they stand for the length
    for document in read_documents(folder):
        groups[document.source].append(document.text)
        characters[document.source] += len(document.text)
    repeats = plan_mixture(manifest.sources, tokens=characters).repeats
    present = [name for name in groups if groups[name]]
    weights = [repeats.get(name, 0.0) * len(groups[name]) for name in present]
    return TextCorpus([groups[name] for name in present], weights=weights, tokenizer=tokenizer)


def folder_texts(folder: Path) -> Iterator[str]:
    """The texts of a corpus of `ossia data build`; none of a folder that holds nothing but shards.

    Raises:
        DatasetError: the text is damaged.
    """
    if is_corpus(folder):
        yield from (document.text for document in read_documents(folder))
