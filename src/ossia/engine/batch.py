"""What one step runs, as tensors: made from the scheduler's plan on the host, with numpy, and sent in one piece."""

# T tokens, N sequences, B blocks of the longest, R rows to sample from, S page size

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ossia.engine.kv_cache import DEFAULT_PAGE_SIZE, has_full_layers, has_sliding_layers
from ossia.engine.plan import ScheduledSequence, StepPlan
from ossia.engine.sequence import Sequence
from ossia.model.config import ModelConfig

Ints = NDArray[np.integer[Any]]
_FIRST_ROWS, _FIRST_BLOCKS = 64, 64
_ALIGNMENT = 16


class SampledStep(NamedTuple):
    """A step that was launched, and the ids that it samples: int64 [R], in the plan's order, on the device."""

    plan: StepPlan
    token_ids: Tensor


class Padding(NamedTuple):
    """Sizes to fill a batch up to, for graphs of fixed shapes; none below the batch's own.

    Padding tokens are dealt to the padding sequences, which hold 0 tokens, as evenly as can be. They have id 0 and
    position 0 and are written to the null page.
    """

    num_tokens: int
    num_seqs: int
    num_blocks: int


class HostGroup(NamedTuple):
    """block_table int32 [N, B] and slot_mapping int64 [T] of a group of layers, on the host."""

    block_table: Ints
    slot_mapping: Ints


class HostBatch(NamedTuple):
    """The same as `Batch`, on the host; token ids that are in flight are 0 here."""

    token_ids: Ints
    positions: Ints
    cu_seqlens_q: Ints
    context_lens: Ints
    sample_rows: Ints
    full: HostGroup | None
    sliding: HostGroup | None


class Group(NamedTuple):
    """What layers of one kind share.

    Attributes:
        block_table: int32 [N, B]; 0 for blocks that the window has passed, and beyond the last.
        slot_mapping: int64 [T], page * S + offset, where each token's key and value go.
    """

    block_table: Tensor
    slot_mapping: Tensor


class PromptRows(NamedTuple):
    """Rows of the hidden states, [begin, end), whose logits score the prompt's own tokens.

    The logits of row begin + i are those after position first + i: they score the prompt's token first + i + 1.
    """

    place: int
    begin: int
    end: int
    first: int


class Batch(NamedTuple):
    """A step's inputs.

    Attributes:
        token_ids: int64 [T], drafts included, sequence after sequence in the plan's order.
        positions: int64 [T].
        cu_seqlens_q: int32 [N + 1], where each sequence's tokens begin.
        context_lens: int32 [N], tokens of each sequence after this step; 0 for padding.
        sample_rows: int64 [R], the rows of the hidden states to sample from, in the plan's order.
        full: for layers with full attention, if the model has any.
        sliding: for those with a window.
        prompt_rows: for requests that want logprobs of their prompt.
        num_tokens: those that are no padding.
        num_seqs: likewise.
        max_queries: of one sequence.
        host: these on the host.
    """

    token_ids: Tensor
    positions: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor
    sample_rows: Tensor
    full: Group | None
    sliding: Group | None
    prompt_rows: tuple[PromptRows, ...]
    num_tokens: int
    num_seqs: int
    max_queries: int
    host: HostBatch


