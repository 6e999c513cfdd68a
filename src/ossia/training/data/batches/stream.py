"""Batches by number, made ahead of the trainer by worker processes if there are any."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from ossia.core.errors import InvalidInputError
from ossia.training.data.batches.packing import Batch


class BatchSource(Protocol):
    """An endless stream of batches that can be entered at any place.

    Batch k must be a function of k and of what the source was made with, and of nothing else: not of the batches asked
    for before, nor of the process that asks. Then a run that was killed goes on as if it had not been, and workers
    change nothing. A source is forked into the workers, so it must not hold threads or GPU memory.
    """

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0: step k + 1 of a run learns from batch k. Always of the same shape."""
        ...


class Share(Dataset[Batch]):
    """The rows of each batch that are one process's of several: the place-th part of them."""

    def __init__(self, source: BatchSource, *, place: int = 0, parts: int = 1) -> None:
        self._source = source
        self._place = place
        self._parts = parts

    def __getitem__(self, number: int) -> Batch:
        whole = self._source.batch(number)
        rows = whole.ids.shape[0]
        if rows % self._parts:
            raise InvalidInputError(
                f"{rows} rows cannot be dealt evenly to {self._parts} processes; make data.rows a multiple of it",
                param="data.rows",
            )
        each = rows // self._parts
        return whole.rows(slice(self._place * each, (self._place + 1) * each))


def stream(
    source: BatchSource, *, first: int, num_workers: int = 0, pin: bool = False, place: int = 0, parts: int = 1
) -> Iterator[Batch]:
    """Batches `first`, `first + 1`, ... without end.

    Args:
        source: what makes them.
        first: number of the first one.
        num_workers: processes that make them ahead; the batches are the same for any number.
        pin: put them into page-locked memory, from which a GPU copies while it computes.
        place: which part of each batch's rows to give, of so many `parts`.
    """
    loader = DataLoader(
        Share(source, place=place, parts=parts),
        batch_size=None,
        sampler=itertools.count(first),  # pyright: ignore[reportArgumentType]  any iterable does; this one has no end
        collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]  without a batch size it sees one item
        num_workers=num_workers,
        pin_memory=pin,
        prefetch_factor=2 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
    )
    return iter(loader)


def _as_it_is(batch: Batch) -> Batch:
    return batch
