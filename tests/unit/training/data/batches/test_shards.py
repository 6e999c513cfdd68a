from __future__ import annotations

from typing import Any

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.training.data.batches.packing import Batch
from ossia.training.data.batches.shards import JoinedBatches, ShardBatches
from ossia.training.data.batches.stream import stream
from ossia.training.data.shards.reader import ShardedTokens
from ossia.training.data.shards.rows import TokenRows


class Counting:
    """Two rows that hold the number of their batch."""

    def __init__(self, *, weights: bool) -> None:
        self._has_weights = weights

    def batch(self, number: int) -> Batch:
        rows = torch.full((2, 8), number)
        return Batch(rows, rows, rows, rows.int(), torch.full((2, 8), 0.5) if self._has_weights else None)


@pytest.fixture
def source(write_shards: Any) -> ShardBatches:
    shards = ShardedTokens(write_shards({"a": [f"text number {number}" for number in range(12)]}))
    return ShardBatches(TokenRows(shards, length=8, rows=3, seed=1))


def test_the_trainer_can_read_them(source: ShardBatches) -> None:
    """Through the loader of a run, with worker processes and entered anywhere."""
    expected = [source.batch(number) for number in range(5)]
    assert expected[0].ids.dtype == torch.int64
    assert expected[0].documents.dtype == torch.int32
    for num_workers in (0, 2):
        loader = stream(source, first=2, num_workers=num_workers)
        for number in (2, 3, 4):
            for got, wanted in zip(next(loader)[:4], expected[number][:4], strict=True):
                assert torch.equal(got, wanted)


@pytest.mark.parametrize("weights", [False, True])
def test_rows_of_several_sources(source: ShardBatches, weights: bool) -> None:
    joined = JoinedBatches([source, Counting(weights=weights)]).batch(4)
    assert joined.ids.shape == (5, 8)
    assert torch.equal(joined.ids[:3], source.batch(4).ids)
    assert (joined.targets[3:] == 4).all()
    if weights:
        assert joined.weights is not None
        assert joined.weights.tolist() == [[1.0] * 8] * 3 + [[0.5] * 8] * 2
    else:
        assert joined.weights is None


def test_nothing_to_join() -> None:
    with pytest.raises(InvalidInputError, match="no sources"):
        JoinedBatches([])
