"""Word problems of one to three steps, from the stories of `word_stories`."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import NamedTuple

from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.pools import load_pool
from ossia.tasks.word_stories import Story, load_stories
from ossia.tasks.written import equation

_PLURALS = {"leaf": "leaves", "shelf": "shelves", "box": "boxes"}
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
MAX_RESULT = 20_000
MAX_DIVISOR = 12
"""Divisors are at most so large, or tens: what `divide` teaches."""
EASY_TOP = 49
EASY_SHARE = 0.6
"""In so many problems the quantities drawn are at most EASY_TOP: what is hard in a story is the relation."""
ROLE_SHARE = 0.15
ADJECTIVE_SHARE = 0.25


class Worked(NamedTuple):
    """One equation with its numbers."""

    left: int
    operator: str
    right: int


def plural(item: str) -> str:
    """The plural of an item of data/lists.json."""
    if item in _PLURALS:
        return _PLURALS[item]
    if item.endswith(("ch", "sh", "x", "ss", "ato")):
        return f"{item}es"
    if item.endswith("y") and item[-2] not in "aeiou":
        return f"{item[:-1]}ies"
    return f"{item}s"


def compute(left: int, operator: str, right: int) -> int | None:
    """The result, if it is a natural number within bounds."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    result = left + right if operator == "+" else left - right if operator == "-" else left * right
    return result if 0 <= result <= MAX_RESULT else None


def _draw_quantities(story: Story, rng: random.Random) -> dict[str, int] | None:
    top = EASY_TOP if rng.random() < EASY_SHARE else MAX_RESULT
    values = {name: rng.randint(low, max(low, min(high, top))) for name, (low, high) in story.ranges.items()}
    for name, formula in story.made.items():
        result: int | None = _value(formula[0], values)
        for operator, operand in zip(formula[1::2], formula[2::2], strict=True):
            result = compute(result, operator, _value(operand, values))
            if result is None:
                return None
        values[name] = result
        if result < 1:
            return None
    return values


def _value(name: str, values: Mapping[str, int]) -> int:
    return int(name) if name.isdigit() else values[name]


def _work(story: Story, values: dict[str, int]) -> list[Worked] | None:
    """The equations with their numbers; the results go into `values` as r1, r2, ... and the last as r."""
    worked: list[Worked] = []
    for number, (left, operator, right) in enumerate(story.steps, start=1):
        a, b = _value(left, values), _value(right, values)
        result = compute(a, operator, b)
        if not result or (operator == "/" and b > MAX_DIVISOR and b % 10):
            return None
        values[f"r{number}"] = values["r"] = result
        worked.append(Worked(a, operator, b))
    return worked


def _draw_words(story: Story, rng: random.Random, *, held_out: bool) -> dict[str, str]:
    """People, things, containers and the story's own words, by the names of their places."""

    def several(pool: str, number: int) -> list[str]:
        return load_pool(pool).sample(rng, number, held_out=held_out)

    people = several("first_names", 3)
    for place, role in enumerate(several("roles", 3)):
        if rng.random() < ROLE_SHARE:
            people[place] = f"the {role}"
    things = several("items", 2)
    if rng.random() < ADJECTIVE_SHARE:
        things[0] = f"{several('adjectives', 1)[0]} {things[0]}"
    container = several("containers", 1)[0]
    return {
        **dict(zip("ABC", people, strict=True)),
        **dict(zip("st", things, strict=True)),
        **dict(zip("ij", map(plural, things), strict=True)),
        "h": container,
        "g": plural(container),
        **{name: rng.choice(options) for name, options in story.words.items()},
    }


class WordProblems:
    """One to three steps of arithmetic in a story. Held-out problems have names, items and numbers of their own.

    A third of them have stories of their own too; they are told apart by `Problem.part`. Reasoning begins with the
    equations: what stood before them (what is known, which operation it is) led them astray in new stories.
    """

    name = "word_problems"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        stories = load_stories()
        is_new = held_out and rng.random() < 1 / 3
        while True:
            story = stories.draw(rng, held_out=is_new)
            values = _draw_quantities(story, rng)
            worked = None if values is None else _work(story, values)
            if values is None or worked is None:
                continue
            told = [str(values[name]) for name in story.told]
            if is_held_out(f"story {story.family} {' '.join(told)}") == held_out:
                break
        places = _draw_words(story, rng, held_out=held_out) | {name: str(value) for name, value in values.items()}
        text = _choose(rng.choice(story.texts), rng)
        question = _fill(_choose(rng.choice(story.questions), rng), places)
        prompt = _fill(f"{text} {question}", places)
        facts = {
            "steps": ";".join(f"{a} {operator} {b}" for a, operator, b in worked),
            "said": _fill(story.said, places),
            "asked": _fill_plain(story.asked, places) or question,
        }
        part = f"{'new' if is_new else 'known'} story, {len(worked)} step{'s' if len(worked) > 1 else ''}"
        return Problem(task=self.name, prompt=prompt, answer=str(values["r"]), facts=facts, part=part)

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        facts = problem.facts
        if effort is Effort.LOW:
            return Solution(analysis="", final=(problem.answer,))
        steps = [(int(a), operator, int(b)) for a, operator, b in (step.split() for step in facts["steps"].split(";"))]
        lines = [equation(*step).text for step in steps]
        if effort is Effort.HIGH:
            a, operator, b = steps[-1]
            inverse = {"+": "-", "-": "+", "x": "/", "/": "x"}[operator]
            lines += [f"asked: {facts['asked']}", f"check: {problem.answer} {inverse} {b} = {a} ok"]
        return Solution(analysis="\n".join(lines), final=(facts["said"],))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return numbers_in(answer.final or "")[-1:] == [problem.answer]


def _choose(text: str, rng: random.Random) -> str:
    """Take one of each `(a|b)`."""
    return _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)


def _fill_plain(text: str, places: Mapping[str, str]) -> str:
    """Fill the places, with "an" before vowels."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text.format_map(places))


def _fill(text: str, places: Mapping[str, str]) -> str:
    """Fill the places, and begin each sentence with a capital."""
    filled = _fill_plain(text, places)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), filled)
