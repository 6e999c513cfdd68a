"""Labelled sentences for the hazard classifier, put together from parts.

A restricted sentence names an intent (to make, get, spread), a class of thing and a circumstance, and nothing that
would help anyone: no substance, amount, supplier or method. A benign one speaks of the same things as history, law,
medicine, defence, science, energy or fiction do, or gives instructions for something harmless. Of each list every third
part is held out: a held-out example shares no opening, circumstance, thing or benign sentence with those for training.
The intents themselves, single verbs, are in all parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from ossia.training.data.filters.hazard.frames import BENIGN, CIRCUMSTANCES, FILLERS, INTENTS, ITEMS, OPENINGS, PLACES

T = TypeVar("T")
PARTS = ("fit", "validation", "held_out")


class Example(NamedTuple):
    """A labelled text.

    Attributes:
        is_hazard: whether the filter should drop it.
        kind: the category of a restricted one, the genre of a benign one.
    """

    text: str
    is_hazard: bool
    kind: str


def part_of(items: Sequence[T], parts: Sequence[str]) -> list[T]:
    """The members of a list that belong to some of PARTS."""
    wanted = {PARTS.index(part) for part in parts}
    return [item for place, item in enumerate(items) if place % len(PARTS) in wanted]


def draw(rng: random.Random, *, parts: Sequence[str]) -> Example:
    """Draw an example, restricted or benign with equal chance, alone or amid one or two indifferent sentences."""
    is_hazard = rng.random() < 0.5
    kind = rng.choice(list(ITEMS) if is_hazard else list(BENIGN))
    sentence = _restricted(rng, kind, parts) if is_hazard else _benign(rng, kind, parts)
    sentences = [sentence]
    for _ in range(rng.choice((0, 0, 1, 2))):
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(part_of(FILLERS, parts)))
    return Example(" ".join(sentences), is_hazard, kind)


def draw_many(count: int, *, parts: Sequence[str], seed: int) -> list[Example]:
    """So many different examples.

    Raises:
        RuntimeError: the templates of these parts do not have so many.
    """
    rng = random.Random(f"{' '.join(parts)} {seed}")
    found: dict[str, Example] = {}
    for _ in range(50 * count):
        example = draw(rng, parts=parts)
        found.setdefault(example.text, example)
        if len(found) == count:
            return list(found.values())
    raise RuntimeError(f"the templates give {len(found)} different examples, not {count}")


def _restricted(rng: random.Random, category: str, parts: Sequence[str]) -> str:
    opening = rng.choice(part_of(OPENINGS, parts))
    intent = rng.choice(INTENTS)
    item = rng.choice(part_of(ITEMS[category], parts))
    circumstance = rng.choice(part_of(CIRCUMSTANCES, parts)) if rng.random() < 0.75 else ""
    sentence = opening.format(act=f"{intent} {item}{circumstance and ' ' + circumstance}")
    return sentence[0].upper() + sentence[1:]


def _benign(rng: random.Random, genre: str, parts: Sequence[str]) -> str:
    frame = rng.choice(part_of(BENIGN[genre], parts))
    item = rng.choice(part_of(ITEMS[rng.choice(list(ITEMS))], parts))
    sentence = frame.format(item=item, place=rng.choice(part_of(PLACES, parts)), year=rng.randrange(1920, 2025))
    return sentence[0].upper() + sentence[1:]
