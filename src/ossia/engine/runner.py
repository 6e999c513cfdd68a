"""From a step's plan to logits."""

# T tokens, D model, R rows to sample from, V vocabulary, P pages, H heads, K KV heads, C head dim

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ossia.core.memory import free_memory
from ossia.engine.batch import Batch, BatchBuilder, SampledStep
from ossia.engine.kv_cache import (
    DEFAULT_PAGE_SIZE,
    PagedKVCache,
    has_full_layers,
    has_sliding_layers,
    num_pages_for,
    pages_in_budget,
)
from ossia.engine.plan import StepPlan
from ossia.engine.routing import RoutingPages, RoutingRecorder
from ossia.kernels.paged_attention import PagedReads, paged_attention, plan_reads, write_kv
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer
from ossia.model.update import update_weights

PROMPT_PIECE = 256
"""Rows whose logits are made at once for the logprobs of a prompt: 206 MB for the published vocabulary."""
CPU_SHARE, CPU_CAP = 0.3, 4 << 30
"""Of the memory that is free, and at most so many bytes, when nobody says how large the cache shall be."""
CUDA_SHARE = 0.85
"""Of what is free once the weights are there; the rest is for activations."""


class PromptLogits(NamedTuple):
    """What scores a prompt's own tokens, in a step that computed some of them.

    Attributes:
        place: the sequence's place in the plan.
        first: position of the first row; its logits score the token after it, as do all.
        hidden: [n, D], a row for each position from `first` on.
        to_logits: hidden rows -> float32 [n, V].
    """

    place: int
    first: int
    hidden: Tensor
    to_logits: Callable[[Tensor], Tensor]

    def pieces(self, *, num_rows: int = PROMPT_PIECE) -> Iterator[tuple[int, Tensor]]:
        """Position of the first row and logits, float32 [n, V], of so many rows at a time.

        All at once could be larger than the model.
        """
        with torch.inference_mode():
            for begin in range(0, self.hidden.shape[0], num_rows):
                yield self.first + begin, self.to_logits(self.hidden[begin : begin + num_rows])


class StepLogits(NamedTuple):
    """A step's result. Where logits are no numbers the sampler ends that sequence, and no other.

    Attributes:
        sample_logits: float32 [R, V], the rows of each sequence with `num_samples` > 0, in the plan's order.
        prompt: for each sequence that wants logprobs of its prompt and computed some of it.
    """

    sample_logits: Tensor
    prompt: tuple[PromptLogits, ...]


