"""Dropping documents that share a long run of words with an evaluation text.

As in "Language Models are Few-Shot Learners" (arXiv 2005.14165, appendix C): texts are compared as lower-case words
without punctuation, and overlap means an n-gram of 13 words. Where the paper cuts out the overlap and 200 characters
on both sides, the whole document is dropped here, which loses little and leaves no ragged ends. An evaluation text of
fewer than n words counts as a whole, if it has at least 8; the shortest prompts ("What is 2 + 2?") would drop every
text that says the same by chance.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from ossia.core.errors import InvalidInputError
from ossia.training.data.filters.dedup import normalize
from ossia.training.data.sources.files import open_unpacked

MIN_WORDS = 8


class Decontaminator:
    """The n-grams of evaluation texts, 8 bytes of hash each.

    Args:
        texts: evaluation texts.
        size: words of an n-gram.
    """

    def __init__(self, texts: Iterable[str], *, size: int) -> None:
        self._hashes: dict[int, set[bytes]] = {}
        self._prefix_size = min(size, MIN_WORDS)
        self._prefixes: set[tuple[str, ...]] = set()  # one look-up a word; hashes are for what begins like a hit
        self.num_texts = self.num_too_short = 0
        for text in texts:
            words = normalize(text)
            length = min(size, len(words))
            if length < self._prefix_size:
                self.num_too_short += 1
                continue
            self.num_texts += 1
            starts = range(len(words) - length + 1)
            self._prefixes.update(tuple(words[start : start + self._prefix_size]) for start in starts)
            hashes = self._hashes.setdefault(length, set())
            hashes.update(_hash(words[start : start + length]) for start in starts)

    def overlap(self, text: str) -> str | None:
        """The first run of words that a text shares with an evaluation text, or None."""
        words = normalize(text)
        shifted = (words[start:] for start in range(self._prefix_size))
        for start, prefix in enumerate(zip(*shifted, strict=False)):
            if prefix in self._prefixes:
                for size, known in self._hashes.items():
                    ngram = words[start : start + size]
                    if len(ngram) == size and _hash(ngram) in known:
                        return " ".join(ngram)
        return None


def _hash(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=8).digest()


def read_evaluation_file(path: Path) -> list[str]:
    """The texts of an evaluation file: every string of a JSONL row joined, or the paragraphs of a text file.

    Raises:
        InvalidInputError: it is absent or has no text, or a row is no JSON (with its line number).
    """
    if not path.is_file():
        raise InvalidInputError(f"there is no evaluation file {path}", param="filters.decontaminate")
    with open_unpacked(path) as file:
        content = file.read().decode("utf-8", errors="replace")
    texts: list[str] = []
    if ".jsonl" in path.suffixes:
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                try:
                    texts += _strings(json.loads(line))
                except ValueError as error:
                    raise InvalidInputError(
                        f"{path}, line {number}: is no JSON ({error})", param="filters.decontaminate"
                    ) from error
    else:
        texts = [paragraph for paragraph in content.split("\n\n") if paragraph.strip()]
    if not texts:
        raise InvalidInputError(f"the evaluation file {path} has no text", param="filters.decontaminate")
    return texts


def _strings(value: object) -> list[str]:
    """Every string within a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    return [text for item in value for text in _strings(item)] if isinstance(value, list) else []


def held_out_prompts(*, per_task: int, seed: int = 0) -> Iterator[str]:
    """Prompts of held-out problems of every task of `ossia.tasks`, as evaluation draws them."""
    from ossia.tasks.registry import TASKS

    for name, task in TASKS.items():
        rng = random.Random(f"{name} {seed}")
        for _ in range(per_task):
            yield task.problem(rng, held_out=True).prompt
