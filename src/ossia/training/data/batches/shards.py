"""Batches for the trainer from token shards, alone or beside rows of another source."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ossia.core.errors import InvalidInputError
from ossia.training.data.batches.packing import Batch
from ossia.training.data.batches.stream import BatchSource
from ossia.training.data.shards.rows import TokenRows


class ShardBatches:
    """Rows full of documents from shards, as a `BatchSource`: every token of a pass is seen, none is padding."""

    def __init__(self, rows: TokenRows) -> None:
        self._rows = rows

    def batch(self, number: int) -> Batch:
        """Batch `number` of the endless stream."""
        return Batch(*(torch.from_numpy(array) for array in self._rows.batch(number)))


class JoinedBatches:
    """The rows of several sources one below another: batch k is made of batch k of each.

    How many rows each gives is how the text and the tasks of a mix are weighed; rows must be of one length.
    """

    def __init__(self, sources: Sequence[BatchSource]) -> None:
        if not sources:
            raise InvalidInputError("there are no sources to join", param="sources")
        self._sources = tuple(sources)

    def batch(self, number: int) -> Batch:
        """Batch `number`: the rows of the first source come first."""
        parts = [source.batch(number) for source in self._sources]
        weights = None
        if any(part.weights is not None for part in parts):
            weights = torch.cat(
                [torch.ones(part.ids.shape) if part.weights is None else part.weights for part in parts]
            )
        return Batch(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.documents for part in parts]),
            weights,
        )
