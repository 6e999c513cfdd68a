from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.training.rl.helpers import make_trajectory

from ossia.training.rl.advantage import compute_advantages, data_of, has_signal
from ossia.training.rl.trajectory import Group, Transition

Rewards = st.lists(st.floats(0, 1), min_size=2, max_size=16)


@given(Rewards)
def test_advantages_of_a_group_sum_to_nothing_and_keep_the_order(rewards: list[float]) -> None:
    advantages = compute_advantages(rewards, scale="mean")
    assert sum(advantages) == pytest.approx(0, abs=1e-9)
    pairs = sorted(zip(rewards, advantages, strict=True))
    assert [advantage for _, advantage in pairs] == sorted(advantages)


@given(Rewards.filter(lambda rewards: statistics.pstdev(rewards) > 1e-2))
def test_standard_advantages_have_the_deviation_of_one(rewards: list[float]) -> None:
    assert statistics.pstdev(compute_advantages(rewards, scale="std")) == pytest.approx(1, abs=1e-3)


def test_without_the_deviation_a_small_difference_stays_small() -> None:
    assert compute_advantages([1.0, 0.98], scale="mean") == pytest.approx([0.01, -0.01])
    assert compute_advantages([1.0, 0.98], scale="std") == pytest.approx([1, -1], abs=1e-3)


@pytest.mark.parametrize("rewards", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_groups_without_variance_are_left_out(rewards: tuple[float, ...]) -> None:
    step = Transition(prompt_ids=(1,), sampled_ids=(2,), logprobs=(-1.0,))
    even = Group(trajectories=tuple(make_trajectory([step], reward=reward) for reward in rewards))
    mixed = Group(trajectories=tuple(make_trajectory([step], reward=reward) for reward in (0.0, 1.0)))
    assert not has_signal(even.rewards)
    assert [datum.advantage for datum in data_of([even, mixed], scale="mean")] == [-0.5, 0.5]
