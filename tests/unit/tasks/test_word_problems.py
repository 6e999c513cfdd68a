from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tasks.base import Answer
from ossia.tasks.pools import load_pool
from ossia.tasks.word_problems import WordProblems, compute, load_stories, plural, read_story

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


def test_every_line_of_the_file_is_a_story_that_can_be_told() -> None:
    stories = load_stories()
    assert len(stories.train) > 60
    assert len(stories.held_out) > 5
    for story in stories.train + stories.held_out:
        known = {*story.ranges, *story.made, *(f"r{n}" for n in range(1, len(story.steps) + 1))}
        assert 1 <= len(story.steps) <= 3
        for left, _, right in story.steps:
            assert all(name.isdigit() or name in known for name in (left, right))
        for name in {*story.ranges, *story.made} - {"k"}:
            assert "{" + name + "}" in story.text + "".join(story.questions)
        assert "{r}" in story.said


def test_quantities_may_be_made_of_others() -> None:
    story = read_story("a:2-9 k:1-5 c=axk+a | {A} has {a} and {c}. | What? | c/a; r1-1 | It is {r}.")
    assert story.made == {"c": ("a", "x", "k", "+", "a")}
    assert [tuple(step) for step in story.steps] == [("c", "/", "a"), ("r1", "-", "1")]


@pytest.mark.parametrize(
    ("left", "operator", "right", "result"),
    [(7, "/", 2, None), (8, "/", 2, 4), (2, "-", 3, None), (5, "/", 0, None), (6, "x", 7, 42), (1, "+", 2, 3)],
)
def test_only_natural_results_count(left: int, operator: str, right: int, result: int | None) -> None:
    assert compute(left, operator, right) == result


@given(seed=SEEDS, held_out=st.booleans())
def test_the_last_equation_gives_the_answer(seed: int, held_out: bool) -> None:
    problem = WordProblems().problem(random.Random(seed), held_out=held_out)
    a, operator, b = problem.facts["steps"].split(";")[-1].split()
    assert compute(int(a), operator, int(b)) == int(problem.answer)
    for number in problem.facts["known"].split(", "):
        assert re.search(rf"\b{number}\b", problem.prompt)
    assert not WordProblems().grade(problem, Answer(final=f"It is {int(problem.answer) + 1}."))


def test_held_out_problems_have_names_of_their_own() -> None:
    rng = random.Random(0)
    known = set(load_pool("first_names").held_out)
    for _ in range(200):
        assert not known & set(re.findall(r"\w+", WordProblems().problem(rng, held_out=False).prompt))


def test_plurals() -> None:
    assert [plural(word) for word in ("leaf", "box", "peach", "toy", "berry", "tomato", "cup")] == [
        "leaves", "boxes", "peaches", "toys", "berries", "tomatoes", "cups",
    ]  # fmt: skip
