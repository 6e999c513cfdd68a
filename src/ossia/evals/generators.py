"""Independent generators of problems, which nobody here wrote: reasoning-gym and mathgenerator (extra `eval`).

Their wording and their distribution are not those of training, so they say how far a skill carries.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ossia.core.errors import InvalidInputError, MissingExtraError
from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import numbers_in
from ossia.tasks.base import Answer, Problem, Solution, Task

GYM: Mapping[str, Mapping[str, Any]] = {
    "spell_backward": {"min_word_len": 3, "max_word_len": 12},
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 6},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 3},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 9},
    "calendar_arithmetic": {},
    "gcd": {},
    "gsm_symbolic": {},
}
"""Data sets of reasoning-gym, with the options that keep them within nano's range where they have such."""
MATH = ("addition", "subtraction", "multiplication", "division", "square", "percentage")
"""Functions of mathgenerator."""


class GymTask:
    """One data set of reasoning-gym. Its own scorer grades, on the last number or the last word where that helps."""

    def __init__(self, dataset: str) -> None:
        self.name = f"gym_{dataset}"
        self._dataset = dataset

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        gym = need_package("reasoning_gym")
        seed = rng.randrange(2**31)
        entry = gym.create_dataset(self._dataset, size=1, seed=seed, **GYM[self._dataset])[0]
        facts = {"seed": str(seed)}
        return Problem(task=self.name, prompt=entry["question"], answer=str(entry["answer"]), facts=facts)

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        return Solution(analysis="", final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        final = (answer.final or "").strip().rstrip(".")
        gym = need_package("reasoning_gym")
        data = gym.create_dataset(self._dataset, size=1, seed=int(problem.facts["seed"]), **GYM[self._dataset])
        words = final.split()
        tries = dict.fromkeys((final, *numbers_in(final)[-1:], *words[-1:]))
        return any(data.score_answer(answer=text, entry=data[0]) >= 1.0 for text in tries if text)


class MathTask:
    """One function of mathgenerator; right is a last number of the same value."""

    def __init__(self, function: str) -> None:
        self.name = f"math_{function}"
        self._function = function

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        make: Callable[[], tuple[str, str]] = getattr(need_package("mathgenerator"), self._function)
        state = random.getstate()  # the package draws from the module's generator
        try:
            random.seed(rng.randrange(2**31))
            question, answer = make()
        finally:
            random.setstate(state)
        return Problem(task=self.name, prompt=plain_math(question), answer=plain_math(answer))

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        return Solution(analysis="", final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        said, wanted = numbers_in(answer.final or "")[-1:], numbers_in(problem.answer)[-1:]
        try:
            return bool(said) and bool(wanted) and Decimal(said[0]) == Decimal(wanted[0])
        except InvalidOperation:
            return False


def plain_math(text: str) -> str:
    """LaTeX of simple arithmetic as plain text: ``$11\\\\cdot10$`` is ``11 * 10``."""
    for old, new in ((r"\cdot", " * "), (r"\times", " * "), (r"\div", " / "), (r"\%", "%"), ("$", "")):
        text = text.replace(old, new)
    return re.sub(r"\s+", " ", text).strip()


def need_package(name: str) -> Any:
    """Import one of the two packages.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec(name) is None:
        raise MissingExtraError(name.replace("_", "-"), extra="eval")
    return import_module(name)


def load_generators() -> dict[str, Task]:
    """All tasks of this file, by name.

    Raises:
        MissingExtraError: a package is not installed.
        InvalidInputError: a package of another version lacks what is asked of it.
    """
    need_package("reasoning_gym")
    math = need_package("mathgenerator")
    if missing := [name for name in MATH if not hasattr(math, name)]:
        raise InvalidInputError(
            f"this mathgenerator lacks {', '.join(missing)}; install that of the extra: pip install 'ossia[eval]'",
            param="suite",
        )
    tasks: list[Task] = [*map(GymTask, GYM), *map(MathTask, MATH)]
    return {task.name: task for task in tasks}
