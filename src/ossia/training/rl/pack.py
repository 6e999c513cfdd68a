"""Data as rows for the trainer: several in a row, blind to each other."""

# B rows, S tokens a row, T = B * S, N sampled tokens, L layers, A active experts

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ossia.training.rl.trajectory import UNKNOWN, Datum

_MULTIPLE = 64
"""Rows are a multiple of this long, so that a compiler meets few lengths."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """A forward pass of the trainer.

    Attributes:
        ids: int64 [B, S].
        positions: int64 [B, S], of a token in its own datum.
        documents: int32 [B, S], number of the datum in its row; the padding at the end is the last one.
        places: int64 [N], the tokens of the flattened rows whose next one was sampled.
        targets: int64 [N], those next ones.
        engine: float32 [N], their log-probabilities by the engine.
        advantages: float32 [N], of their episodes.
        choices: int16 [T, L, A], UNKNOWN where nothing was recorded; None to route as usual.
    """

    ids: Tensor
    positions: Tensor
    documents: Tensor
    places: Tensor
    targets: Tensor
    engine: Tensor
    advantages: Tensor
    choices: Tensor | None

    def to(self, device: torch.device) -> Rows:
        """The same on a device."""
        return Rows(
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            documents=self.documents.to(device),
            places=self.places.to(device),
            targets=self.targets.to(device),
            engine=self.engine.to(device),
            advantages=self.advantages.to(device),
            choices=None if self.choices is None else self.choices.to(device),
        )


def pack(data: Sequence[Datum], *, max_tokens: int, padding: int, replay: bool) -> list[Rows]:
    """Pack data into rows as long as the longest, longest first, and rows into passes of up to `max_tokens`.

    Args:
        data: at least one; all of a datum stays together.
        max_tokens: of a pass; one row is taken even if it is longer.
        padding: id that fills up.
        replay: take the recorded choices along.
    """
    sizes = [len(datum.ids) - 1 for datum in data]
    S = -(-max(sizes) // _MULTIPLE) * _MULTIPLE
    rows: list[list[Datum]] = []
    room: list[int] = []
    for index in sorted(range(len(data)), key=lambda index: (-sizes[index], index)):
        row = next((row for row, left in enumerate(room) if left >= sizes[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(S)
        rows[row].append(data[index])
        room[row] -= sizes[index]
    most = max(1, max_tokens // S)
    shape = next((datum.routing.shape[1:] for datum in data if datum.routing is not None), None) if replay else None
    return [
        _make_rows(rows[start : start + most], length=S, padding=padding, shape=shape)
        for start in range(0, len(rows), most)
    ]


def _make_rows(rows: Sequence[Sequence[Datum]], *, length: int, padding: int, shape: tuple[int, ...] | None) -> Rows:
    B, S = len(rows), length
    ids = np.full((B, S), padding, dtype=np.int64)
    positions = np.zeros((B, S), dtype=np.int64)
    documents = np.zeros((B, S), dtype=np.int32)
    choices = None if shape is None else np.full((B * S, *shape), UNKNOWN, dtype=np.int16)
    places: list[int] = []
    targets: list[int] = []
    engine: list[float] = []
    advantages: list[float] = []
    for row, data in enumerate(rows):
        start = 0
        for number, datum in enumerate(data):
            size = len(datum.ids) - 1
            part = slice(start, start + size)
            ids[row, part] = datum.ids[:-1]
            positions[row, part] = np.arange(size)
            documents[row, part] = number
            if choices is not None and datum.routing is not None:
                choices[row * S + start : row * S + start + size] = datum.routing
            learned = [place for place in range(1, size + 1) if datum.is_sampled[place]]
            places += [row * S + start + place - 1 for place in learned]
            targets += [datum.ids[place] for place in learned]
            engine += [datum.logprobs[place] for place in learned]
            advantages += [datum.advantage] * len(learned)
            start += size
        positions[row, start:] = np.arange(S - start)
        documents[row, start:] = len(data)
    return Rows(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(documents),
        places=torch.tensor(places, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        engine=torch.tensor(engine, dtype=torch.float32),
        advantages=torch.tensor(advantages, dtype=torch.float32),
        choices=None if choices is None else torch.from_numpy(choices),
    )
