"""The model on the C++ kernels for the CPU: a step is one call."""

# T tokens, D model, R rows of output

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ossia.engine.batch import Batch, BatchBuilder, Group, SampledStep
from ossia.engine.kv_cache import PagedKVCache
from ossia.engine.plan import StepPlan
from ossia.engine.routing import RoutingPages
from ossia.engine.runner import PromptLogits, StepLogits
from ossia.kernels.native_model import NativeBatch, NativeCache, NativeModel
from ossia.model.transformer import Transformer
from ossia.model.update import update_weights


class NativeRunner:
    """A `Runner` over the compiled kernels.

    Args:
        model: on the CPU, float32 or bfloat16, experts dense or packed.
        cache: on the CPU, float32, bfloat16 or float8_e4m3fn.
        quantize: "q8" keeps attention's projections and lm_head in 8 bits, "bf12" in 12 bits without loss; None leaves
            them as they are.
        routing: where to record which experts each token goes to; None records nothing.

    Attributes:
        native: the model as the kernels see it.
        pages: the cache as they see it.

    Raises:
        InvalidInputError: weights or a cache that the kernels do not take.
        OssiaError: the kernels are not in use here.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        cache: PagedKVCache,
        quantize: str | None = None,
        routing: RoutingPages | None = None,
    ) -> None:
        self.model, self.cache, self.routing = model, cache, routing
        self.builder = BatchBuilder(model.config, page_size=cache.page_size, device="cpu")
        self.native = NativeModel(model, quantize=quantize)
        layers = [cache.layer(index) for index in range(model.config.num_hidden_layers)]
        self.pages = NativeCache([keys for keys, _ in layers], [values for _, values in layers])

    @torch.inference_mode()
    def forward(self, plan: StepPlan, *, last: SampledStep | None = None) -> StepLogits:
        """As `Runner.forward`."""
        batch = self.builder.build(plan, last=last)
        num_samples = batch.sample_rows.shape[0]
        rows = [batch.sample_rows, *(torch.arange(wanted.begin, wanted.end) for wanted in batch.prompt_rows)]
        chosen = None
        if self.routing is not None:
            config = self.model.config
            shape = (config.num_hidden_layers, len(batch.token_ids), config.num_experts_per_tok)
            chosen = torch.empty(shape, dtype=torch.int32)
        out = self.native.step(
            self._inputs(batch),
            out_rows=torch.cat(rows).to(torch.int32),
            needs_logits=not batch.prompt_rows and num_samples > 0,
            needs_hidden=bool(batch.prompt_rows),
            chosen=chosen,
        )
        if self.routing is not None and chosen is not None and batch.full is not None:
            self.routing.write(chosen, slot_mapping=batch.full.slot_mapping)
        if out.hidden is None:
            logits = self._empty() if out.logits is None else out.logits
            return StepLogits(logits, ())
        # A prompt's logits could be larger than the model: they are made piece by piece, when they are wanted.
        logits = self._to_logits(out.hidden[:num_samples])
        return StepLogits(logits, self._prompt_logits(batch, out.hidden[num_samples:]))

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """As `Runner.update_weights`; also for a model whose weights changed where they lie."""
        update_weights(self.model, weights)
        self.native.refresh()

    def _inputs(self, batch: Batch) -> NativeBatch:
        groups = [group for group in (batch.full, batch.sliding) if group is not None]
        full, sliding = groups[0], groups[-1]  # a model with layers of one kind has one group
        return NativeBatch(
            ids=batch.token_ids,
            positions=batch.positions,
            cu_seqlens=batch.cu_seqlens_q,
            block_tables=(_table(full), _table(sliding)),
            slot_mappings=(full.slot_mapping, sliding.slot_mapping),
            cache=self.pages,
        )

    def _prompt_logits(self, batch: Batch, hidden: Tensor) -> tuple[PromptLogits, ...]:
        found: list[PromptLogits] = []
        begin = 0
        for wanted in batch.prompt_rows:
            end = begin + wanted.end - wanted.begin
            found.append(PromptLogits(wanted.place, wanted.first, hidden[begin:end], self._to_logits))
            begin = end
        return tuple(found)

    def _to_logits(self, hidden: Tensor) -> Tensor:
        """hidden float32 [R, D] -> float32 [R, V]."""
        return self.native.logits(hidden.contiguous())

    def _empty(self) -> Tensor:
        return torch.empty(0, self.model.config.vocab_size)


def _table(group: Group) -> Tensor:
    return group.block_table.contiguous()
