from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ossia.tasks.pools import Pool, draw_full_name, load_list, load_pool


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60, unique=True), st.integers())
def test_each_entry_is_on_one_side_and_both_sides_have_some(entries: list[str], seed: int) -> None:
    pool = Pool("test", entries)
    assert sorted(pool.train + pool.held_out) == sorted(entries)
    assert pool.train
    assert pool.held_out
    rng = random.Random(seed)
    assert pool.draw(rng, held_out=True) in pool.held_out
    assert pool.draw(rng, held_out=False) in pool.train


def test_the_order_of_entries_does_not_matter() -> None:
    names = list(load_list("first_names"))
    assert set(Pool("n", names).held_out) == set(Pool("n", names[::-1]).held_out)
    assert set(Pool("n", names).held_out) != set(Pool("m", names).held_out)


def test_samples_are_distinct_and_of_one_side() -> None:
    pool = load_pool("cities")
    drawn = pool.sample(random.Random(0), 20, held_out=True)
    assert len(set(drawn)) == 20
    assert set(drawn) <= set(pool.held_out)
    assert len(Pool("x", ["a", "b", "c"]).sample(random.Random(0), 9, held_out=True)) < 9


def test_full_names_are_of_one_side() -> None:
    first, last = draw_full_name(random.Random(1), held_out=True).split(" ")
    assert first in load_pool("first_names").held_out
    assert last in load_pool("last_names").held_out


def test_lists_hold_no_entry_twice() -> None:
    for name in ("first_names", "last_names", "cities", "items", "nouns", "topics"):
        entries = load_list(name)
        assert len(entries) == len(set(entries)) >= 80
