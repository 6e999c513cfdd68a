"""Packing examples into rows of one length, and rows into batches."""

# Shapes: B rows, S tokens a row.

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ossia.harmony.tokenizer import Tokenizer
from ossia.training.config import DataConfig, Identity
from ossia.training.data.examples import Example, ExampleSource
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


class RowStream(IterableDataset[Batch]):
    """An endless stream of packed rows, split over the loader's workers, each with a seed of its own."""

    def __init__(self, config: DataConfig, *, tokenizer: Tokenizer, identity: Identity, first_step: int) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._identity = identity
        self._first_step = first_step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number = worker.id if worker is not None else 0
        rng = random.Random(f"{self._config.seed} {self._first_step} {number}")
        source = ExampleSource(self._config, tokenizer=self._tokenizer, identity=self._identity)
        padding = self._tokenizer.endoftext
        while True:
            yield pack_row(lambda: source.draw(rng), length=self._config.sequence_length, padding=padding)


def _collate(rows: list[Batch]) -> Batch:
    return Batch(*(torch.stack(tensors) for tensors in zip(*rows, strict=True)))


def batches(
    config: DataConfig, *, tokenizer: Tokenizer, identity: Identity, first_step: int, pin: bool
) -> Iterator[Batch]:
    """Endless batches for a run that begins (or resumes) at `first_step`; the same arguments give the same batches."""
    stream = RowStream(config, tokenizer=tokenizer, identity=identity, first_step=first_step)
    loader: DataLoader[Batch] = DataLoader(
        stream,
        batch_size=config.rows,
        collate_fn=_collate,
        num_workers=config.num_workers,
        pin_memory=pin,
        prefetch_factor=4 if config.num_workers else None,
        multiprocessing_context="fork" if config.num_workers else None,
    )
    return iter(loader)
