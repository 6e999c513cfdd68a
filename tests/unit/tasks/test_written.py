from __future__ import annotations

import math
import random
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer
from ossia.tasks.products import Divide, Multiply
from ossia.tasks.written import divide_columns, equation, multiply_columns, multiply_parts, plain

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


@given(a=st.integers(0, 99_999), b=st.integers(0, 9))
def test_each_column_of_a_product_is_right(a: int, b: int) -> None:
    text, result = multiply_columns(a, b)
    digits, carry = "", 0
    for x, y, carried, total in re.findall(r"(\d)x(\d)\+(\d)=(\d+)", text):
        assert int(carried) == carry
        assert int(total) == int(x) * int(y) + carry
        digits, carry = total[-1] + digits, int(total[:-1] or 0)
    assert int(str(carry) + digits) == result == a * b


@given(a=st.integers(1, 999), b=st.integers(10, 99))
def test_partial_products_add_up(a: int, b: int) -> None:
    text, result = multiply_columns(a, b)
    assert result == a * b
    assert text.endswith(f"-> {a * b}")
    for line in re.findall(r"(\d+) x (\d): [^;>]*-> (\d+)", text):
        assert int(line[0]) * int(line[1]) == int(line[2])


@given(a=st.integers(1, 9999), b=st.integers(2, 99))
def test_products_part_by_part_are_equations(a: int, b: int) -> None:
    text, result = multiply_parts(a, b)
    assert result == a * b
    for side in text.split(" = "):
        assert sum(math.prod(map(int, re.findall(r"\d+", term))) for term in side.split("+")) == result


@given(a=st.integers(0, 99_999), b=st.integers(1, 99))
def test_each_step_of_a_division_is_right(a: int, b: int) -> None:
    text, result = divide_columns(a, b)
    assert result == a // b
    for dividend, divisor, quotient, rest in re.findall(r"(\d+)/(\d+)=(\d+) r(\d+)", text):
        assert divmod(int(dividend), int(divisor)) == (int(quotient), int(rest))
    assert text.endswith(f"-> {a // b}" + (f" r{a % b}" if a % b else ""))


@given(st.integers(0, 2000), st.sampled_from("+-x/"), st.integers(1, 2000))
def test_equations_end_in_themselves(a: int, operator: str, b: int) -> None:
    if operator == "-" and a < b:
        a, b = b, a
    if operator == "/":
        b = b % 99 + 1
        a *= b
    text, result = equation(a, operator, b)
    assert text.endswith(f"{a} {operator} {b} = {result}")
    assert result == {"+": a + b, "-": a - b, "x": a * b, "/": a // max(b, 1)}[operator]


def test_numbers_are_written_plainly() -> None:
    assert [plain(Decimal(text)) for text in ("30.480", "1E+3", "0.0", "-0", "5", "100")] == [
        "30.48", "1000", "0", "0", "5", "100",
    ]  # fmt: skip


@pytest.mark.parametrize("task", [Multiply(), Divide()], ids=["multiply", "divide"])
@given(seed=SEEDS, held_out=st.booleans())
def test_products_and_quotients_are_those_of_the_prompt(task: Multiply | Divide, seed: int, held_out: bool) -> None:
    rng = random.Random(seed)
    problem = task.problem(rng, held_out=held_out)
    a, b = int(problem.facts["a"]), int(problem.facts["b"])
    if isinstance(task, Multiply):
        assert int(problem.answer) == a * b
        wrong = str(a * b + 1)
    else:
        assert (
            sum(part * factor for part, factor in zip(map(int, problem.answer.split(" r ")), (b, 1), strict=False)) == a
        )
        wrong = f"{a // b + 1}, remainder {a % b}" if a % b else str(a // b + 1)
    for effort in Effort:
        assert task.grade(problem, task.solve(problem, effort=effort, rng=rng).answer)
    assert not task.grade(problem, Answer(final=wrong))
