"""From a step's logits to its tokens, each row by its own request's wishes and as if it were alone.

The order is that of `SamplingParams`: penalties, logit_bias, constraint and min_tokens, then kernels.sampling. What no
row asks for is not done; what depends on the requests alone is kept while the same sequences come again.
"""

# R rows, V vocabulary, M masks, W = ceil(V / 32) words of a mask

from __future__ import annotations

import math
from collections.abc import Sequence as Row
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ossia.engine.logprobs import LogprobTensors, compute_logprobs
from ossia.engine.output_event import TokenLogprob
from ossia.engine.penalties import PenaltyFactors, PenaltyRow, PenaltyTable
from ossia.engine.plan import ScheduledSequence
from ossia.engine.sequence import Sequence
from ossia.kernels.sampling import SamplingPlan, choose, mix_seed, plan_sampling, to_device, token_uniforms

BAN = -100.0
"""A logit_bias of this much or less bans a token altogether."""


class SamplingRow(NamedTuple):
    """What one row of logits is for.

    Attributes:
        sequence: whose token is sampled; gives prompt, output so far, seed and params.
        output_index: the token's index in the output.
        drafts: the last tokens before it, which this row takes for granted. The other tokens before it are known: with
            penalties, those that the step before samples must be in `sequence.token_ids` by now.
        banned_ids: tokens that must not come: the stop ids while `output_index < min_tokens`.
        mask: its row in `masks`; None if it has no constraint.
    """

    sequence: Sequence
    output_index: int
    drafts: tuple[int, ...] = ()
    banned_ids: tuple[int, ...] = ()
    mask: int | None = None


class SampleFailure(StrEnum):
    """Why a row has no token. The other rows are as ever."""

    NOT_FINITE = "the logits hold NaN or infinity"
    NOTHING_ALLOWED = "constraint, logit_bias and min_tokens leave no token to choose"


class Samples(NamedTuple):
    """A step's tokens on the host.

    Attributes:
        ids: one a row; -1 where the row failed.
        logprobs: one a row where its request asked, else None; None altogether if no row asked.
        failures: by row.
    """

    ids: list[int]
    logprobs: list[TokenLogprob | None] | None
    failures: dict[int, SampleFailure]


class SamplerOutput:
    """A step's tokens on the device, on their way to the host.

    Attributes:
        ids: [R] int64 on the device, all within the vocabulary; those of failed rows mean nothing.
    """

    def __init__(
        self, *, ids: Tensor, largest: Tensor, logprobs: LogprobTensors | None, logprob_rows: Row[tuple[int, int]]
    ) -> None:
        self.ids = ids
        self._logprob_rows = logprob_rows
        failure = torch.where(largest == -math.inf, -2, -1)
        # One copy brings both: a token, or why there is none.
        codes = torch.where(largest.isfinite(), ids, failure)
        self._event: torch.cuda.Event | None = None
        if ids.device.type == "cuda":
            self._codes = codes.to("cpu", non_blocking=True)
            self._logprobs = logprobs and logprobs.to_host()
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._codes, self._logprobs = codes, logprobs

    def take(self) -> Samples:
        """The tokens on the host; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        ids: list[int] = self._codes.tolist()
        failures: dict[int, SampleFailure] = {}
        if min(ids, default=0) < 0:
            for row, code in enumerate(ids):
                if code < 0:
                    failures[row] = SampleFailure.NOTHING_ALLOWED if code == -2 else SampleFailure.NOT_FINITE
                    ids[row] = -1
        if self._logprobs is None:
            return Samples(ids, None, failures)
        logprobs: list[TokenLogprob | None] = [None] * len(ids)
        entries = self._logprobs.to_list([num_top for _, num_top in self._logprob_rows])
        for (row, _), entry in zip(self._logprob_rows, entries, strict=True):
            if row not in failures and not math.isnan(entry.logprob):
                logprobs[row] = entry
            elif row not in failures:
                failures[row] = SampleFailure.NOT_FINITE
                ids[row] = -1
        return Samples(ids, logprobs, failures)


class _Bias(NamedTuple):
    """logit_bias of all rows, as pairs of row and id with what is added."""

    rows: Tensor
    ids: Tensor
    values: Tensor


class _Batch(NamedTuple):
    """What follows from the rows' requests alone."""

    sequences: list[Sequence]
    plan: SamplingPlan
    mixed_seeds: npt.NDArray[np.uint64]
    bias: _Bias | None
    penalised: list[int]
    penalised_index: Tensor | None
    factors: PenaltyFactors | None
    logprob_rows: list[tuple[int, int]]
    logprob_index: Tensor | None


