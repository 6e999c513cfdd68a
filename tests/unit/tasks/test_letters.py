from __future__ import annotations

import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem
from ossia.tasks.letters import CountLetters, ReverseWord, SpellWord, numbered_letters

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=16)


def test_letters_are_numbered_and_counted() -> None:
    assert numbered_letters("berry") == "1b 2e 3r 4r 5y"
    assert numbered_letters("berry", counted="r") == "1b 2e 3r=1 4r=2 5y"


@given(word=WORDS, letter=st.sampled_from(string.ascii_lowercase))
def test_numbered_letters_can_be_read_back(word: str, letter: str) -> None:
    parts = [re.fullmatch(r"(\d+)([a-z])(?:=(\d+))?", part) for part in numbered_letters(word, counted=letter).split()]
    found = [part.groups() for part in parts if part is not None]
    assert [int(place) for place, _, _ in found] == list(range(1, len(word) + 1))
    assert "".join(char for _, char, _ in found) == word
    hits = [int(hit) for _, _, hit in found if hit is not None]
    assert hits == list(range(1, sum(char == letter for char in word) + 1))


@pytest.mark.parametrize("held_out", [False, True])
@given(seed=SEEDS)
def test_count_is_that_of_the_word_in_the_prompt(held_out: bool, seed: int) -> None:
    problem = CountLetters().problem(random.Random(seed), held_out=held_out)
    word, letter = problem.facts["word"], problem.facts["letter"]
    assert int(problem.answer) == len([char for char in word if char == letter])


@pytest.mark.parametrize("letter", ["r", "t", "z"])
@pytest.mark.parametrize("effort", list(Effort))
def test_strawberry(letter: str, effort: Effort) -> None:
    count = {"r": "3", "t": "1", "z": "0"}[letter]
    facts = {"word": "strawberry", "letter": letter}
    problem = Problem(task="count_letters", prompt="?", answer=count, facts=facts)
    solution = CountLetters().solve(problem, effort=effort, rng=random.Random(0))
    assert CountLetters().grade(problem, solution.answer)
    wrong = solution.final_text.replace(count, "2")
    assert not CountLetters().grade(problem, Answer(final=wrong))
    if effort is Effort.MEDIUM and letter == "r":
        assert solution.analysis == "r in: 1s 2t 3r=1 4a 5w 6b 7e 8r=2 9r=3 10y -> 3"
    if effort is Effort.HIGH:
        places = {"r": "3 8 9", "t": "2", "z": "none"}[letter]
        assert solution.analysis.endswith(f"check: {places} -> {count}")


def test_an_answer_with_two_counts_fails() -> None:
    problem = Problem(task="count_letters", prompt="?", answer="3", facts={})
    assert not CountLetters().grade(problem, Answer(final="2, no, 3"))
    assert not CountLetters().grade(problem, Answer(final="33"))


def test_spelling_keeps_the_case_and_the_order() -> None:
    problem = Problem(task="spell", prompt="?", answer="B-e-r-r-y", facts={"word": "Berry"})
    assert SpellWord().grade(problem, Answer(final=" B-e-r-r-y. "))
    for wrong in ("b-e-r-r-y", "B-e-r-y", "B-e-r-r-y-y", "Berry", "y-r-r-e-B"):
        assert not SpellWord().grade(problem, Answer(final=wrong))


@given(seed=SEEDS)
def test_reversed_letters_are_single_pieces(seed: int) -> None:
    rng = random.Random(seed)
    problem = ReverseWord().problem(rng, held_out=False)
    word = problem.facts["word"]
    solution = ReverseWord().solve(problem, effort=Effort.HIGH, rng=rng)
    assert list(solution.final) == [word[i] for i in range(len(word) - 1, -1, -1)]
    back = solution.analysis.split(" back: ")[1].split(" check: ")[0]
    assert re.sub(r"[\d ]", "", back) == solution.final_text
    if word != word[::-1]:
        assert not ReverseWord().grade(problem, Answer(final=word))
