from __future__ import annotations

import random
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import (
    TRAINED_DIGITS,
    Add,
    Compare,
    Subtract,
    add_columns,
    digit_by_digit,
    draw_number,
    draw_pair,
    numbers_in,
    subtract_columns,
)
from ossia.tasks.base import Answer, Problem
from ossia.tasks.ways import words_to_digits

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
NATURAL = st.integers(min_value=0, max_value=10**8 - 1)


def read_sum(text: str) -> int:
    """Follow the columns of a written sum, checking each, and put the result together from their digits alone."""
    steps = re.findall(r"(\d)\+(\d)\+(\d)=(\d+)", text.split(": ", 1)[1])
    digits, carry = "", 0
    for x, y, carried, total in steps:
        assert int(carried) == carry
        assert int(total) == int(x) + int(y) + carry
        digits, carry = total[-1] + digits, int(total[:-1] or 0)
    return int(str(carry) + digits)


def read_difference(text: str) -> int:
    """The same for a written difference of a larger and a smaller number."""
    steps = re.findall(r"(\d)-(\d)-(\d)(\+10)?=(\d)", text.split(": ", 1)[1])
    digits, borrow = "", 0
    for x, y, borrowed, ten, result in steps:
        assert int(borrowed) == borrow
        assert int(result) == int(x) - int(y) - borrow + (10 if ten else 0)
        digits, borrow = result + digits, int(bool(ten))
    assert borrow == 0
    return int(digits)


@given(a=NATURAL, b=NATURAL)
@example(a=99_999_999, b=1)
@example(a=0, b=0)
@example(a=95, b=5)
def test_columns_of_a_sum(a: int, b: int) -> None:
    text, result = add_columns(a, b)
    top, bottom = text.split(": ", 1)[0].split(" + ")
    assert (int(top.replace(" ", "")), int(bottom.replace(" ", ""))) == (a, b)
    assert read_sum(text) == result == a + b
    assert text.endswith(f"-> {a + b}")


@given(a=NATURAL, b=NATURAL)
@example(a=10_000_000, b=1)
@example(a=1, b=10_000_000)
@example(a=7, b=7)
def test_columns_of_a_difference(a: int, b: int) -> None:
    text, result = subtract_columns(a, b)
    if a < b:
        assert text.startswith(f"{a}<{b}, so minus: ")
        text = text.removeprefix(f"{a}<{b}, so minus: ")
        assert -read_difference(text) == result == a - b
        assert text.endswith(f"minus -> {a - b}")
    else:
        assert read_difference(text) == result == a - b
        assert text.endswith(f"-> {a - b}")


def test_columns_look_as_documented() -> None:
    assert add_columns(12, 9).text == "1 2 + 0 9: 2+9+0=11, 1+0+1=2 -> 21"
    assert subtract_columns(21, 9).text == "2 1 - 0 9: 1-9-0+10=2, 2-0-1=1 -> 12"
    assert subtract_columns(9, 21).result == -12


@pytest.mark.parametrize("task", [Add(), Subtract()], ids=["add", "subtract"])
@given(seed=SEEDS)
def test_answers_of_drawn_problems(task: Add | Subtract, seed: int) -> None:
    rng = random.Random(seed)
    problem = task.problem(rng, held_out=False)
    a, b = int(problem.facts["a"]), int(problem.facts["b"])
    expected = a + b if isinstance(task, Add) else a + -b
    assert int(problem.answer) == expected
    assert sorted(numbers_in(words_to_digits(re.sub(r"(?<=\d)\s*-\s*(?=\d)", " ", problem.prompt)))) == sorted(
        [str(a), str(b)]
    )
    for wrong in {expected + 1, expected - 1, expected * 10, -expected} - {expected}:
        assert not task.grade(problem, Answer(final=f"{a} and {b} give {wrong}"))


@given(seed=SEEDS)
def test_check_at_high_effort_is_right(seed: int) -> None:
    rng = random.Random(seed)
    problem = Subtract().problem(rng, held_out=True)
    a, b = int(problem.facts["a"]), int(problem.facts["b"])
    analysis = Subtract().solve(problem, effort=Effort.HIGH, rng=rng).analysis
    assert read_sum(analysis.split(" check: ")[1]) == max(a, b)
    problem = Add().problem(rng, held_out=True)
    analysis = Add().solve(problem, effort=Effort.HIGH, rng=rng).analysis
    assert read_difference(analysis.split(" check: ")[1]) == int(problem.facts["a"])


def test_differences_are_negative_now_and_then() -> None:
    rng = random.Random(0)
    negative = [Subtract().problem(rng, held_out=True).answer.startswith("-") for _ in range(300)]
    assert 15 < sum(negative) < 150


@given(seed=SEEDS, digits=st.integers(min_value=1, max_value=9))
def test_drawn_numbers_have_few_enough_digits(seed: int, digits: int) -> None:
    assert 0 <= draw_number(random.Random(seed), max_digits=digits) < 10**digits


@given(seed=SEEDS)
def test_held_out_pairs_are_large_enough(seed: int) -> None:
    pair = draw_pair(random.Random(seed), key="+", held_out=True)
    assert max(pair) >= 100
    assert max(draw_pair(random.Random(seed), key="+", held_out=False)) < 10**TRAINED_DIGITS


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234 + 5 = 1,239.", ["1234", "5", "1239"]),
        ("5 - 8 = -3", ["5", "8", "-3"]),
        ("that is \N{MINUS SIGN}12", ["-12"]),
        ("9.11, or 9.9?", ["9.11", "9.9"]),
        ("none", []),
    ],
)
def test_numbers_in_text(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == numbers


@given(seed=SEEDS, held_out=st.booleans())
def test_comparisons(seed: int, held_out: bool) -> None:
    problem = Compare().problem(random.Random(seed), held_out=held_out)
    a, b = problem.facts["a"], problem.facts["b"]
    pick = max if problem.facts["relation"] == "larger" else min
    if Fraction(a) == Fraction(b):
        assert problem.answer == "equal"
    else:
        assert problem.answer == pick(a, b, key=Fraction)
        other = b if problem.answer == a else a
        assert not Compare().grade(problem, Answer(final=other))
        assert not Compare().grade(problem, Answer(final="They are equal."))


def test_both_kinds_of_comparison_and_equality_are_drawn() -> None:
    rng = random.Random(4)
    problems = [Compare().problem(rng, held_out=False) for _ in range(1000)]
    assert {problem.facts["relation"] for problem in problems} == {"larger", "smaller"}
    assert {("." in problem.facts["a"]) for problem in problems} == {True, False}
    assert any(problem.answer == "equal" for problem in problems)


def test_decimals_are_compared_from_the_left() -> None:
    assert digit_by_digit("9.11", "9.9") == "9.1 1 vs 9.9 0: 9=9 1<9"
    assert digit_by_digit("12", "9") == "1 2 vs 0 9: 1>0"
    assert digit_by_digit("9.5", "9.50") == "9.5 0 vs 9.5 0: 9=9 5=5 0=0"
    facts = {"a": "9.11", "b": "9.9", "relation": "larger"}
    problem = Problem(task="compare", prompt="?", answer="9.9", facts=facts)
    assert Compare().grade(problem, Answer(final="9.9 is larger than 9.11."))
    assert not Compare().grade(problem, Answer(final="9.11 is larger than 9.9."))
