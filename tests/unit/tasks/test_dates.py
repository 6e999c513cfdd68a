from __future__ import annotations

import datetime
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tasks.base import Answer
from ossia.tasks.dates import (
    WEEKDAYS,
    Dates,
    add_steps,
    between_steps,
    read_dates,
    short_weekday_steps,
    weekday_steps,
    write_date,
)

DATES = st.dates(datetime.date(1900, 1, 1), datetime.date(2099, 12, 31))


@given(DATES)
def test_weekdays_by_codes(date: datetime.date) -> None:
    text = weekday_steps(date)
    assert text.endswith(f"-> {WEEKDAYS[date.weekday()]}")
    total = date.year % 100
    for before, more, after in re.findall(r"(\d+)\+(\d+)=(\d+)", text):
        assert int(before) == total
        total += int(more)
        assert int(after) == total


@given(DATES)
def test_short_weekdays_name_the_same_total(date: datetime.date) -> None:
    text = short_weekday_steps(date)
    ((parts, total, weekday),) = re.findall(r"^([\d, ]+): (\d+) -> (\w+)$", text)
    assert WEEKDAYS[int(total) % 7 - 1] == weekday == WEEKDAYS[date.weekday()]
    assert sum(map(int, parts.split(", "))) - int(total) in (0, 1)


@given(DATES, st.integers(1, 300))
def test_days_between_and_days_added(date: datetime.date, days: int) -> None:
    other = date + datetime.timedelta(days=days)
    assert between_steps(date, other).endswith(f"={days}")
    assert add_steps(date, days).endswith(f"={other.day}")


@given(DATES, st.integers(0, 3))
def test_dates_are_read_as_written(date: datetime.date, style: int) -> None:
    assert read_dates(f"It is {write_date(date, style)}, I think.") == [date]


def test_what_is_no_date_is_not_read() -> None:
    assert read_dates("2023-02-30, Smarch 3, 2024, 12 of 13") == []


@pytest.mark.parametrize("held_out", [False, True])
@given(seed=st.integers(0, 2**64 - 1))
def test_a_day_off_is_wrong(held_out: bool, seed: int) -> None:
    problem = Dates().problem(random.Random(seed), held_out=held_out)
    match problem.facts["kind"]:
        case "between":
            wrong = str(int(problem.answer) + 1)
        case "add":
            date = datetime.date.fromisoformat(problem.facts["date"])
            wrong = (date + datetime.timedelta(days=int(problem.facts["days"]) + 1)).isoformat()
        case _:
            wrong = WEEKDAYS[(WEEKDAYS.index(problem.answer) + 1) % 7]
    assert Dates().grade(problem, Answer(final=problem.answer))
    assert not Dates().grade(problem, Answer(final=wrong))
