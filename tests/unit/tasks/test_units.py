from __future__ import annotations

import random
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from ossia.harmony.message import Effort
from ossia.tasks.base import Answer
from ossia.tasks.units import RELATIONS, ConvertUnits, scaled

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


@given(seed=SEEDS)
def test_answers_follow_from_the_factor(seed: int) -> None:
    rng = random.Random(seed)
    problem = ConvertUnits().problem(rng, held_out=False)
    value, factor = Decimal(problem.facts["value"]), Decimal(problem.facts["factor"])
    expected = value * factor if problem.facts["down"] else value / factor
    assert Decimal(problem.answer) == expected
    assert not ConvertUnits().grade(problem, Answer(final=str(expected * 2)))
    assert not ConvertUnits().grade(problem, Answer(final=str(expected + 1) if expected < 50 else str(expected * 10)))
    assert problem.facts["line"] in ConvertUnits().solve(problem, effort=Effort.MEDIUM, rng=rng).analysis


def test_rounded_factors_allow_finer_answers_and_no_others() -> None:
    rng = random.Random(0)
    while True:
        problem = ConvertUnits().problem(rng, held_out=False)
        if problem.facts["line"].startswith("1 mile"):
            break
    miles = Decimal(problem.facts["value"])
    assert ConvertUnits().grade(problem, Answer(final=f"{miles * Decimal('1.609344')} km"))
    assert not ConvertUnits().grade(problem, Answer(final=f"{miles * Decimal('1.7')} km"))


def test_work_is_done_with_whole_numbers() -> None:
    assert scaled("5.2", "x", "1000") == "5.2 x 1000 = 5200"
    assert scaled("12", "x", "2.54").endswith("so 12 x 254 = 3048, so 12 x 2.54 = 30.48")
    assert scaled("84", "/", "7").endswith("84 / 7 = 12")


def test_factors_are_numbers_above_none() -> None:
    assert all(Decimal(relation.factor) > 0 for relation in RELATIONS)
