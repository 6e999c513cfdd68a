"""Word problems of one to three steps, from the stories of data/word_problems.txt.

A line of that file: the quantities with their ranges (`a:2-9`), or what they are made of (`c=axb+k`, read from the
left; a `k` is drawn but not told); the text; questions; steps (`axb; r1-c`: `r1` is the first result); the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from ossia.core.paths import PACKAGE_ROOT
from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.pools import Pool, load_pool
from ossia.tasks.written import equation

_PLURALS = {"leaf": "leaves", "shelf": "shelves", "box": "boxes"}
MAX_RESULT = 20_000


class Step(NamedTuple):
    """One equation over names of quantities and earlier results, or a written number."""

    left: str
    operator: str
    right: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """One line of the file.

    Attributes:
        ranges: of the quantities drawn.
        made: quantities that follow from others, as names with operators between.
    """

    ranges: Mapping[str, tuple[int, int]]
    made: Mapping[str, tuple[str, ...]]
    text: str
    questions: tuple[str, ...]
    steps: tuple[Step, ...]
    said: str


def plural(item: str) -> str:
    """The plural of an item of data/lists.json."""
    if item in _PLURALS:
        return _PLURALS[item]
    if item.endswith(("ch", "sh", "x", "ss", "ato")):
        return f"{item}es"
    if item.endswith("y") and item[-2] not in "aeiou":
        return f"{item[:-1]}ies"
    return f"{item}s"


def read_story(line: str) -> Story:
    """Read one line of the file."""
    quantities, text, questions, steps, said = (part.strip() for part in line.split(" | "))
    ranges: dict[str, tuple[int, int]] = {}
    made: dict[str, tuple[str, ...]] = {}
    for part in quantities.split():
        if "=" in part:
            name, _, formula = part.partition("=")
            made[name] = tuple(re.findall(r"[a-w]|[-+x/]|\d+", formula))
            ranges.pop(name, None)
        else:
            name, low, high = re.split("[:-]", part)
            ranges[name] = (int(low), int(high))
    found = [re.fullmatch(r"([a-w]\d?|\d+)([-+x/])([a-w]\d?|\d+)", step.strip()) for step in steps.split(";")]
    return Story(
        ranges=ranges,
        made=made,
        text=text,
        questions=tuple(question.strip() for question in questions.split(";;")),
        steps=tuple(Step(*match.groups()) for match in found if match is not None),
        said=said,
    )


@cache
def load_stories() -> Pool[Story]:
    """The packaged stories, whole ones held out."""
    text = (PACKAGE_ROOT / "tasks" / "data" / "word_problems.txt").read_text(encoding="utf-8")
    stories = [read_story(line) for line in text.splitlines() if line and not line.startswith("#")]
    return Pool("a story", stories, key=lambda story: story.text + "".join(map(str, story.steps)))


def compute(left: int, operator: str, right: int) -> int | None:
    """The result, if it is a natural number within bounds."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    result = left + right if operator == "+" else left - right if operator == "-" else left * right
    return result if 0 <= result <= MAX_RESULT else None


def _draw_quantities(story: Story, rng: random.Random) -> dict[str, int] | None:
    values = {name: rng.randint(low, high) for name, (low, high) in story.ranges.items()}
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


def _work(story: Story, values: dict[str, int]) -> list[tuple[int, str, int]] | None:
    """The equations with their numbers; the results go into `values` as r1, r2, ... and the last as r."""
    worked: list[tuple[int, str, int]] = []
    for number, (left, operator, right) in enumerate(story.steps, start=1):
        a, b = _value(left, values), _value(right, values)
        result = compute(a, operator, b)
        if not result:
            return None
        values[f"r{number}"] = values["r"] = result
        worked.append((a, operator, b))
    return worked


class WordProblems:
    """One to three steps of arithmetic in a story. Held-out problems have names, items and numbers of their own.

    A third of them have stories of their own too; they are told apart by `Problem.part`.
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
            told = " ".join(str(values[name]) for name in sorted(values) if name != "k" and name[0] != "r")
            if is_held_out(f"story {story.text} {told}") == held_out:
                break
        people = load_pool("first_names").sample(rng, 3, held_out=held_out)
        things = load_pool("items").sample(rng, 2, held_out=held_out)
        places = {
            **dict(zip("ABC", people, strict=False)),
            **dict(zip("st", things, strict=False)),
            **dict(zip("ij", map(plural, things), strict=False)),
            **{name: str(value) for name, value in values.items()},
        }
        question = rng.choice(story.questions)
        prompt = _fill(f"{story.text} {question}", places)
        facts = {
            "steps": ";".join(f"{a} {operator} {b}" for a, operator, b in worked),
            "said": _fill(story.said, places),
            "question": _fill(question, places),
            "known": ", ".join(str(values[name]) for name in sorted(values) if name != "k" and name[0] != "r"),
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
            check = f"{problem.answer} {inverse} {b} = {a}"
            lines = [f"known: {facts['known']}", f"asked: {facts['question']}", *lines, f"check: {check} ok"]
        return Solution(analysis="\n".join(lines), final=(facts["said"],))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return numbers_in(answer.final or "")[-1:] == [problem.answer]


def _fill(text: str, places: Mapping[str, str]) -> str:
    """Fill the places, with "an" before vowels."""
    filled = text.format_map(places)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", filled)
