"""Many ways to ask the same: patterns of data/ways.txt, with openings and closings, and numbers as words.

Whole lines of the file are held out by hash, each with all that it stands for. A training prompt is never one of a
held-out line, however it is written: both are compared without case and punctuation.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from types import MappingProxyType

from ossia.core.paths import PACKAGE_ROOT
from ossia.tasks.patterns import expand
from ossia.tasks.pools import Pool

LISTED_SHARE = 0.4
"""How often a known phrasing is one of the task's own short list."""
NEW_SHARE = 0.25
"""How many held-out problems are asked in held-out phrasings."""
FRAMED_SHARE, PLAIN_SHARE = 0.3, 0.12
WORDED_SHARE = 0.3
"""How many numbers of up to a hundred are written as words, where no sign stands beside them."""
MAX_TEXTS = 2000
KNOWN, NEW = "known phrasing", "new phrasing"
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SIGNS = re.compile(r" [-+*/x] |[=×÷]|->|\}[-+*/]\{")


def number_words(number: int) -> str:
    """A number from 0 to 100 in words: ``forty-two``."""
    if number < len(_ONES):
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return "a hundred" if number == 100 else _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


WORDED_NUMBERS: Mapping[str, int] = MappingProxyType({number_words(number): number for number in range(101)})
_WORDED = re.compile(
    rf"\b(?:{'|'.join(sorted(WORDED_NUMBERS, key=len, reverse=True))})\b(?!-)", re.IGNORECASE
)  # the longest first, so that "forty-two" is not forty


def words_to_digits(text: str) -> str:
    """Write the number words of a text in digits."""
    return _WORDED.sub(lambda match: str(WORDED_NUMBERS[match[0].lower()]), text)


def maybe_words(number: int, shown: str, way: str, rng: random.Random) -> str:
    """`shown`, or the number in words where that is usual: up to a hundred, in a way to ask without signs."""
    if not 0 <= number <= 100 or _SIGNS.search(way) or re.fullmatch(r"\W*\{a\}\W*\{b\}\W*", way):
        return shown
    return number_words(number) if rng.random() < WORDED_SHARE else shown


def plain(text: str) -> str:
    """A text by its words alone, places included: without case, marks, or double spaces."""
    return re.sub(r"[^a-z0-9{}+*/×÷=]+", " ", text.lower().replace(" - ", " = ")).strip()


@cache
def load_ways() -> Mapping[str, tuple[str, ...]]:
    """Read data/ways.txt: the lines of each section. Blanks at their ends count."""
    text = (PACKAGE_ROOT / "tasks" / "data" / "ways.txt").read_text(encoding="utf-8")
    sections: dict[str, tuple[str, ...]] = {}
    for section in re.split(r"(?m)^= ", text)[1:]:
        head, *lines = section.split("\n")
        sections[head.strip()] = tuple(line for line in lines if line and not line.startswith("#"))
    return MappingProxyType(sections)


class Ways:
    """All ways to ask for one thing: a list that is trained on, and the patterns of a section.

    Args:
        name: the section of data/ways.txt.
        listed: phrasings that are always trained on.
    """

    def __init__(self, name: str, listed: Sequence[str] = ()) -> None:
        self.name = name
        self.listed = tuple(listed)

    @cached_property
    def _lines(self) -> Pool[str]:
        return Pool(f"way to {self.name}", load_ways()[self.name])

    @cached_property
    def new(self) -> tuple[tuple[str, ...], ...]:
        """The held-out phrasings, line by line."""
        known = set(map(plain, self.listed))
        return _kept(self._lines.held_out, known)

    @cached_property
    def barred(self) -> frozenset[str]:
        """The held-out phrasings as `plain` writes them: training asks none of them."""
        return frozenset(plain(text) for texts in self.new for text in texts)

    @cached_property
    def known(self) -> tuple[tuple[str, ...], ...]:
        """The phrasings of training, line by line, without the list."""
        return _kept(self._lines.train, self.barred)

    def draw(self, rng: random.Random, *, new: bool = False) -> str:
        """A way to ask, with its places still open.

        Args:
            rng: source of randomness.
            new: draw a held-out phrasing instead of one of training.
        """
        if not new and self.listed and rng.random() < LISTED_SHARE:
            return rng.choice(self.listed)
        text = rng.choice(rng.choice(self.new if new else self.known))
        framed = _frame(text, rng)
        return framed if new or plain(framed) not in self.barred else text


def _kept(lines: Sequence[str], left_out: set[str] | frozenset[str]) -> tuple[tuple[str, ...], ...]:
    """What each line stands for, less some texts; lines of which nothing is left are dropped."""
    groups = (tuple(t for t in expand(line, limit=MAX_TEXTS) if plain(t) not in left_out) for line in lines)
    return tuple(group for group in groups if group)


def _frame(text: str, rng: random.Random) -> str:
    """Put an opening before some texts and a closing behind some, and write some without capitals or marks."""
    if rng.random() < FRAMED_SHARE:
        if rng.random() < 0.65:
            opening = rng.choice(load_ways()["opening"])
            is_name = text.startswith(("I ", "I'", "{"))
            text = opening + (text if is_name or opening.endswith("! ") else text[:1].lower() + text[1:])
        if rng.random() < 0.5:
            text = (text if text.endswith((".", "?", "!")) else f"{text}.") + rng.choice(load_ways()["closing"])
    if rng.random() < PLAIN_SHARE:
        text = text.lower().rstrip("?!.") or text
    return text


def asks_new(rng: random.Random, *, held_out: bool) -> bool:
    """Whether a problem is asked in a held-out phrasing."""
    return held_out and rng.random() < NEW_SHARE


def part_of(name: str, *, new: bool) -> str:
    """The parts that a problem counts in: a new phrasing apart, a known one with its own part."""
    return NEW if new else f"{KNOWN}; {name}"
