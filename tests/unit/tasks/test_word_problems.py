from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer
from ossia.tasks.pools import load_pool
from ossia.tasks.word_problems import WordProblems, compute, plural
from ossia.tasks.word_stories import Story, load_stories, read_families, read_story

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


def test_every_story_can_be_told() -> None:
    stories = load_stories()
    assert len(stories.train) + len(stories.held_out) >= 5 * 78
    assert len(stories.held_out) >= 30
    for story in stories.train + stories.held_out:
        known = {*story.told, *(f"r{n}" for n in range(1, len(story.steps)))}
        assert 1 <= len(story.steps) <= 3
        for left, _, right in story.steps:
            assert all(name.isdigit() or name in known for name in (left, right))
        for text in story.texts:
            for name in story.told:
                assert "{" + name + "}" in text + "".join(story.questions)
            for name in {*story.ranges, *story.made} - {*story.told}:
                assert "{" + name + "}" not in text
        assert "{r}" in story.said
        assert not set(story.words) & set("abcdeghijrstABC")


def test_families_are_held_out_whole() -> None:
    stories = load_stories()
    families = [{story.family for story in side} for side in (stories.train, stories.held_out)]
    assert not families[0] & families[1]
    assert all(len(side) > 15 for side in families)


def test_both_sides_have_all_operations_and_numbers_of_steps() -> None:
    stories = load_stories()
    for side in (stories.train, stories.held_out):
        assert {story.steps[0].operator for story in side} == set("+-x/")
        assert {len(story.steps) for story in side} == {1, 2, 3}
    lengths = [len(story.steps) for story in stories.train]
    assert lengths.count(3) < len(lengths) / 5


FAMILY = """
= product a:2-9 b:2-20
~ m=bus|tram
l {a} hours ;; {b} people each hour ;; {c} people in all
ab A {m} takes {b} people an hour for {a} hours. ;; For {a} hours {b} come.
ac In {a} hours {c} come.
bc {b} come an hour, {c} in all.
?a How many hours?
?b How many in an hour?
?c How many in all?
!a It is {r} hours.
!b It is {r}.
!c It is {r}.
+ {d} more come.
- {d} leave.
?e How many are there?
!e There are {r}.
"""


def test_a_family_is_asked_for_each_of_its_quantities() -> None:
    stories = read_families(FAMILY)

    def steps(story: Story) -> str:
        return "; ".join("".join(step) for step in story.steps)

    assert [steps(story) for story in stories] == ["axb", "c/a", "c/b", "axb; r1+d", "axb; r1-d", "axb; r1+d; r2-e"]
    assert stories[2].asked == "hours"
    assert stories[3].texts[1] == "For {a} hours {b} come. {d} more come."
    assert "{e} leave" in stories[5].texts[0]


@given(seed=SEEDS)
def test_more_effort_begins_with_the_same_equations(seed: int) -> None:
    rng = random.Random(seed)
    problem = WordProblems().problem(rng, held_out=False)
    medium, high = (
        WordProblems().solve(problem, effort=effort, rng=rng).analysis.splitlines()
        for effort in (Effort.MEDIUM, Effort.HIGH)
    )
    assert high[: len(medium)] == medium
    assert [line.split(":")[0] for line in high[len(medium) :]] == ["asked", "check"]


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
