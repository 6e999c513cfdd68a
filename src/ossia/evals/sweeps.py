"""Tasks by length, also past what was trained: where column work and numbered spelling end."""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Mapping
from types import MappingProxyType

from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import ADD_PROMPTS, SUBTRACT_PROMPTS, Add, Subtract
from ossia.tasks.base import Answer, Problem, Solution, Task, is_held_out
from ossia.tasks.letters import CountLetters, ReverseWord

DIGITS = tuple(range(1, 11))
LETTERS = tuple(range(3, 21))


class NumbersByLength:
    """Sums or differences of two numbers of the same length; every length is drawn as often."""

    def __init__(self, inner: Add | Subtract) -> None:
        self._inner = inner
        self.name = f"{inner.name}_by_length"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        is_sum = self._inner.name == "add"
        while True:
            digits = rng.choice(DIGITS)
            a, b = (rng.randint(10 ** (digits - 1) - (digits == 1), 10**digits - 1) for _ in range(2))
            # Pairs below a hundred are too few to be held out; see `ossia.tasks.arithmetic`.
            if digits < 3 or is_held_out(f"{'+' if is_sum else '-'} {a} {b}") == held_out:
                break
        prompt = rng.choice(ADD_PROMPTS if is_sum else SUBTRACT_PROMPTS).format(a=a, b=b)
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=str(a + b if is_sum else a - b),
            facts={"a": str(a), "b": str(b)},
            part=f"{digits} digits",
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        return self._inner.solve(problem, effort=effort, rng=rng)

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return self._inner.grade(problem, answer)


class LettersByLength:
    """Words of random letters by length, so that long ones are as many as short ones."""

    def __init__(self, inner: CountLetters | ReverseWord) -> None:
        self._inner = inner
        self.name = f"{inner.name}_by_length"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        while True:
            word = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.choice(LETTERS)))
            if is_held_out(word) == held_out:
                return dataclasses.replace(self._inner.pose(word, rng), part=f"{len(word)} letters")

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        return self._inner.solve(problem, effort=effort, rng=rng)

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return self._inner.grade(problem, answer)


SWEEPS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            NumbersByLength(Add()),
            NumbersByLength(Subtract()),
            LettersByLength(CountLetters()),
            LettersByLength(ReverseWord()),
        )
    }
)
"""What `ossia eval --suite lengths` asks."""
