"""What a recipe's [data.corpora] may name: a JSONL file, or a folder of `ossia data build`, with its shares."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.corpus.report import read_report
from ossia.training.data.corpus.text_files import is_corpus, read_documents
from ossia.training.data.shards.index import INDEX_FILE, TOKENS_FOLDER, read_index, stamp_of
from ossia.training.data.shards.reader import ShardedTokens
from ossia.training.data.sources.manifest import parse_manifest
from ossia.training.data.sources.mixture import plan_mixture


class Corpus(Protocol):
    """Documents to draw from."""

    def draw(self, rng: random.Random) -> list[int]:
        """The ids of a random document, the last one `<|endoftext|>`, or a piece of one that is too long for a row."""
        ...


class TextCorpus:
    """Texts in groups, encoded when they are drawn.

    Args:
        groups: texts by source.
        weights: how often a text of each group is drawn.
        tokenizer: encodes them.
        longest: of longer documents a random piece of so many ids is given.
    """

    def __init__(
        self, groups: Sequence[Sequence[str]], *, weights: Sequence[float], tokenizer: Tokenizer, longest: int
    ) -> None:
        self._longest = longest
        self._groups = groups
        self._weights = weights
        self._tokenizer = tokenizer

    def draw(self, rng: random.Random) -> list[int]:
        group = rng.choices(self._groups, self._weights)[0] if len(self._groups) > 1 else self._groups[0]
        text = rng.choice(group)
        ids = [*self._tokenizer.encode(text), self._tokenizer.endoftext]
        start = rng.randrange(len(ids) - self._longest + 1) if len(ids) > self._longest else 0
        return ids[start : start + self._longest]


class ShardCorpus:
    """Documents of token shards, mapped: nothing is encoded and little is in memory.

    A document of more than `longest` ids counts as several pieces, each of which comes as often as a short document
    does, and overlaps the one before it by an id: the last target of one is the first input of the next.
    """

    def __init__(self, shards: ShardedTokens, *, longest: int) -> None:
        self._shards = shards
        self._step = longest - 1
        numbers = shards.source_numbers()
        pieces = np.maximum(1, -(-(shards.lengths() - 1) // self._step))
        self._groups: list[tuple[np.ndarray, np.ndarray]] = []  # documents of a source, and the ends of their pieces
        self._weights: list[float] = []
        for number, source in enumerate(shards.index.sources):
            members = np.flatnonzero(numbers == number)
            if len(members):
                ends = np.cumsum(pieces[members])
                self._groups.append((members, ends))
                self._weights.append(source.repeats * int(ends[-1]))

    def draw(self, rng: random.Random) -> list[int]:
        members, ends = rng.choices(self._groups, self._weights)[0]
        piece = rng.randrange(int(ends[-1]))
        place = int(np.searchsorted(ends, piece, side="right"))
        start = (piece - (int(ends[place - 1]) if place else 0)) * self._step
        return self._shards.document(int(members[place]))[start : start + self._step + 1].tolist()


def open_folder(folder: Path, *, tokenizer: Tokenizer, longest: int) -> Corpus:
    """A corpus of `ossia data build`: its shards if they are of this tokenizer, else its text.

    Sources come in the ratio of their shares; how long a pass is, and that a longer run repeats documents, is for the
    card to say and for the recipe to heed.

    Args:
        folder: of `ossia data build`, or one of shards.
        tokenizer: of the run.
        longest: ids of a draw at most; one more than a row, since the last id is a target only.

    Raises:
        DatasetError: the folder is no corpus, or is damaged.
    """
    place = folder / TOKENS_FOLDER if (folder / TOKENS_FOLDER / INDEX_FILE).is_file() else folder
    has_shards = (place / INDEX_FILE).is_file()
    if has_shards and (read_index(place).tokenizer.sha256 == stamp_of(tokenizer).sha256 or not is_corpus(folder)):
        return ShardCorpus(ShardedTokens(place, tokenizer=tokenizer), longest=longest)
    return _open_text(folder, tokenizer=tokenizer, longest=longest)


def _open_text(folder: Path, *, tokenizer: Tokenizer, longest: int) -> TextCorpus:
    manifest = parse_manifest(read_report(folder)["manifest"], folder=folder)
    groups: dict[str, list[str]] = {source.name: [] for source in manifest.sources}
    characters = dict.fromkeys(groups, 0)  # without tokens they stand for the length
    for document in read_documents(folder):
        groups[document.source].append(document.text)
        characters[document.source] += len(document.text)
    repeats = plan_mixture(manifest.sources, tokens=characters).repeats
    present = [name for name in groups if groups[name]]
    weights = [repeats.get(name, 0.0) * len(groups[name]) for name in present]
    texts = [groups[name] for name in present]
    return TextCorpus(texts, weights=weights, tokenizer=tokenizer, longest=longest)


def folder_texts(folder: Path) -> Iterator[str]:
    """The texts of a corpus of `ossia data build`; none of a folder that holds nothing but shards.

    Raises:
        DatasetError: the text is damaged.
    """
    if is_corpus(folder):
        yield from (document.text for document in read_documents(folder))
