"""Integers of up to six digits: adding, subtracting, comparing (decimals too).

Sums are worked column by column from the right, as on paper, since every digit is a token of its own. Training draws
numbers of up to eight digits: column work does not reach one digit past the lengths that it was trained on.
"""

from __future__ import annotations

import random
import re
from decimal import Decimal
from itertools import zip_longest
from typing import NamedTuple

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.ways import Ways, asks_new, maybe_words, part_of

ADVERTISED_DIGITS = 6
TRAINED_DIGITS = 8
SMALL = 100
"""Pairs of numbers below this are too few to hold any out."""

ADD_PROMPTS = (
    "What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=", "Add {a} and {b}.",
    "What is {a} plus {b}?", "Calculate {a} + {b}.", "Compute {a} + {b}.", "How much is {a} + {b}?", "{a} plus {b}",
    "What's {a} + {b}?", "what is the sum of {a} and {b}", "Find the sum of {a} and {b}.", "Can you add {a} and {b}?",
    "Please work out {a} + {b}.", "What do you get if you add {b} to {a}?",
)  # fmt: skip
SUBTRACT_PROMPTS = (
    "What is {a} - {b}?", "What is {a}-{b}?", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a}-{b}=",
    "Subtract {b} from {a}.", "What is {a} minus {b}?", "Calculate {a} - {b}.", "Compute {a} - {b}.",
    "How much is {a} - {b}?", "{a} minus {b}", "What's {a} - {b}?", "Take {b} away from {a}.",
    "what is the difference between {a} and {b}", "Can you subtract {b} from {a}?", "Please work out {a} - {b}.",
    "How much is left if you take {b} from {a}?",
)  # fmt: skip
LARGER_PROMPTS = (
    "Which is larger, {a} or {b}?", "Which is bigger, {a} or {b}?", "Which number is greater: {a} or {b}?",
    "What is larger: {a} or {b}?", "which is bigger {a} or {b}", "Which of {a} and {b} is larger?",
    "Compare {a} and {b}: which is larger?", "What is the larger of {a} and {b}?", "Is {a} or {b} bigger?",
)  # fmt: skip
SMALLER_PROMPTS = (
    "Which is smaller, {a} or {b}?", "Which number is less: {a} or {b}?", "What is smaller: {a} or {b}?",
    "which is smaller {a} or {b}", "Which of {a} and {b} is smaller?", "What is the smaller of {a} and {b}?",
    "Is {a} or {b} smaller?",
)  # fmt: skip

ADD_WAYS = Ways("add", ADD_PROMPTS)
SUBTRACT_WAYS, SUBTRACT_DOWN_WAYS = Ways("subtract", SUBTRACT_PROMPTS), Ways("subtract_down")
LARGER_WAYS, SMALLER_WAYS = Ways("larger", LARGER_PROMPTS), Ways("smaller", SMALLER_PROMPTS)
IS_LARGER_WAYS, IS_SMALLER_WAYS = Ways("is_larger"), Ways("is_smaller")


class Columns(NamedTuple):
    """Written arithmetic and its result."""

    text: str
    result: int


def add_columns(a: int, b: int) -> Columns:
    """Add two natural numbers in columns: ``1 2 + 0 9: 2+9+0=11, 1+0+1=2 -> 21``."""
    width = max(len(str(a)), len(str(b)))
    top, bottom = str(a).zfill(width), str(b).zfill(width)
    steps: list[str] = []
    carry = 0
    for x, y in zip(reversed(top), reversed(bottom), strict=True):
        total = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+{carry}={total}")
        carry = total // 10
    return Columns(f"{' '.join(top)} + {' '.join(bottom)}: {', '.join(steps)} -> {a + b}", a + b)


def subtract_columns(a: int, b: int) -> Columns:
    """Subtract two natural numbers in columns, borrowing tens as needed; a smaller minuend is swapped and negated."""
    if a < b:
        swapped = subtract_columns(b, a)
        return Columns(f"{a}<{b}, so minus: {swapped.text}, minus -> {a - b}", a - b)
    width = len(str(a))
    top, bottom = str(a), str(b).zfill(width)
    steps: list[str] = []
    borrow = 0
    for x, y in zip(reversed(top), reversed(bottom), strict=True):
        difference = int(x) - int(y) - borrow
        ten = "+10" if difference < 0 else ""
        steps.append(f"{x}-{y}-{borrow}{ten}={difference % 10}")
        borrow = 1 if difference < 0 else 0
    return Columns(f"{' '.join(top)} - {' '.join(bottom)}: {', '.join(steps)} -> {a - b}", a - b)


