"""What must hold for every task: its own solutions pass, other answers fail, and the two splits never meet."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer
from ossia.tasks.registry import TASKS
from ossia.tasks.ways import words_to_digits

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
EVERY_TASK = pytest.mark.parametrize("name", list(TASKS))
OFF_TOPIC = ("", " ", "?", "\n", "zzz", "I do not follow.", "0123456789 0123456789")


def test_tasks_are_found_by_their_own_names() -> None:
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert len(TASKS) == 21


@EVERY_TASK
@pytest.mark.parametrize("effort", list(Effort))
@settings(max_examples=30)
@given(seed=SEEDS, held_out=st.booleans())
def test_own_solution_passes(name: str, effort: Effort, seed: int, held_out: bool) -> None:
    rng = random.Random(seed)
    problem = TASKS[name].problem(rng, held_out=held_out)
    solution = TASKS[name].solve(problem, effort=effort, rng=rng)
    assert problem.task == name
    assert problem.prompt.strip()
    assert TASKS[name].grade(problem, solution.answer) is True
    thought = solution.analysis + "".join(call.analysis for call in solution.calls)
    assert (thought == "") == (effort is Effort.LOW)


@EVERY_TASK
@settings(max_examples=30)
@given(seed=SEEDS)
def test_off_topic_answers_fail(name: str, seed: int) -> None:
    problem = TASKS[name].problem(random.Random(seed), held_out=True)
    for text in (*OFF_TOPIC, None):
        assert TASKS[name].grade(problem, Answer(final=text)) is False


@pytest.mark.parametrize("name", ["count_letters", "spell", "reverse", "add", "subtract", "compare"])
@settings(max_examples=30)
@given(seed=SEEDS)
def test_a_neighbouring_answer_fails(name: str, seed: int) -> None:
    """The answer with one digit or letter changed, alone and inside the sentence of the solution."""
    rng = random.Random(seed)
    problem = TASKS[name].problem(rng, held_out=True)
    if problem.answer == "equal":
        assert TASKS[name].grade(problem, Answer(final=f"{problem.facts['a']} is larger.")) is False
        return
    places = [i for i, char in enumerate(problem.answer) if char.isalnum()]
    place = rng.choice(places)
    old = problem.answer[place]
    alphabet = "123456789" if old.isdigit() else "abcdefghijklmnopqrstuvwxyz"
    new = rng.choice([char for char in alphabet if char != old])
    wrong = problem.answer[:place] + new + problem.answer[place + 1 :]
    assert TASKS[name].grade(problem, Answer(final=wrong)) is False
    assert TASKS[name].grade(problem, Answer(final=f"It is {wrong}.")) is False


@EVERY_TASK
@settings(max_examples=30)
@given(seed=SEEDS)
def test_same_seed_same_problem(name: str, seed: int) -> None:
    drawn = [TASKS[name].problem(random.Random(seed), held_out=False) for _ in range(2)]
    assert drawn[0] == drawn[1]


@EVERY_TASK
def test_training_never_asks_a_held_out_question(name: str) -> None:
    task = TASKS[name]
    training = {task.problem(random.Random(f"train {i}"), held_out=False).opening for i in range(1500)}
    held_out = {task.problem(random.Random(f"held out {i}"), held_out=True).opening for i in range(300)}
    assert not training & held_out


@pytest.mark.parametrize("name", ["count_letters", "spell", "reverse"])
def test_words_of_training_are_never_held_out(name: str) -> None:
    def words(held_out: bool, count: int) -> set[str]:
        rng = random.Random(7)
        return {TASKS[name].problem(rng, held_out=held_out).facts["word"].lower() for _ in range(count)}

    training, held_out = words(False, 3000), words(True, 3000)
    assert len(held_out) > 1000
    assert not training & held_out


@pytest.mark.parametrize("name", ["add", "subtract", "compare"])
def test_pairs_of_training_are_never_held_out(name: str) -> None:
    def pairs(held_out: bool, count: int) -> set[tuple[str, str]]:
        rng = random.Random(8)
        facts = [TASKS[name].problem(rng, held_out=held_out).facts for _ in range(count)]
        return {(fact["a"], fact["b"]) for fact in facts}

    training, held_out = pairs(False, 4000), pairs(True, 1200)
    assert len(held_out) > 1000
    assert not training & held_out


@EVERY_TASK
@settings(max_examples=30)
@given(seed=SEEDS)
def test_prompts_name_what_they_ask_about(name: str, seed: int) -> None:
    """No place of a template is left open, and the facts that the solver uses are in the text."""
    problem = TASKS[name].problem(random.Random(seed), held_out=False)
    assert not re.search(r"\{\w+\}", problem.prompt)
    opening = problem.opening.replace(",", "").lower()
    plain = f"{opening} {words_to_digits(opening)}"
    for key in ("word", "letter", "a", "b"):
        if name in ("count_letters", "spell", "reverse", "add", "subtract", "compare", "multiply", "divide"):
            assert problem.facts.get(key, "").lower() in plain
