"""Repetition, presence and frequency penalties, with counts on the device that each step only adds to."""

# P rows with penalties, V vocabulary, S slots (one a sequence with penalties)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ossia.engine.sequence import Sequence
from ossia.kernels.sampling import to_device


class PenaltyRow(NamedTuple):
    """A row whose logits are to be changed.

    Attributes:
        sequence: whose tokens count.
        drafts: tokens behind its own that this row takes for granted.
    """

    sequence: Sequence
    drafts: tuple[int, ...]


class PenaltyFactors(NamedTuple):
    """The penalties of P rows, [P, 1] float32 each; None for those that no row has."""

    repetition: Tensor | None
    presence: Tensor | None
    frequency: Tensor | None

    @staticmethod
    def of(sequences: list[Sequence], *, device: torch.device) -> PenaltyFactors:
        """What these sequences' requests ask for."""

        def column(values: list[float], none: float) -> Tensor | None:
            if all(value == none for value in values):
                return None
            return to_device(torch.tensor(values, dtype=torch.float32).view(-1, 1), device)

        params = [sequence.request.params for sequence in sequences]
        return PenaltyFactors(
            repetition=column([p.repetition_penalty for p in params], 1.0),
            presence=column([p.presence_penalty for p in params], 0.0),
            frequency=column([p.frequency_penalty for p in params], 0.0),
        )


class _Slot:
    """A sequence's place in the tables, and how many output tokens are counted there."""

    __slots__ = ("index", "num_counted")

    def __init__(self, index: int) -> None:
        self.index = index
        self.num_counted = 0


class PenaltyTable:
    """Counts of the tokens of each sequence with penalties.

    Args:
        vocab_size: V.
        device: where the logits are.
    """

    def __init__(self, *, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)  # [S, V], in the output
        self._is_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)  # [S, V]
        self._slots: dict[Sequence, _Slot] = {}
        self._free: list[int] = []

    @property
    def num_slots(self) -> int:
        """Sequences that have counts."""
        return len(self._slots)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence; one without counts is left alone."""
        slot = self._slots.pop(sequence, None)
        if slot is not None:
            self._free.append(slot.index)

    def penalise(self, logits: Tensor, *, rows: list[PenaltyRow], factors: PenaltyFactors) -> Tensor:
        """Logits [P, V] after the penalties of their rows, as a new tensor.

        Repetition (Keskar et al. 2019) comes first: x / r where x > 0, else x * r, for tokens in prompt or output.
        Then presence is taken off for each token in the output, and frequency once for each time it is there.
        """
        slots = self._count(rows)
        index = self._to_device(slots)
        counts = self._counts.index_select(0, index)
        places = [place for place, row in enumerate(rows) for _ in row.drafts]
        if places:
            drafts = [token for row in rows for token in row.drafts]
            _increment(counts, self._to_device(places), self._to_device(drafts))
        is_output = counts > 0
        if factors.repetition is not None:
            # One of the two terms is zero. `where` on the sign would be several times as slow on a CPU.
            repeated = logits.clamp(min=0.0) / factors.repetition + logits.clamp(max=0.0) * factors.repetition
            logits = torch.where(self._is_prompt.index_select(0, index) | is_output, repeated, logits)
        if factors.presence is not None:
            logits = logits - factors.presence * is_output
        if factors.frequency is not None:
            logits = logits - factors.frequency * counts
        return logits

    def _count(self, rows: list[PenaltyRow]) -> list[int]:
        """Count the output tokens that are new since the last step; returns each row's slot."""
        slots: list[int] = []
        at: list[int] = []
        tokens: list[int] = []
        for sequence, _ in rows:
            slot = self._slots.get(sequence) or self._open(sequence)
            slots.append(slot.index)
            num_output = sequence.num_output
            if slot.num_counted < num_output:
                new = sequence.token_ids[sequence.num_prompt + slot.num_counted :]
                tokens += new
                at += [slot.index] * len(new)
                slot.num_counted = num_output
        if tokens:
            _increment(self._counts, self._to_device(at), self._to_device(tokens))
        return slots

    def _open(self, sequence: Sequence) -> _Slot:
        if not self._free:
            self._grow()
        slot = self._slots[sequence] = _Slot(self._free.pop())
        self._counts[slot.index].zero_()
        self._is_prompt[slot.index].zero_()
        prompt = self._to_device(sequence.token_ids[: sequence.num_prompt])
        self._is_prompt[slot.index].index_fill_(0, prompt, True)
        return slot

    def _grow(self) -> None:
        """Twice as many slots, 4 at least."""
        old = len(self._counts)
        added = max(old, 4)
        for name in ("_counts", "_is_prompt"):
            table: Tensor = getattr(self, name)
            setattr(self, name, torch.cat((table, table.new_zeros(added, table.shape[1]))))
        self._free += range(old + added - 1, old - 1, -1)

    def _to_device(self, values: list[int]) -> Tensor:
        return to_device(torch.from_numpy(np.array(values, dtype=np.int64)), self._device)


def _increment(counts: Tensor, rows: Tensor, ids: Tensor) -> None:
    """Add 1 at each pair of row and id, as often as it occurs."""
    flat = rows * counts.shape[1] + ids
    counts.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
