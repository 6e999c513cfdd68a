"""The model on a GPU's own kernels; decoding is replayed from CUDA graphs, one for each batch size served."""

# T tokens, N sequences, D model, V vocabulary, B blocks of a sequence

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.engine.batch import Batch, BatchBuilder, Group, Padding, SampledStep
from ossia.engine.kv_cache import PagedKVCache
from ossia.engine.plan import StepPlan
from ossia.engine.routing import RoutingPages
from ossia.engine.runner import StepLogits, step_logits
from ossia.kernels.gpu.layers import GpuLayers, PagedGroup, StepInputs
from ossia.kernels.gpu.sampling import sample_gpu
from ossia.model.transformer import Transformer

SMALL_SIZES = (1, 2, 4, 8, 16)
SIZE_STEP = 16
"""Above the small sizes, graphs of every multiple."""


class _Graph(NamedTuple):
    """A captured decode step of N sequences: its inputs, to be overwritten, and its logits, float32 [N, V]."""

    graph: torch.cuda.CUDAGraph
    inputs: StepInputs
    logits: Tensor


class WarmUp(NamedTuple):
    """Seconds that a start took: the graphs of decoding, and the kernels of prompts and of sampling."""

    graphs: float
    prompts: float


class CudaRunner:
    """A `Runner` over the GPU kernels. It takes the model's weights over: the model cannot run by itself afterwards.

    Args:
        model: bfloat16 with packed experts, on the GPU.
        cache: bfloat16, on the same GPU.
        max_num_seqs: the largest decode step.
        max_num_tokens: of the largest step with prompts.
        context_length: tokens of the longest sequence.
        routing: where to record which experts each token goes to; None records nothing. It is written by the graphs,
            too, and a sequence that decodes alone then does without the one kernel for all layers.

    Raises:
        InvalidInputError: shapes that the kernels do not take.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        cache: PagedKVCache,
        max_num_seqs: int,
        max_num_tokens: int,
        context_length: int,
        routing: RoutingPages | None = None,
    ) -> None:
        config = model.config
        self.cache = cache
        self.builder = BatchBuilder(config, page_size=cache.page_size, device=cache.device)
        layers = [cache.layer(index) for index in range(config.num_hidden_layers)]
        record = None if routing is None else routing.write_layer
        self._layers = GpuLayers(model, kv_layers=layers, device=cache.device, record=record)
        self._num_blocks = -(-context_length // cache.page_size)
        self._context_length, self._max_num_tokens = context_length, max_num_tokens
        self._sizes = graph_sizes(max_num_seqs)
        self._graphs: dict[int, _Graph] = {}
        shape = (self._sizes[-1], config.vocab_size)
        self._logits = torch.empty(shape, dtype=torch.float32, device=cache.device)  # one for all graphs
        self._pool: Any = None  # torch names the type of its handle nowhere public

    def warm_up(self) -> WarmUp:
        """Capture the graphs of all sizes, and run what else compiles at its first call, so that no request waits."""
        start = time.perf_counter()
        for size in reversed(self._sizes):  # the largest first: the smaller ones then share its memory
            self._get(size)
        torch.cuda.synchronize(self.cache.device)
        captured = time.perf_counter()
        self._run_prompts()
        self._sample()
        torch.cuda.synchronize(self.cache.device)
        return WarmUp(captured - start, time.perf_counter() - captured)

    @torch.inference_mode()
    def forward(self, plan: StepPlan, *, last: SampledStep | None = None) -> StepLogits:
        """As `Runner.forward`. The logits of a decode step are a buffer that the next one overwrites."""
        num_seqs = len(plan.scheduled)
        is_decode = plan.num_tokens == num_seqs == sum(share.num_samples for share in plan.scheduled)
        if not is_decode or num_seqs > self._sizes[-1]:
            batch = self.builder.build(plan, last=last)
            hidden = self._layers.forward(_inputs(batch))
            return step_logits(hidden, batch=batch, to_logits=self._layers.logits)
        size = self._sizes[bisect.bisect_left(self._sizes, num_seqs)]
        batch = self.builder.build(plan, last=last, padding=Padding(size, size, 0))
        graph = self._get(size)
        _fill(graph.inputs, batch)
        graph.graph.replay()
        logits = graph.logits[:num_seqs]
        return StepLogits(logits, ())

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """As `Runner.update_weights`. The graphs read the new values where the old ones were."""
        self._layers.update_weights(weights)

    def _get(self, size: int) -> _Graph:
        if size not in self._graphs:
            self._graphs[size] = self._capture(size)
        return self._graphs[size]

    def _capture(self, size: int) -> _Graph:
        inputs = self._empty_inputs(size)

        def run() -> Tensor:
            return self._layers.logits(self._layers.decode(inputs), out=self._logits[:size])

        side = torch.cuda.Stream(self.cache.device)
        side.wait_stream(torch.cuda.current_stream(self.cache.device))
        with torch.cuda.stream(side):  # compiles kernels and allocates workspaces, which a capture must not do
            run()
        torch.cuda.current_stream(self.cache.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = run()
        self._pool = self._pool or graph.pool()
        return _Graph(graph, inputs, logits)

    @torch.inference_mode()
    def _run_prompts(self) -> None:
        """The largest step with prompts and a small one, of padding: they write to the null page. Also takes the
        memory that such steps need."""
        for num_tokens in sorted({self._max_num_tokens, min(self._max_num_tokens, 2 * SIZE_STEP)}, reverse=True):
            inputs = padding_inputs(
                num_tokens, at_most=self._context_length, page_size=self.cache.page_size, device=self.cache.device
            )
            hidden = self._layers.forward(inputs)
            self._layers.logits(hidden[: self._sizes[-1]])

    @torch.inference_mode()
    def _sample(self) -> None:
        """One draw."""
        logits = torch.zeros(1, self._layers.config.vocab_size, dtype=torch.float32, device=self.cache.device)
        zero = torch.zeros(1, dtype=torch.float64, device=self.cache.device)
        sample_gpu(logits, temperature=zero + 1, uniforms=zero, min_p=zero)

    def _empty_inputs(self, size: int) -> StepInputs:
        """Inputs of padding alone: sequences of no tokens, which write to the null page."""

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.cache.device)

        def group() -> PagedGroup:
            return PagedGroup(zeros(size, self._num_blocks, dtype=torch.int32), zeros(size, dtype=torch.int64))

        return StepInputs(
            token_ids=zeros(size, dtype=torch.int64),
            positions=zeros(size, dtype=torch.int64),
            cu_seqlens_q=torch.arange(size + 1, dtype=torch.int32, device=self.cache.device),
            context_lens=zeros(size, dtype=torch.int32),
            full=group(),
            sliding=group(),
            max_queries=1,
        )


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The batch sizes that graphs are captured for; the last one is at least `max_num_seqs`."""
    top = -(-max_num_seqs // SIZE_STEP) * SIZE_STEP
    sizes = (*SMALL_SIZES, *range(2 * SIZE_STEP, top + 1, SIZE_STEP))
    return tuple(sizes[: bisect.bisect_left(sizes, max_num_seqs) + 1])


def padding_inputs(num_tokens: int, *, at_most: int, page_size: int, device: torch.device) -> StepInputs:
    """A step of prompts that are padding, `at_most` tokens each; all they read and write is the null page."""
    num_seqs = -(-num_tokens // at_most)
    ends = [min(at_most * (index + 1), num_tokens) for index in range(num_seqs)]
    lengths = [end - at_most * index for index, end in enumerate(ends)]
    blocks = torch.zeros(num_seqs, -(-lengths[0] // page_size), dtype=torch.int32, device=device)
    group = PagedGroup(blocks, torch.zeros(num_tokens, dtype=torch.int64, device=device))
    return StepInputs(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        positions=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        cu_seqlens_q=torch.tensor([0, *ends], dtype=torch.int32, device=device),
        context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        full=group,
        sliding=group,
        max_queries=lengths[0],
    )


def _inputs(batch: Batch) -> StepInputs:
    return StepInputs(
        token_ids=batch.token_ids,
        positions=batch.positions,
        cu_seqlens_q=batch.cu_seqlens_q,
        context_lens=batch.context_lens,
        full=_group(batch.full),
        sliding=_group(batch.sliding),
        max_queries=batch.max_queries,
    )


def _group(group: Group | None) -> PagedGroup | None:
    return None if group is None else PagedGroup(group.block_table, group.slot_mapping)


def _fill(inputs: StepInputs, batch: Batch) -> None:
    """Overwrite a graph's inputs. Columns of the block tables behind a sequence's last block keep old entries, which
    nobody reads."""
    inputs.token_ids.copy_(batch.token_ids)
    inputs.positions.copy_(batch.positions)
    inputs.context_lens.copy_(batch.context_lens)
    for held, new in ((inputs.full, batch.full), (inputs.sliding, batch.sliding)):
        if held is not None and new is not None:
            held.block_table[:, : new.block_table.shape[1]].copy_(new.block_table)
            held.slot_mapping.copy_(new.slot_mapping)