class Sampler:
    """Chooses the tokens of each step.

    Args:
        vocab_size: V.
        device: where the logits are.
    """

    def __init__(self, *, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._penalties = PenaltyTable(vocab_size=vocab_size, device=self.device)
        self._bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=self.device)
        self._batch: _Batch | None = None

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that ended; one that is unknown is left alone."""
        self._penalties.release(sequence)
        if self._batch is not None and sequence in self._batch.sequences:
            self._batch = None

    @torch.inference_mode()
    def __call__(
        self,
        logits: Tensor,
        rows: Row[SamplingRow],
        *,
        masks: npt.NDArray[np.int32] | Tensor | None = None,
    ) -> SamplerOutput:
        """Choose a token for each row.

        Args:
            logits: [R, V] float32, left as they are.
            rows: R of them. Those of one sequence stand together, fewest drafts first.
            masks: [M, W] int32 on the host, bit i of word w allowing token 32 w + i.
        """
        sequences = [row.sequence for row in rows]
        batch = self._batch
        if batch is None or batch.sequences != sequences:
            batch = self._batch = self._make_batch(sequences)
        shaped = self._shape(logits, rows, batch, masks=masks)
        uniforms = None
        if not batch.plan.is_greedy:
            indices = np.fromiter([row.output_index for row in rows], dtype=np.uint64, count=len(rows))
            uniforms = to_device(torch.from_numpy(token_uniforms(batch.mixed_seeds, indices)), self.device)
        ids, largest = choose(shaped, plan=batch.plan, uniforms=uniforms)
        logprobs = None
        if batch.logprob_rows:
            index = batch.logprob_index
            logprobs = compute_logprobs(
                logits if index is None else logits.index_select(0, index),
                ids if index is None else ids.index_select(0, index),
                num_top=max(num_top for _, num_top in batch.logprob_rows),
            )
        return SamplerOutput(ids=ids, largest=largest, logprobs=logprobs, logprob_rows=batch.logprob_rows)

    def _shape(
        self,
        logits: Tensor,
        rows: Row[SamplingRow],
        batch: _Batch,
        *,
        masks: npt.NDArray[np.int32] | Tensor | None,
    ) -> Tensor:
        """The logits after penalties, bias, masks and bans: the same tensor if there are none, else a new one."""
        shaped = logits
        if batch.factors is not None:
            shaped = self._penalise(logits, rows, batch)
        if batch.bias is not None:
            shaped = logits.clone() if shaped is logits else shaped
            place = (batch.bias.rows, batch.bias.ids)
            shaped[place] = shaped[place] + batch.bias.values
        if masks is not None:
            masked = [place for place, row in enumerate(rows) if row.mask is not None]
            if masked:
                shaped = logits.clone() if shaped is logits else shaped
                picked = [row.mask for row in rows if row.mask is not None]
                self._mask(shaped, masked, masks=torch.as_tensor(masks)[picked])
        banned = [(place, token) for place, row in enumerate(rows) if row.banned_ids for token in row.banned_ids]
        if banned:
            shaped = logits.clone() if shaped is logits else shaped
            at, ids = zip(*banned, strict=True)
            # A number of Python's would be copied to the device while the host waits.
            shaped.index_put_((self._index(list(at)), self._index(list(ids))), shaped.new_full((), -math.inf))
        return shaped

    def _penalise(self, logits: Tensor, rows: Row[SamplingRow], batch: _Batch) -> Tensor:
        assert batch.factors is not None
        wanted = [PenaltyRow(rows[place].sequence, rows[place].drafts) for place in batch.penalised]
        index = batch.penalised_index
        part = logits if index is None else logits.index_select(0, index)
        part = self._penalties.penalise(part, rows=wanted, factors=batch.factors)
        return part if index is None else logits.index_copy(0, index, part)

    def _mask(self, logits: Tensor, places: list[int], *, masks: Tensor) -> None:
        """Set what the masks [len(places), W] forbid to minus infinity, in place."""
        words = to_device(masks.contiguous(), self.device)
        is_allowed = (words.view(torch.uint8).unsqueeze(-1) & self._bits).ne(0).flatten(1)[:, : self.vocab_size]
        if len(places) == len(logits):
            logits.masked_fill_(~is_allowed, -math.inf)
        else:
            index = self._index(places)
            logits.index_copy_(0, index, logits.index_select(0, index).masked_fill_(~is_allowed, -math.inf))

    def _make_batch(self, sequences: list[Sequence]) -> _Batch:
        params = [sequence.request.params for sequence in sequences]
        plan = plan_sampling(
            temperature=[p.temperature for p in params],
            top_k=[p.top_k for p in params],
            top_p=[p.top_p for p in params],
            min_p=[p.min_p for p in params],
            vocab_size=self.vocab_size,
            device=self.device,
        )
        penalised = [row for row, p in enumerate(params) if p.has_penalties]
        logprob_rows = [(row, p.logprobs) for row, p in enumerate(params) if p.logprobs is not None]
        return _Batch(
            sequences=sequences,
            plan=plan,
            mixed_seeds=np.array([mix_seed(sequence.seed) for sequence in sequences], dtype=np.uint64),
            bias=self._make_bias(sequences),
            penalised=penalised,
            penalised_index=self._index(penalised) if len(penalised) < len(sequences) else None,
            factors=PenaltyFactors.of([sequences[r] for r in penalised], device=self.device) if penalised else None,
            logprob_rows=logprob_rows,
            logprob_index=self._index([r for r, _ in logprob_rows]) if len(logprob_rows) < len(sequences) else None,
        )

    def _make_bias(self, sequences: list[Sequence]) -> _Bias | None:
        entries = [
            (row, token, -math.inf if bias <= BAN else bias)
            for row, sequence in enumerate(sequences)
            for token, bias in sequence.request.params.logit_bias.items()
        ]
        if not entries:
            return None
        rows, ids, values = zip(*entries, strict=True)
        return _Bias(
            rows=self._index(list(rows)),
            ids=self._index(list(ids)),
            values=to_device(torch.tensor(values, dtype=torch.float32), self.device),
        )

    def _index(self, values: list[int]) -> Tensor:
        return to_device(torch.tensor(values, dtype=torch.int64), self.device)


def make_rows(
    scheduled: ScheduledSequence,
    *,
    stop_ids: tuple[int, ...] = (),
    masks: Row[int] | None = None,
) -> list[SamplingRow]:
    """The rows of one scheduled sequence: one for the known tokens, and one behind each draft.

    Args:
        scheduled: from the plan.
        stop_ids: the sequence's own, banned as long as `min_tokens` asks for more; none with `ignore_eos`.
        masks: rows in the step's masks, one for each sample.
    """
    sequence, drafts = scheduled.sequence, scheduled.drafts
    first = scheduled.end - len(drafts) - sequence.num_prompt
    min_tokens = sequence.request.params.min_tokens
    if scheduled.num_samples == 1 and first >= min_tokens:
        return [SamplingRow(sequence, first, (), (), masks[0] if masks else None)]
    return [
        SamplingRow(
            sequence=sequence,
            output_index=first + place,
            drafts=drafts[:place],
            banned_ids=stop_ids if first + place < min_tokens else (),
            mask=masks[place] if masks else None,
        )
        for place in range(scheduled.num_samples)
    ]