class Runner(Protocol):
    """Runs the model. There is one for plain torch; others use graphs or kernels that run whole layers."""

    def forward(self, plan: StepPlan, *, last: SampledStep | None = None) -> StepLogits:
        """Compute the plan's tokens, write their keys and values to their pages, and give the logits wanted.

        Args:
            plan: not empty.
            last: the step before, needed when a token of the plan is in flight.
        """
        ...

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over new values, in place, as `ossia.model.update.update_weights` does."""
        ...


class PagedAttention:
    """The attention backend over pages, for the tokens of one batch.

    Args:
        cache: where keys and values lie.
        batch: this step's inputs.
        config: the model's.
        dtype: of q, k and v.
    """

    def __init__(self, cache: PagedKVCache, *, batch: Batch, config: ModelConfig, dtype: torch.dtype) -> None:
        self._cache, self._batch, self._dtype = cache, batch, dtype
        self._full = self._plan(None) if has_full_layers(config) else None
        self._sliding = self._plan(config.sliding_window) if has_sliding_layers(config) else None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """q [T, H, C], k and v [T, K, C], sinks [H] -> [T, H, C]."""
        batch = self._batch
        group = batch.full if window is None else batch.sliding
        assert group is not None
        keys, values = self._cache.layer(layer)
        write_kv(k, v, keys=keys, values=values, slot_mapping=group.slot_mapping)
        return paged_attention(
            q,
            keys,
            values,
            block_table=group.block_table,
            cu_seqlens_q=batch.cu_seqlens_q,
            context_lens=batch.context_lens,
            sinks=sinks,
            window=window,
            reads=self._full if window is None else self._sliding,
        )

    def _plan(self, window: int | None) -> PagedReads:
        host = self._batch.host
        group = host.full if window is None else host.sliding
        assert group is not None
        K, C = self._cache.keys[0].shape[2:]
        return plan_reads(
            group.block_table,
            cu_seqlens_q=host.cu_seqlens_q,
            context_lens=host.context_lens,
            window=window,
            page_size=self._cache.page_size,
            token_bytes=K * C * self._dtype.itemsize,
            device=self._cache.device,
        )


class TorchRunner:
    """The model in plain torch, on a CPU or a GPU.

    Args:
        model: whose weights lie on the cache's device.
        cache: in the model's dtype, or float8_e4m3fn.
        routing: where to record which experts each token goes to; None records nothing.
    """

    def __init__(self, model: Transformer, *, cache: PagedKVCache, routing: RoutingPages | None = None) -> None:
        self.model, self.cache, self.routing = model, cache, routing
        self.builder = BatchBuilder(model.config, page_size=cache.page_size, device=cache.device)

    @torch.inference_mode()
    def forward(self, plan: StepPlan, *, last: SampledStep | None = None) -> StepLogits:
        """As `Runner.forward`."""
        batch = self.builder.build(plan, last=last)
        attention = PagedAttention(
            self.cache, batch=batch, config=self.model.config, dtype=self.model.norm.weight.dtype
        )
        router = None
        if self.routing is not None and batch.full is not None:
            router = RoutingRecorder(self.routing, slot_mapping=batch.full.slot_mapping)
        hidden = self.model(batch.token_ids, positions=batch.positions, attention=attention, router=router)
        return step_logits(hidden, batch=batch, to_logits=self.model.logits)

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """As `Runner.update_weights`."""
        update_weights(self.model, weights)


def step_logits(hidden: Tensor, *, batch: Batch, to_logits: Callable[[Tensor], Tensor]) -> StepLogits:
    """hidden [T, D], after the final norm, -> the logits that the batch wants."""
    rows = batch.sample_rows
    logits = to_logits(hidden if rows.shape[0] == hidden.shape[0] else hidden.index_select(0, rows))
    prompt = tuple(
        PromptLogits(wanted.place, wanted.first, hidden[wanted.begin : wanted.end], to_logits)
        for wanted in batch.prompt_rows
    )
    # One pass that reads and writes nothing: a sum is finite only if all its terms are.
    return StepLogits(logits, prompt)


def choose_page_count(
    config: ModelConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    page_size: int = DEFAULT_PAGE_SIZE,
    num_bytes: int | None = None,
    reserved: int = 0,
    max_num_seqs: int = 64,
) -> int:
    """How many pages a cache should have. Call it when the weights are loaded.

    Without `num_bytes`: on a GPU a fixed share of the memory that is free, on a CPU a smaller one and no more than
    4 GiB. Never more than `max_num_seqs` sequences of the model's whole context can use.

    Args:
        config: the model's.
        device: where the cache goes.
        dtype: of the cache.
        page_size: S.
        num_bytes: the memory to use.
        reserved: bytes of a CPU's free memory to leave alone: weights that are mapped and not read yet.
        max_num_seqs: sequences that run at once, at most.

    Raises:
        InvalidInputError: the memory does not hold the fewest pages.
    """
    place = torch.device(device)
    if num_bytes is None:
        if place.type == "cuda":
            num_bytes = int(torch.cuda.mem_get_info(place)[0] * CUDA_SHARE)
        else:
            free = free_memory()
            left = CPU_CAP if free is None else max(0, free - reserved)
            num_bytes = min(int(left * CPU_SHARE), CPU_CAP)
    needed = num_pages_for(config, num_tokens=config.max_position_embeddings, page_size=page_size)
    enough = 1 + max_num_seqs * needed
    return min(enough, pages_in_budget(config, num_bytes=num_bytes, page_size=page_size, dtype=dtype))
