from __future__ import annotations

import random

import pytest

from ossia.core.errors import MissingExtraError
from ossia.evals import generators
from ossia.evals.generators import GYM, MATH, GymTask, MathTask, load_generators, plain_math
from ossia.evals.sweeps import DIGITS, LETTERS, SWEEPS
from ossia.harmony.message import Effort
from ossia.tasks.base import Answer

EFFORT = Effort.HIGH


@pytest.mark.parametrize("name", list(GYM))
def test_data_sets_grade_their_own_answers(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    task = GymTask(name)
    for seed in range(3):
        problem = task.problem(random.Random(seed), held_out=True)
        assert problem == task.problem(random.Random(seed), held_out=True)
        assert task.grade(problem, Answer(final=problem.answer))
        assert task.grade(problem, Answer(final=f"The answer is {problem.answer}"))
        assert not task.grade(problem, Answer(final="I do not know."))


@pytest.mark.parametrize("name", MATH)
def test_functions_of_mathgenerator_leave_the_global_generator_alone(name: str) -> None:
    pytest.importorskip("mathgenerator")
    task = MathTask(name)
    state = random.getstate()
    problem = task.problem(random.Random(1), held_out=True)
    assert random.getstate() == state
    assert "$" not in problem.prompt
    assert "\\" not in problem.prompt
    assert task.grade(problem, Answer(final=f"It is {problem.answer}."))
    assert not task.grade(problem, Answer(final="It is 0.123."))


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="eval"):
        load_generators()


def test_latex_becomes_plain() -> None:
    assert plain_math(r"$11\cdot10$") == "11 * 10"


@pytest.mark.parametrize("name", list(SWEEPS))
def test_sweeps_cover_all_lengths(name: str) -> None:
    task, rng = SWEEPS[name], random.Random(0)
    problems = [task.problem(rng, held_out=True) for _ in range(300)]
    lengths = {int(problem.part.split("; ")[-1].split(" ")[0]) for problem in problems}
    assert lengths == set(DIGITS if "digits" in problems[0].part else LETTERS)
    for problem in problems[:20]:
        assert task.grade(problem, task.solve(problem, effort=EFFORT, rng=rng).answer)
        assert not task.grade(problem, Answer(final="nothing"))