def draw_number(rng: random.Random, *, max_digits: int) -> int:
    """Draw a natural number whose number of digits is uniform."""
    digits = rng.randint(1, max_digits)
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def draw_pair(rng: random.Random, *, key: str, held_out: bool) -> tuple[int, int]:
    """Draw a pair of numbers on the wanted side of the split; `key` keeps the splits of several tasks apart."""
    max_digits = ADVERTISED_DIGITS if held_out or rng.random() < 0.85 else TRAINED_DIGITS
    while True:
        a = draw_number(rng, max_digits=max_digits)
        b = draw_number(rng, max_digits=max_digits)
        if rng.random() < 0.4:  # as long as each other, which independent lengths rarely are
            b = rng.randint(10 ** (len(str(a)) - 1), 10 ** len(str(a)) - 1)
        kept = max(a, b) >= SMALL and is_held_out(f"{key} {a} {b}")
        if kept == held_out:
            return a, b


def write_number(number: int, rng: random.Random) -> str:
    """Write a number as users do: one large one in eight with thousands separators."""
    return f"{number:,}" if number >= 1000 and rng.random() < 0.125 else str(number)


def _written(number: int, way: str, rng: random.Random) -> str:
    """A number in digits or words, as the way to ask allows."""
    return maybe_words(number, write_number(number, rng), way, rng)


def numbers_in(text: str) -> list[str]:
    """All numbers in a text, without thousands separators."""
    return [number.replace(",", "") for number in re.findall(r"-?\d(?:[\d,]*\d)?(?:\.\d+)?", text.replace("−", "-"))]


class Add:
    """The sum of two natural numbers."""

    name = "add"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        a, b = draw_pair(rng, key="+", held_out=held_out)
        new = asks_new(rng, held_out=held_out)
        way = ADD_WAYS.draw(rng, new=new)
        prompt = way.format(a=_written(a, way, rng), b=_written(b, way, rng))
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=str(a + b),
            facts={"a": str(a), "b": str(b)},
            part=part_of(f"{max(len(str(a)), len(str(b)))} digits", new=new),
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        a, b = int(problem.facts["a"]), int(problem.facts["b"])
        if effort is Effort.LOW:
            return Solution(analysis="", final=(problem.answer,))
        analysis = add_columns(a, b).text
        if effort is Effort.HIGH:
            analysis += f" check: {subtract_columns(a + b, b).text} ok"
        return Solution(analysis=analysis, final=(f"{a} + {b} = {a + b}",))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return numbers_in(final)[-1:] == [problem.answer]


class Subtract:
    """The difference of two natural numbers, which may be negative."""

    name = "subtract"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        a, b = draw_pair(rng, key="-", held_out=held_out)
        if a < b and rng.random() < 0.7 and is_held_out(f"- {b} {a}") == is_held_out(f"- {a} {b}"):
            a, b = b, a
        new = asks_new(rng, held_out=held_out)
        ways = SUBTRACT_DOWN_WAYS if a > b and rng.random() < 0.15 else SUBTRACT_WAYS
        way = ways.draw(rng, new=new)
        prompt = way.format(a=_written(a, way, rng), b=_written(b, way, rng))
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=str(a - b),
            facts={"a": str(a), "b": str(b)},
            part=part_of(f"{max(len(str(a)), len(str(b)))} digits", new=new),
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        a, b = int(problem.facts["a"]), int(problem.facts["b"])
        if effort is Effort.LOW:
            return Solution(analysis="", final=(problem.answer,))
        analysis = subtract_columns(a, b).text
        if effort is Effort.HIGH:
            check = add_columns(a - b, b) if a >= b else add_columns(b - a, a)
            analysis += f" check: {check.text} ok"
        return Solution(analysis=analysis, final=(f"{a} - {b} = {a - b}",))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        return numbers_in(final)[-1:] == [problem.answer]


