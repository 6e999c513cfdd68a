"""Packing examples into rows of one length, and rows into batches."""

# Shapes: B rows, S tokens a row.

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ossia.training.data.batches.examples import Example
from ossia.training.loss import IGNORED


class Batch(NamedTuple):
    """Rows ready for the model, each tensor [B, S] of int64 (int32 for document ids).

    Attributes:
        ids: input tokens.
        targets: the token after each one, or IGNORED where nothing is to be learned.
        positions: place of a token in its own document.
        documents: number of the document in its row; the padding at a row's end is the last document.
        weights: how much each target counts in the loss, float32; None where all count alike.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move to a device, not waiting for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, part: slice) -> Batch:
        """Some of the rows, as views."""
        return self._map(lambda tensor: tensor[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        weights = None if self.weights is None else change(self.weights)
        return Batch(change(self.ids), change(self.targets), change(self.positions), change(self.documents), weights)


def pack_row(draw: Callable[[], Example | None], *, length: int, padding: int) -> Batch:
    """Fill one row ([S] tensors) with whole examples.

    An example that does not fit ends the row, as None does, except in an empty row, where a long one is cut to size.
    """
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    documents: list[int] = []
    weights: list[float] = []
    is_even = True
    number = 0
    while (example := draw()) is not None:
        size = len(example.ids) - 1
        room = length - len(ids)
        if size > room and ids:
            break
        size = min(size, room)
        ids += example.ids[:size]
        targets += [
            token if is_learned else IGNORED
            for token, is_learned in zip(
                (example.targets or example.ids)[1 : size + 1], example.is_learned[1 : size + 1], strict=True
            )
        ]
        weights += [1.0] * size if example.weights is None else example.weights[1 : size + 1]
        is_even = is_even and example.weights is None
        positions += range(size)
        documents += [number] * size
        number += 1
    room = length - len(ids)
    return Batch(
        torch.tensor(ids + [padding] * room),
        torch.tensor(targets + [IGNORED] * room),
        torch.tensor(positions + list(range(room))),
        torch.tensor(documents + [number] * room, dtype=torch.int32),
        None if is_even else torch.tensor(weights + [0.0] * room),
    )


class ExampleDraw(Protocol):
    """Something to draw examples from, such as `ExampleSource`."""

    def draw(self, rng: random.Random) -> Example:
        """Draw one example; all chance comes from `rng`."""
        ...


class PackedExamples:
    """Batches packed from drawn examples: row r of batch k follows from (seed, k, r).

    Args:
        source: what examples are drawn from.
        length: tokens of a row.
        rows: rows of a batch.
        seed: another one gives other batches.
        padding: id that fills rows up.
    """

    def __init__(self, source: ExampleDraw, *, length: int, rows: int, seed: int, padding: int) -> None:
        self._source = source
        self._length = length
        self._rows = rows
        self._seed = seed
        self._padding = padding

    def batch(self, number: int) -> Batch:
        """Batch `number` of the endless stream, counted from 0."""
        return stack_rows([self._row(number, place) for place in range(self._rows)])

    def _row(self, number: int, place: int) -> Batch:
        rng = random.Random(f"{self._seed} {number} {place}")
        return pack_row(lambda: self._source.draw(rng), length=self._length, padding=self._padding)


def stack_rows(rows: Sequence[Batch]) -> Batch:
    """Rows of [S] tensors as one batch."""
    weights = None
    if any(row.weights is not None for row in rows):
        even = torch.ones(rows[0].ids.shape)
        weights = torch.stack([even if row.weights is None else row.weights for row in rows])
    return Batch(
        torch.stack([row.ids for row in rows]),
        torch.stack([row.targets for row in rows]),
        torch.stack([row.positions for row in rows]),
        torch.stack([row.documents for row in rows]),
        weights,
    )