class BatchBuilder:
    """Makes batches from plans. It remembers block tables from step to step, since few of their entries change.

    Args:
        config: the model's.
        page_size: S.
        device: where the batches go.
    """

    def __init__(
        self, config: ModelConfig, *, page_size: int = DEFAULT_PAGE_SIZE, device: torch.device | str = "cpu"
    ) -> None:
        self.page_size, self.device = page_size, torch.device(device)
        self._full = _Tables(window=None, page_size=page_size) if has_full_layers(config) else None
        window = config.sliding_window
        self._sliding = _Tables(window=window, page_size=page_size) if has_sliding_layers(config) else None

    def build(self, plan: StepPlan, *, last: SampledStep | None = None, padding: Padding | None = None) -> Batch:
        """Make a step's inputs.

        Args:
            plan: not empty; the sequences' pages cover its tokens.
            last: the step before, if a token of this plan is in flight there.
            padding: fill up to fixed sizes.
        """
        scheduled = plan.scheduled
        starts = np.array([item.start for item in scheduled])
        counts = np.array([item.num_tokens for item in scheduled])
        ends = starts + counts
        num_seqs, num_tokens, most = len(scheduled), int(counts.sum()), int(counts.max())
        sizes = padding or Padding(num_tokens, num_seqs, 0)

        cu = np.zeros(sizes.num_seqs + 1, dtype=np.int32)
        np.cumsum(counts, out=cu[1 : num_seqs + 1])
        context_lens = np.zeros(sizes.num_seqs, dtype=np.int32)
        context_lens[:num_seqs] = ends
        if sizes.num_seqs > num_seqs:
            _deal_padding(cu, num_seqs, sizes)
        owners = np.arange(num_seqs) if most == 1 else np.repeat(np.arange(num_seqs), counts)
        positions = np.zeros(sizes.num_tokens, dtype=np.int64)
        positions[:num_tokens] = starts if most == 1 else np.arange(num_tokens) + (starts - cu[:num_seqs])[owners]
        token_ids = np.zeros(sizes.num_tokens, dtype=np.int64)
        token_ids[:num_tokens] = _token_ids(scheduled)

        blocks = max(-(-int(ends.max()) // self.page_size), sizes.num_blocks)
        groups = [
            tables and tables.group(scheduled, starts, owners, positions[:num_tokens], sizes=sizes, num_blocks=blocks)
            for tables in (self._full, self._sliding)
        ]
        rows = _sample_rows(scheduled, cu)
        host = HostBatch(token_ids, positions, cu, context_lens, rows, groups[0], groups[1])
        return self._send(host, plan, last, num_tokens=num_tokens, max_queries=most)

    def _send(
        self, host: HostBatch, plan: StepPlan, last: SampledStep | None, *, num_tokens: int, max_queries: int
    ) -> Batch:
        full, sliding = host.full or (), host.sliding or ()
        in_flight = _in_flight(plan, last, host.cu_seqlens_q)
        tensors = _to_device([*host[:5], *full, *sliding, *(in_flight or ())], self.device)
        inputs, rest = tensors[:5], tensors[5:]
        if in_flight is not None:
            assert last is not None
            targets, sources = rest[-2:]
            inputs[0].index_copy_(0, targets, last.token_ids.index_select(0, sources))
        return Batch(
            *inputs,
            full=Group(*rest[:2]) if full else None,
            sliding=Group(*rest[len(full) : len(full) + 2]) if sliding else None,
            prompt_rows=_prompt_rows(plan.scheduled, host.cu_seqlens_q),
            num_tokens=num_tokens,
            num_seqs=len(plan.scheduled),
            max_queries=max_queries,
            host=host,
        )


def _token_ids(scheduled: Items[ScheduledSequence]) -> list[int]:
    """Those of all sequences, 0 for those in flight."""
    ids: list[int] = []
    for item in scheduled:
        known = item.sequence.token_ids
        if item.is_last_in_flight:
            ids += known[item.start : item.end - 1]
            ids.append(0)
        elif item.num_tokens == 1:
            ids.append(known[item.start])
        else:
            ids += known[item.start : item.end - len(item.drafts)]
            ids += item.drafts
    return ids


def _sample_rows(scheduled: Items[ScheduledSequence], cu: Ints) -> Ints:
    """The last `num_samples` rows of each sequence."""
    wanted = np.array([item.num_samples for item in scheduled])
    last = cu[1 : len(scheduled) + 1].astype(np.int64)
    if int(wanted.max()) <= 1:
        return last[wanted == 1] - 1
    offsets = np.arange(int(wanted.sum())) - np.repeat(np.cumsum(wanted), wanted)
    return np.repeat(last, wanted) + offsets


def _prompt_rows(scheduled: Items[ScheduledSequence], cu: Ints) -> tuple[PromptRows, ...]:
    found = []
    for place, item in enumerate(scheduled):
        sequence = item.sequence
        if sequence.request.params.prompt_logprobs is None:
            continue
        num_rows = min(item.end, sequence.num_prompt - 1) - item.start  # the last one's logits score the output
        if num_rows > 0:
            begin = int(cu[place])
            found.append(PromptRows(place, begin, begin + num_rows, item.start))
    return tuple(found)


def _in_flight(plan: StepPlan, last: SampledStep | None, cu: Ints) -> tuple[Ints, Ints] | None:
    """The tokens that are being sampled, and the rows of the last sampled ids that they are: both int64."""
    places = [place for place, item in enumerate(plan.scheduled) if item.is_last_in_flight]
    if not places:
        return None
    assert last is not None, "tokens in flight need the step that samples them"
    row, rows = -1, dict[Sequence, int]()
    for item in last.plan.scheduled:
        row += item.num_samples
        rows[item.sequence] = row
    sources = np.array([rows[plan.scheduled[place].sequence] for place in places])
    return cu[1:][places].astype(np.int64) - 1, sources


def _deal_padding(cu: Ints, num_seqs: int, sizes: Padding) -> None:
    """Fill in `cu` beyond the real sequences."""
    spare, receivers = sizes.num_tokens - int(cu[num_seqs]), sizes.num_seqs - num_seqs
    cu[num_seqs + 1 :] = cu[num_seqs] + (np.arange(1, receivers + 1) * spare) // receivers


class _Row:
    """Where a sequence's blocks lie in a table, and what was written there: its pages from block `first` on."""

    __slots__ = ("first", "pages", "place")

    def __init__(self, place: int) -> None:
        self.place, self.first, self.pages = place, 0, list[int]()


class _Tables:
    """The block tables of one group of layers, a row for each sequence, kept until it has finished."""

    def __init__(self, *, window: int | None, page_size: int) -> None:
        self._window, self._page_size = window, page_size
        self._table = np.zeros((_FIRST_ROWS, _FIRST_BLOCKS), dtype=np.int32)
        self._rows: dict[Sequence, _Row] = {}
        self._free = list(range(_FIRST_ROWS))[::-1]

    def group(
        self,
        scheduled: Items[ScheduledSequence],
        starts: Ints,
        owners: Ints,
        positions: Ints,
        *,
        sizes: Padding,
        num_blocks: int,
    ) -> HostGroup:
        """A step's table, and where its tokens go; `owners` [T] is each token's sequence, as a place in the plan."""
        S = self._page_size
        if num_blocks > self._table.shape[1]:
            self._widen(num_blocks)
        if self._window is None:
            places = [self._update(item.sequence, item.sequence.full_pages, 0) for item in scheduled]
        else:
            firsts = (np.maximum(starts - self._window + 1, 0) // S).tolist()
            sequences = [item.sequence for item in scheduled]
            places = [self._update(s, s.sliding_pages, b) for s, b in zip(sequences, firsts, strict=True)]
        table = np.zeros((sizes.num_seqs, num_blocks), dtype=np.int32)
        np.take(self._table[:, :num_blocks], places, axis=0, out=table[: len(places)])
        blocks = positions // S
        slots = np.zeros(sizes.num_tokens, dtype=np.int64)
        slots[: positions.size] = positions - blocks * S  # padding goes to the null page's first place
        slots[: positions.size] += table[owners, blocks].astype(np.int64) * S
        return HostGroup(table, slots)

    def _update(self, sequence: Sequence, pages: list[int], first: int) -> int:
        """Bring a sequence's row up to date and say which it is. Blocks before `first` are 0."""
        row = self._rows.get(sequence)
        if row is None:
            row = self._rows[sequence] = _Row(self._take_place())
        live = pages[first:] if first else pages
        if live == row.pages and first == row.first:
            return row.place
        if first + len(live) > self._table.shape[1]:
            self._widen(first + len(live))
        held = self._table[row.place]
        held[row.first : row.first + len(row.pages)] = 0
        held[first : first + len(live)] = live
        row.first, row.pages = first, live.copy()
        return row.place

    def _take_place(self) -> int:
        if not self._free:
            for sequence in [s for s in self._rows if s.is_finished]:
                row = self._rows.pop(sequence)
                self._table[row.place, row.first : row.first + len(row.pages)] = 0
                self._free.append(row.place)
        if not self._free:
            num_rows = self._table.shape[0]
            self._table = np.concatenate((self._table, np.zeros_like(self._table)))
            self._free = list(range(num_rows, 2 * num_rows))[::-1]
        return self._free.pop()

    def _widen(self, num_blocks: int) -> None:
        num_rows, width = self._table.shape
        wider = np.zeros((num_rows, max(num_blocks, 2 * width)), dtype=np.int32)
        wider[:, :width] = self._table
        self._table = wider


def _to_device(arrays: Items[Ints], device: torch.device) -> list[Tensor]:
    """Tensors of these arrays. To a GPU they go in one copy, from pinned memory, without waiting for it."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return _unpack(_pack(arrays, is_pinned=device.type == "cuda").to(device, non_blocking=True), arrays)


def _places(arrays: Items[Ints]) -> list[tuple[int, int]]:
    """Where each array lies in one piece of memory, in bytes; aligned as any of their dtypes wants it."""
    ends = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)]).tolist()
    return [(begin, begin + array.nbytes) for begin, array in zip(ends, arrays, strict=False)]


def _pack(arrays: Items[Ints], *, is_pinned: bool) -> Tensor:
    places = _places(arrays)
    piece = torch.empty(places[-1][1], dtype=torch.uint8, pin_memory=is_pinned)
    held = piece.numpy()
    for (begin, end), array in zip(places, arrays, strict=True):
        held[begin:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return piece


def _unpack(piece: Tensor, arrays: Items[Ints]) -> list[Tensor]:
    """Views of the piece, in the arrays' shapes and dtypes."""
    tensors = []
    for (begin, end), array in zip(_places(arrays), arrays, strict=True):
        dtype = torch.int64 if array.dtype == np.int64 else torch.int32
        tensors.append(piece[begin:end].view(dtype).view(array.shape))
    return tensors
