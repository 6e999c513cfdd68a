"""Small products and quotients."""

from __future__ import annotations

import random

from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in, write_number
from ossia.tasks.base import Answer, Problem, Solution, is_held_out
from ossia.tasks.ways import Ways, asks_new, maybe_words, part_of
from ossia.tasks.written import divide_columns, multiply_columns, multiply_parts

MULTIPLY_PROMPTS = (
    "What is {a} * {b}?", "What is {a} x {b}?", "What is {a} times {b}?", "{a} * {b}", "{a}*{b}", "{a} x {b} = ?",
    "{a} × {b}", "Multiply {a} by {b}.", "Multiply {a} and {b}.", "Calculate {a} * {b}.", "Compute {a} times {b}.",
    "How much is {a} times {b}?", "What's {a} times {b}?", "what is the product of {a} and {b}", "{a} times {b}",
    "Please work out {a} x {b}.", "Can you multiply {a} by {b}?", "Find {a} * {b}.",
)  # fmt: skip
DIVIDE_PROMPTS = (
    "What is {a} / {b}?", "What is {a} divided by {b}?", "{a} / {b}", "{a}/{b}", "{a} ÷ {b}", "{a} / {b} = ?",
    "Divide {a} by {b}.", "Calculate {a} / {b}.", "Compute {a} divided by {b}.", "How much is {a} divided by {b}?",
    "How many times does {b} go into {a}?", "What's {a} divided by {b}?", "Please work out {a} / {b}.",
    "Can you divide {a} by {b}?", "{a} divided by {b}",
)  # fmt: skip
MULTIPLY_WAYS, DIVIDE_WAYS = Ways("multiply", MULTIPLY_PROMPTS), Ways("divide", DIVIDE_PROMPTS)
DIVIDE_EVEN_WAYS = Ways("divide_even")
SHAPES = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2))
"""Digits of the factors."""
SHAPE_WEIGHTS = (1, 3, 3, 2, 4, 2)


def _draw_digits(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1) if digits > 1 else 2, 10**digits - 1)


def _written(number: int, way: str, rng: random.Random) -> str:
    """A number in digits or words, as the way to ask allows."""
    return maybe_words(number, write_number(number, rng), way, rng)


class Multiply:
    """The product of a number of up to four digits with one of one digit, or of up to three with one of two."""

    name = "multiply"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            shape = rng.choices(SHAPES[1:] if held_out else SHAPES, SHAPE_WEIGHTS[1:] if held_out else SHAPE_WEIGHTS)[0]
            a, b = _draw_digits(rng, shape[0]), _draw_digits(rng, shape[1])
            # Both orders are one problem; the table up to nine is for everybody.
            kept = shape != (1, 1) and is_held_out(f"x {max(a, b)} {min(a, b)}")
            if kept == held_out:
                break
        if rng.random() < 0.3:
            a, b = b, a
        new = asks_new(rng, held_out=held_out)
        way = MULTIPLY_WAYS.draw(rng, new=new)
        prompt = way.format(a=_written(a, way, rng), b=_written(b, way, rng))
        facts = {"a": str(a), "b": str(b)}
        part = part_of(f"{shape[0]} by {shape[1]} digits", new=new)
        return Problem(task=self.name, prompt=prompt, answer=str(a * b), facts=facts, part=part)

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        a, b = int(problem.facts["a"]), int(problem.facts["b"])
        if effort is Effort.LOW:
            return Solution(analysis="", final=(problem.answer,))
        large, small = max(a, b), min(a, b)
        if effort is Effort.MEDIUM:
            analysis = multiply_parts(large, small).text
        else:
            analysis = multiply_columns(large, small).text
            analysis += f" check: {divide_columns(large * small, small).text} ok"
        return Solution(analysis=analysis, final=(f"{a} x {b} = {problem.answer}",))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return numbers_in(answer.final or "")[-1:] == [problem.answer]


class Divide:
    """The quotient of a number of up to four digits and one of one digit or up to twelve, with what is left over."""

    name = "divide"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            b = rng.randint(2, 12)
            a = _draw_digits(rng, rng.randint(2, 4))
            if rng.random() < 0.75:
                a -= a % b
            if a and is_held_out(f"/ {a} {b}") == held_out:
                break
        new = asks_new(rng, held_out=held_out)
        way = (DIVIDE_EVEN_WAYS if a % b == 0 and rng.random() < 0.25 else DIVIDE_WAYS).draw(rng, new=new)
        prompt = way.format(a=_written(a, way, rng), b=_written(b, way, rng))
        answer = f"{a // b} r {a % b}" if a % b else str(a // b)
        part = part_of("with rest" if a % b else "even", new=new)
        return Problem(task=self.name, prompt=prompt, answer=answer, facts={"a": str(a), "b": str(b)}, part=part)

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        a, b = int(problem.facts["a"]), int(problem.facts["b"])
        quotient, rest = divmod(a, b)
        said = f"{quotient}, remainder {rest}" if rest else str(quotient)
        if effort is Effort.LOW:
            return Solution(analysis="", final=(said,))
        analysis = divide_columns(a, b).text
        if effort is Effort.HIGH:
            analysis += f" check: {multiply_columns(quotient, b).text}"
            analysis += f", {quotient * b}+{rest}={a} ok" if rest else " ok"
        return Solution(analysis=analysis, final=(f"{a} / {b} = {said}",))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        wanted = problem.answer.split(" r ")
        return numbers_in(answer.final or "")[-len(wanted) :] == wanted
