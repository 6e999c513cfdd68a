"""Lists to draw from, each split once and for all into what may be trained on and what is held out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Generic, TypeVar

from ossia.core.paths import PACKAGE_ROOT
from ossia.tasks.base import is_held_out

_T = TypeVar("_T")


class Pool(Generic[_T]):
    """Entries on both sides of the split; at least one on each.

    Args:
        name: keeps the splits of several pools apart.
        entries: what there is to draw, two or more.
        key: what an entry is told by; its text by default.
        rounds: how often a tenth is held out; more for short lists, of which one tenth would tell little.
    """

    def __init__(self, name: str, entries: Iterable[_T], *, key: Callable[[_T], str] = str, rounds: int = 1) -> None:
        self.train: list[_T] = []
        self.held_out: list[_T] = []
        for entry in entries:
            keys = (f"{name} {key(entry)}{f' {turn}' if turn else ''}" for turn in range(rounds))
            (self.held_out if any(map(is_held_out, keys)) else self.train).append(entry)
        for empty, full in ((self.train, self.held_out), (self.held_out, self.train)):
            if not empty:  # a short list: hold out the one whose key sorts first
                full.sort(key=key)
                empty.append(full.pop(0))

    def draw(self, rng: random.Random, *, held_out: bool) -> _T:
        """One entry of the wanted side."""
        side = self.held_out if held_out else self.train
        return side[int(rng.random() * len(side))]

    def sample(self, rng: random.Random, number: int, *, held_out: bool) -> list[_T]:
        """Distinct entries of the wanted side: `number` of them, or all if there are fewer."""
        side = self.held_out if held_out else self.train
        return rng.sample(side, min(number, len(side)))


@cache
def load_list(name: str) -> Sequence[str]:
    """A list of data/lists.json: first_names, last_names, cities, items, nouns, topics."""
    raw: dict[str, str] = json.loads((PACKAGE_ROOT / "tasks" / "data" / "lists.json").read_text(encoding="utf-8"))
    return tuple(raw[name].split("|"))


@cache
def load_pool(name: str) -> Pool[str]:
    """A list of data/lists.json, split."""
    return Pool(name, load_list(name))


def draw_full_name(rng: random.Random, *, held_out: bool) -> str:
    """A first and a last name, both of one side."""
    first = load_pool("first_names").draw(rng, held_out=held_out)
    return f"{first} {load_pool('last_names').draw(rng, held_out=held_out)}"
