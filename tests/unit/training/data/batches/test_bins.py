from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ossia.training.data.batches.bins import pack_bins


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=80))))
def test_every_piece_is_in_one_bin_and_none_is_too_full(drawn: tuple[int, list[int]]) -> None:
    capacity, sizes = drawn
    bins = pack_bins(sizes, capacity=capacity)
    assert sorted(piece for pieces in bins for piece in pieces) == list(range(len(sizes)))
    assert all(0 < sum(sizes[piece] for piece in pieces) <= capacity for pieces in bins)
    # Two bins that would fit into one are never left; so more than half of all room is used, and the bound holds.
    least = math.ceil(sum(sizes) / capacity)
    assert len(bins) <= max(1, 2 * least)


def test_the_fullest_bin_that_takes_a_piece_gets_it() -> None:
    assert pack_bins([6, 5, 4, 3, 2], capacity=10) == [[0, 2], [1, 3, 4]]
    assert pack_bins([], capacity=10) == []
