from __future__ import annotations

import dataclasses
import random

import pytest

from ossia.tasks.base import HELD_OUT_SHARE, Problem, Solution, is_held_out


def test_about_one_key_in_ten_is_held_out() -> None:
    # 20,000 fair draws of one in ten: standard deviation 42, so four of them on either side.
    share = sum(is_held_out(f"key {number}") for number in range(20_000))
    assert abs(share - 20_000 / HELD_OUT_SHARE) < 170


def test_the_split_is_that_of_the_key_alone() -> None:
    keys = [f"{number}" for number in range(500)]
    first = [is_held_out(key) for key in keys]
    random.Random(1).shuffle(keys)
    again = {key: is_held_out(key) for key in keys}
    assert [again[f"{number}"] for number in range(500)] == first


def test_known_keys_stay_on_their_side() -> None:
    """A change here would put problems that published models were trained on into the evaluation."""
    assert [number for number in range(60) if is_held_out(f"pin {number}")] == [2, 23, 54]


def test_final_text_joins_the_pieces() -> None:
    assert Solution(analysis="", final=("a", "b", " c")).final_text == "ab c"


def test_problems_are_frozen() -> None:
    problem = Problem(task="t", prompt="p", answer="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.answer = "b"  # pyright: ignore[reportAttributeAccessIssue]
