"""English words, split once and for all into words to train on and words held out."""

from __future__ import annotations

import lzma
import random
import string
from functools import cache
from typing import NamedTuple

from ossia.core.paths import PACKAGE_ROOT
from ossia.harmony.vocab import load_o200k_ranks
from ossia.tasks.base import is_held_out

ALWAYS_HELD_OUT = frozenset({"strawberry", "strawberries"})
"""The question that everyone asks first must not have been trained on."""


class WordSplit(NamedTuple):
    """The word list, in two disjoint parts."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@cache
def load_words() -> WordSplit:
    """Read the packaged list: 63,641 lower-case words of 3 to 16 letters."""
    packed = (PACKAGE_ROOT / "tasks" / "data" / "words.txt.xz").read_bytes()
    words = lzma.decompress(packed).decode().split("\n")
    held_out = tuple(word for word in words if word in ALWAYS_HELD_OUT or is_held_out(word))
    kept = set(held_out)
    return WordSplit(train=tuple(word for word in words if word not in kept), held_out=held_out)


@cache
def load_common_words() -> tuple[str, ...]:
    """The words to train on that are one token of o200k after a space, and so most likely of a smaller vocabulary.

    After a quotation mark most of them are several tokens (` mushrooms`, but `m` `ush` `rooms`). How each is spelled
    has to be learned one by one, so that these need to be copied more often than a draw from all words gives.
    """
    ranks = load_o200k_ranks()
    return tuple(word for word in load_words().train if f" {word}".encode() in ranks)


def draw_word(rng: random.Random, *, held_out: bool) -> str:
    """Draw a word; in training one in six is made of random letters, so that spelling is not learned by heart."""
    split = load_words()
    if held_out:
        return rng.choice(split.held_out)
    if rng.random() < 1 / 6:
        return draw_letters(rng)
    return rng.choice(split.train)


def draw_letters(rng: random.Random) -> str:
    """Draw 3 to 14 random letters; half of the time from an alphabet of three, for the sake of repeated letters."""
    letters = string.ascii_lowercase if rng.random() < 0.5 else rng.sample(string.ascii_lowercase, 3)
    while True:
        word = "".join(rng.choice(letters) for _ in range(rng.randint(3, 14)))
        if word not in ALWAYS_HELD_OUT and not is_held_out(word):
            return word


def vary_case(word: str, rng: random.Random) -> str:
    """Write a word as users do: mostly in lower case, sometimes Capitalized or in CAPITALS."""
    kind = rng.random()
    if kind < 0.7:
        return word
    return word.capitalize() if kind < 0.88 else word.upper()


def quote(word: str, rng: random.Random) -> str:
    """Put a word between one of the quotation marks that users type, or none."""
    left, right = rng.choice(
        (("'", "'"), ("'", "'"), ('"', '"'), ('"', '"'), ("", ""), ("“", "”"), ("‘", "’"), ("`", "`"))
    )
    return f"{left}{word}{right}"
