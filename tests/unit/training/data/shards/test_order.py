from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.training.data.shards.order import MixOrder, Permutation
from ossia.training.data.shards.reader import ShardedTokens


@given(size=st.integers(1, 3000), key=st.text(max_size=8))
@settings(deadline=None)
def test_a_permutation_has_each_thing_once(size: int, key: str) -> None:
    assert sorted(Permutation(size, key=key)(np.arange(size)).tolist()) == list(range(size))


@given(size=st.integers(1, 10**12), data=st.data())
@settings(deadline=None)
def test_any_place_of_a_huge_order(size: int, data: st.DataObject) -> None:
    order = Permutation(size, key="k")
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    things = order(np.array(places))
    assert ((things >= 0) & (things < size)).all()
    assert len(set(things.tolist())) == len(places)
    assert [order[place] for place in places] == things.tolist()


def test_the_order_never_changes_between_versions() -> None:
    """A run that resumes under a later release must see the same documents."""
    assert Permutation(10, key="mix seed 0 epoch 0")(np.arange(10)).tolist() == FROZEN


FROZEN = [0, 2, 5, 3, 8, 1, 6, 4, 7, 9]


def test_orders_look_random() -> None:
    """Over 2,000 keys each thing stands first about equally often: chi-squared with 9 degrees, 99.99 % below 33.7."""
    counts = Counter(Permutation(10, key=str(key))[0] for key in range(2000))
    assert sum((counts[thing] - 200) ** 2 / 200 for thing in range(10)) < 33.7


def test_neighbours_do_not_stay_neighbours() -> None:
    things = Permutation(10_000, key="k")(np.arange(10_000))
    assert np.mean(np.abs(np.diff(things)) == 1) < 0.01


def test_no_things() -> None:
    with pytest.raises(InvalidInputError, match="no order of 0"):
        Permutation(0, key="k")


def test_a_mix_repeats_sources_as_told(write_shards: Any) -> None:
    texts = {"a": [f"a{i}" for i in range(10)], "b": [f"b{i}" for i in range(4)], "c": ["c0", "c1"]}
    shards = ShardedTokens(write_shards(texts, repeats={"a": 0.5, "b": 2.25, "c": 0.0}))
    picks: list[set[int]] = []
    for epoch in range(2):
        order = MixOrder(shards, seed=1, epoch=epoch)
        counts = Counter(order)
        picks.append({number for number in counts if number < 10})
        assert len(picks[-1]) == 5
        assert sorted(counts[number] for number in range(10, 14)) == [2, 2, 2, 3]
        assert not {14, 15} & set(counts)
        assert [order[place] for place in range(len(order))] == list(order)
    assert picks[0] != picks[1]


def test_seed_and_epoch_change_the_order(write_shards: Any) -> None:
    shards = ShardedTokens(write_shards({"a": [str(i) for i in range(50)]}))
    orders = [list(MixOrder(shards, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert list(MixOrder(shards, seed=0, epoch=0)) == orders[0]


def test_a_mix_of_nothing(write_shards: Any) -> None:
    shards = ShardedTokens(write_shards({"a": ["x"]}, repeats={"a": 0.0}))
    with pytest.raises(InvalidInputError, match="repeats no source"):
        MixOrder(shards, seed=0, epoch=0)