def digit_by_digit(a: str, b: str) -> str:
    """Compare two numbers from the left, aligned at the point: ``9.1 1 vs 9.9 0: 9=9 1<9``.

    Of two negative numbers the one nearer to zero is the larger, and a negative one is below any that is not.
    """
    if a.startswith("-") and b.startswith("-"):
        return f"both minus, so turned round: {digit_by_digit(a[1:], b[1:])}"
    if a.startswith("-") or b.startswith("-"):
        return f"{a} vs {b}: minus is below"
    (whole_a, _, part_a), (whole_b, _, part_b) = a.partition("."), b.partition(".")
    width = max(len(whole_a), len(whole_b))
    whole_a, whole_b = whole_a.zfill(width), whole_b.zfill(width)
    padded = list(zip_longest(part_a, part_b, fillvalue="0"))
    columns = [*zip(whole_a, whole_b, strict=True), *padded]
    shown = [" ".join(whole) + ("." + " ".join(part) if part else "") for whole, part in (
        (whole_a, [x for x, _ in padded]), (whole_b, [y for _, y in padded]))]  # fmt: skip
    steps: list[str] = []
    for x, y in columns:
        steps.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    return f"{shown[0]} vs {shown[1]}: {' '.join(steps)}"


class Compare:
    """Which of two numbers is larger, or smaller; they may be equal."""

    name = "compare"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            a, b = self._draw(rng)
            kept = (max(abs(Decimal(a)), abs(Decimal(b))) >= SMALL or "." in a) and is_held_out(f"? {a} {b}")
            if kept == held_out:
                break
        wants_larger = rng.random() < 0.6
        new, asks_whether = asks_new(rng, held_out=held_out), rng.random() < 0.2
        whether, which = (IS_LARGER_WAYS, LARGER_WAYS) if wants_larger else (IS_SMALLER_WAYS, SMALLER_WAYS)
        prompt = (whether if asks_whether else which).draw(rng, new=new).format(a=a, b=b)
        ordered = sorted((a, b), key=Decimal)
        answer = "equal" if Decimal(a) == Decimal(b) else ordered[wants_larger]
        facts = {"a": a, "b": b, "relation": "larger" if wants_larger else "smaller"}
        if asks_whether:
            facts["whether"] = "Yes" if answer == a else "No"
        part = "negative" if "-" in a + b else "decimal" if "." in a else "natural"
        return Problem(task=self.name, prompt=prompt, answer=answer, facts=facts, part=part_of(part, new=new))

    def _draw(self, rng: random.Random) -> tuple[str, str]:
        a, b = self._draw_natural(rng)
        kind = rng.random()
        if kind < 0.1:
            return f"-{a}", f"-{b}"
        if kind < 0.14:
            return f"-{a}", b
        return (a, f"-{b}") if kind < 0.18 else (a, b)

    def _draw_natural(self, rng: random.Random) -> tuple[str, str]:
        if rng.random() < 0.25:
            whole = draw_number(rng, max_digits=3)
            other = whole if rng.random() < 0.75 else draw_number(rng, max_digits=3)
            parts = [str(rng.randint(0, 10 ** rng.randint(1, 3) - 1)) for _ in range(2)]
            return f"{whole}.{parts[0]}", f"{other}.{parts[1]}"
        a = str(draw_number(rng, max_digits=ADVERTISED_DIGITS))
        kind = rng.random()
        if kind < 0.05:
            return a, a
        if kind < 0.6:  # equal up to some digit, so that the answer is not in the length
            kept = rng.randint(0, len(a) - 1)
            tail = "".join(rng.choice("0123456789") for _ in a[kept:])
            return a, str(int(a[:kept] + tail))
        return a, str(draw_number(rng, max_digits=ADVERTISED_DIGITS))

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        a, b, relation = problem.facts["a"], problem.facts["b"], problem.facts["relation"]
        if problem.answer == "equal":
            final = "They are equal."
        elif effort is Effort.LOW:
            final = problem.answer
        else:
            final = f"{problem.answer} is {relation} than {b if problem.answer == a else a}."
        if whether := problem.facts.get("whether"):
            final = f"{whether}: {final if problem.answer == 'equal' else f'{problem.answer} is {relation}.'}"
        analysis = "" if effort is Effort.LOW else f"{digit_by_digit(a, b)} -> {problem.answer}"
        if effort is Effort.HIGH:
            analysis += f" check: {digit_by_digit(b, a)} ok"
        return Solution(analysis=analysis, final=(final,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = answer.final or ""
        whether = problem.facts.get("whether")
        if whether and re.match(r"\W*(no)\b" if whether == "Yes" else r"\W*(yes)\b", final, re.IGNORECASE):
            return False
        if problem.answer == "equal":
            return "equal" in final and not numbers_in(final)
        return numbers_in(final)[:1] == [problem.answer]
