"""Packing examples into rows of one length, and rows into batches."""

# Shapes: B rows, S tokens a row.

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ossia.training.data.examples import Example
from ossia.training.loss import IGNORED


class Batch(NamedTuple):
    """Rows ready for the model, each tensor [B, S] of int64 (int32 for document ids).

    Attributes:
        ids: input tokens.
        targets: the token after each one, or IGNORED where nothing is to be learned.
        positions: place of a token in its own document.
        documents: number of the document in its row; the padding at a row's end is the last document.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move to a device, not waiting for the copy."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def rows(self, part: slice) -> Batch:
        """Some of the rows, as views."""
        return Batch(*(tensor[part] for tensor in self))


def pack_row(draw: Callable[[], Example], *, length: int, padding: int) -> Batch:
    """Fill one row ([S] tensors) with whole examples.

    An example that does not fit ends the row, except in an empty row, where a long one is cut to size.
    """
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    documents: list[int] = []
    number = 0
    while True:
        example = draw()
        size = len(example.ids) - 1
        room = length - len(ids)
        if size > room and ids:
            break
        size = min(size, room)
        ids += example.ids[:size]
        targets += [
            token if is_learned else IGNORED
            for token, is_learned in zip(example.ids[1 : size + 1], example.is_learned[1 : size + 1], strict=True)
        ]
        positions += range(size)
        documents += [number] * size
        number += 1
    room = length - len(ids)
    return Batch(
        torch.tensor(ids + [padding] * room),
        torch.tensor(targets + [IGNORED] * room),
        torch.tensor(positions + list(range(room))),
        torch.tensor(documents + [number] * room, dtype=torch.int32),
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
    return Batch(*(torch.stack(tensors) for tensors in zip(*rows, strict=True)))
