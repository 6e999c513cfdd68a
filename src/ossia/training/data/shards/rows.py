"""Rows of one length cut from shards: batch k follows from (seed, k) alone, so a run resumes at any step."""

# Shapes: B rows, S tokens a row, N documents of a pass.

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ossia.core.errors import InvalidInputError
from ossia.training.data.shards.order import MixOrder
from ossia.training.data.shards.reader import ShardedTokens


class TokenBatch(NamedTuple):
    """Rows of documents laid end to end, each array [B, S].

    Attributes:
        ids: input tokens, int64.
        targets: the token after each one in the same document, int64. Every place has one.
        positions: place in the piece of the document that this row holds, int64.
        documents: number of the piece in its row, int32: pieces of different numbers must not see each other.
    """

    ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


class _Pass(NamedTuple):
    """One pass over the mix: its documents in order [N], where the pairs of each stop [N], and its number of rows."""

    order: np.ndarray
    ends: np.ndarray
    num_rows: int


class TokenRows:
    """Batches of packed rows. Holds one number a document and pass; tokens are read when a batch asks for them.

    A document of n tokens gives n - 1 pairs of input and target, and no pair spans two documents. Pairs are laid end to
    end in the pass's order and cut every `length`; what is left at the end of a pass, less than a row, is dropped.

    Args:
        shards: the documents.
        length: tokens of a row.
        rows: rows of a batch.
        seed: another one gives another order.

    Raises:
        InvalidInputError: the shards hold less than one row.
    """

    def __init__(self, shards: ShardedTokens, *, length: int, rows: int, seed: int) -> None:
        if length < 1 or rows < 1:
            raise InvalidInputError(f"a batch of {rows} rows of {length} tokens is empty", param="length")
        self._shards = shards
        self._length = length
        self._rows = rows
        self._seed = seed
        self._lengths = shards.lengths()
        self._num_rows: list[int] = []
        self._cached: tuple[int, _Pass] | None = None
        if not self._load(0).num_rows:
            raise InvalidInputError(
                f"{shards.folder} has {shards.num_tokens} tokens, less than one row of {length}; take shorter rows "
                "or more text",
                param="length",
            )

    def batch(self, number: int) -> TokenBatch:
        """Batch `number` of the endless stream, counted from 0."""
        if number < 0:
            raise InvalidInputError(f"batches are counted from 0, got {number}", param="number")
        rows = [self._row(number * self._rows + place) for place in range(self._rows)]
        return TokenBatch(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def epoch_of(self, number: int) -> int:
        """Which pass over the mix batch `number` begins in."""
        return self._find(number * self._rows)[0]

    def _row(self, number: int) -> TokenBatch:
        epoch, first_row = self._find(number)
        current = self._load(epoch)
        start = (number - first_row) * self._length
        stop = start + self._length
        place = int(np.searchsorted(current.ends, start, side="right"))
        row = TokenBatch(*(np.empty(self._length, dtype=kind) for kind in (np.int64, np.int64, np.int64, np.int32)))
        filled = piece = 0
        while filled < self._length:
            begin = int(current.ends[place - 1]) if place else 0
            skipped = start + filled - begin
            size = min(int(current.ends[place]), stop) - (start + filled)
            if size:
                ids = self._shards.document(int(current.order[place]))[skipped : skipped + size + 1]
                row.ids[filled : filled + size] = ids[:-1]
                row.targets[filled : filled + size] = ids[1:]
                row.positions[filled : filled + size] = np.arange(size)
                row.documents[filled : filled + size] = piece
                filled += size
                piece += 1
            place += 1
        return row

    def _find(self, row: int) -> tuple[int, int]:
        """The pass that holds a row of the endless stream, and the number of that pass's first row."""
        first_row = epoch = 0
        while True:
            if epoch == len(self._num_rows):
                self._load(epoch)
            if row < first_row + self._num_rows[epoch]:
                return epoch, first_row
            first_row += self._num_rows[epoch]
            epoch += 1

    def _load(self, epoch: int) -> _Pass:
        if self._cached is not None and self._cached[0] == epoch:
            return self._cached[1]
        mix = MixOrder(self._shards, seed=self._seed, epoch=epoch)
        order = mix.at(np.arange(len(mix)))
        ends = np.cumsum(self._lengths[order] - 1)
        num_rows = int(ends[-1]) // self._length
        if epoch == len(self._num_rows):
            self._num_rows.append(num_rows)
        loaded = _Pass(order, ends, num_rows)
        self._cached = (epoch, loaded)
        return loaded
