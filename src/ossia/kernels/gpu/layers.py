"""The whole model on one GPU: embedding, all layers, final norm and logits.

One sequence that decodes takes one kernel for all layers (step.py). Up to 8 take seven kernels a layer, each starting
to fetch its weights while the one before it ends. More take the same kernels for attention and experts, and cuBLAS for
the dense products. Prompts and mixed batches take kernels made for many tokens. All read their inputs from device
tensors and wait for nothing on the host, so that decoding can be captured in a CUDA graph.

The same token in a batch of another size takes another way, whose sums have another order: its logits agree within
bfloat16's rounding of the stream, not to the bit. Within one way they do not depend on the rest of the batch.
"""

# T tokens, N sequences, D model, H heads, K KV heads, C head dim, E experts, A active experts, F expert hidden, V vocab

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ossia.kernels.gpu.attention import DecodeScratch, check_heads, decode_attention
from ossia.kernels.gpu.expert_layer import ExpertBuffers, run_experts
from ossia.kernels.gpu.linear import MAX_TOKENS, linear_float, linear_qkv, linear_residual
from ossia.kernels.gpu.prefill import QueryBlocks, plan_queries, prefill_attention
from ossia.kernels.gpu.residual import residual_norm, rope_and_store
from ossia.kernels.gpu.routing import RoutingBuffers
from ossia.kernels.gpu.step import DecodeStep
from ossia.kernels.gpu.weights import GpuLayer, take_layer, update_layer


class PagedGroup(NamedTuple):
    """What layers of one kind share: block_table int32 [N, columns] and slot_mapping int64 [T]."""

    block_table: Tensor
    slot_mapping: Tensor


class StepInputs(NamedTuple):
    """A step's inputs, all on the GPU (see the contract of the paged cache).

    Attributes:
        token_ids: int64 [T].
        positions: int64 [T].
        cu_seqlens_q: int32 [N + 1].
        context_lens: int32 [N], tokens held after this step; 0 for padding.
        full: for layers with full attention, if there are any.
        sliding: for layers with a window.
        max_queries: of one sequence; 1 when all decode.
    """

    token_ids: Tensor
    positions: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor
    full: PagedGroup | None
    sliding: PagedGroup | None
    max_queries: int


class Record(Protocol):
    """Takes the experts of a step's tokens in one layer; must not wait on the host, for graphs capture it."""

    def __call__(self, layer: int, chosen: Tensor, *, slot_mapping: Tensor) -> None: ...


class _Workspace:
    """The buffers of one batch size; a graph holds their addresses."""

    def __init__(self, layers: GpuLayers, num_tokens: int) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=layers.device)

        config, N = layers.config, num_tokens
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.stream, self.total, self.normed = empty(N, D), empty(N, D), empty(N, D)
        self.q, self.attended = empty(N, H, C), empty(N, H, C)
        self.experts = ExpertBuffers(config, num_tokens=N, device=layers.device)
        self.scratch = DecodeScratch(num_sequences=N, num_kv_heads=K, head_dim=C, device=layers.device)


class GpuLayers:
    """A model's weights re-laid for the GPU, and what runs them.

    Args:
        model: a `Transformer` in bfloat16 with packed experts, on the GPU or the CPU. Its packed experts are moved and
            released layer by layer; afterwards it cannot run by itself.
        kv_layers: keys and values of each layer, bfloat16 [P, S, K, C] each.
        device: the GPU.
        record: told the experts of every token: layer, int32 [T, A], and slot_mapping [T] of the full layers.

    Raises:
        InvalidInputError: shapes that the kernels do not take.
    """

    def __init__(
        self,
        model: Any,
        *,
        kv_layers: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
        record: Record | None = None,
    ) -> None:
        config = model.config
        check_heads(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            page_size=kv_layers[0][0].shape[1],
        )
        self.config, self.device, self._record = config, device, record
        self.layers: list[GpuLayer] = []
        for index, layer in enumerate(model.layers):
            self.layers.append(take_layer(layer, window=config.window(index), device=device))
        self.embedding = model.embed_tokens.weight.detach().to(device)
        self.final_norm = model.norm.weight.detach().to(device)
        self.lm_head = model.lm_head.weight.detach().to(device)
        self.rope = model.rope(device)
        self._workspaces: dict[int, _Workspace] = {}
        self.use_cache(kv_layers)

    def use_cache(self, kv_layers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Change to other pages; graphs that were captured before keep the old ones."""
        self.kv_layers = list(kv_layers)
        self._step = DecodeStep(
            self.config,
            layers=self.layers,
            kv_layers=self.kv_layers,
            embedding=self.embedding,
            final_norm=self.final_norm,
            rope=self.rope,
            device=self.device,
        )

    @torch.no_grad()
    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Write a dense model's weights, by parameter name, over these; experts are rounded to MXFP4.

        Addresses stay, so graphs that were captured run with the new values.
        """
        self.embedding.copy_(weights["embed_tokens.weight"])
        self.final_norm.copy_(weights["norm.weight"])
        self.lm_head.copy_(weights["lm_head.weight"])
        for index, layer in enumerate(self.layers):
            update_layer(layer, weights, prefix=f"layers.{index}.")

    @torch.inference_mode()
    def decode(self, inputs: StepInputs) -> Tensor:
        """Run a step in which every sequence has one query.

        Returns:
            bfloat16 [N, D], after the final norm: a buffer that the next step of N sequences overwrites.
        """
        N = inputs.token_ids.shape[0]
        if N == 1 and self._step.is_possible and self._record is None:
            return self._step.run(
                token_id=inputs.token_ids,
                position=inputs.positions,
                context_len=inputs.context_lens,
                full=inputs.full,
                sliding=inputs.sliding,
            )
        if N not in self._workspaces:
            self._workspaces[N] = _Workspace(self, N)
        work = self._workspaces[N]
        first = self.layers[0]
        residual_norm(
            self.embedding,
            num_tokens=N,
            norm=first.attn_norm,
            eps=self.config.rms_norm_eps,
            index=inputs.token_ids,
            stream=work.stream,
            normed=work.normed,
        )
        for index, layer in enumerate(self.layers):
            norm = self.layers[index + 1].attn_norm if index + 1 < len(self.layers) else self.final_norm
            self._decode_layer(layer, index, inputs, work, norm)
        return work.normed

    @torch.inference_mode()
    def forward(self, inputs: StepInputs) -> Tensor:
        """Run any step: chunks of prompts, drafts to verify, decoding sequences among them.

        Returns:
            bfloat16 [T, D], after the final norm.
        """
        T, D = inputs.token_ids.shape[0], self.config.hidden_size
        if inputs.max_queries == 1:
            return self.decode(inputs)
        stream = torch.empty(T, D, dtype=torch.bfloat16, device=self.device)
        normed, total = torch.empty_like(stream), torch.empty_like(stream)
        eps = self.config.rms_norm_eps
        residual_norm(
            self.embedding,
            num_tokens=T,
            norm=self.layers[0].attn_norm,
            eps=eps,
            index=inputs.token_ids,
            stream=stream,
            normed=normed,
        )
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        blocks = plan_queries(inputs.cu_seqlens_q, num_tokens=T, group=group)
        buffers = ExpertBuffers(self.config, num_tokens=T, device=self.device)
        for index, layer in enumerate(self.layers):
            norm = self.layers[index + 1].attn_norm if index + 1 < len(self.layers) else self.final_norm
            update = self._attend(layer, index, inputs, normed, blocks)
            experts = run_experts(layer, config=self.config, buffers=buffers, stream=stream, update=update, total=total)
            self._note(index, experts.routing, inputs)
            residual_norm(total, num_tokens=T, norm=norm, eps=eps, experts=experts, stream=stream, normed=normed)
        return normed

    def _attend(self, layer: GpuLayer, index: int, inputs: StepInputs, normed: Tensor, blocks: QueryBlocks) -> Tensor:
        """The attention's addition to the stream, [T, D]."""
        group = inputs.full if layer.window is None else inputs.sliding
        assert group is not None
        keys, values = self.kv_layers[index]
        H, C = self.config.num_attention_heads, self.config.head_dim
        qkv = functional.linear(normed, layer.qkv, layer.qkv_bias)
        rope_and_store(
            qkv,
            rope=self.rope,
            positions=inputs.positions,
            slot_mapping=group.slot_mapping,
            keys=keys,
            values=values,
            H=H,
        )
        out = torch.empty(normed.shape[0], H, C, dtype=torch.bfloat16, device=self.device)
        prefill_attention(
            qkv,
            keys=keys,
            values=values,
            block_table=group.block_table,
            cu_seqlens_q=inputs.cu_seqlens_q,
            context_lens=inputs.context_lens,
            sinks=layer.sinks,
            window=layer.window,
            blocks=blocks,
            out=out,
        )
        return functional.linear(out.flatten(1), layer.out, layer.out_bias)

    def _note(self, index: int, routing: RoutingBuffers, inputs: StepInputs) -> None:
        """Hand a layer's choices to whoever records them."""
        if self._record is not None and inputs.full is not None:
            chosen = routing.pair_expert[: routing.num_pairs].view(-1, routing.num_active)
            self._record(index, chosen, slot_mapping=inputs.full.slot_mapping)

    def logits(self, hidden: Tensor, *, out: Tensor | None = None) -> Tensor:
        """hidden bfloat16 [N, D] -> float32 [N, V], in `out` if it is given."""
        if out is None:
            out = torch.empty(hidden.shape[0], self.lm_head.shape[0], dtype=torch.float32, device=self.device)
        if 0 < hidden.shape[0] <= MAX_TOKENS:
            linear_float(hidden.contiguous(), weight=self.lm_head, out=out)
            return out
        return torch.mm(hidden, self.lm_head.T, out_dtype=torch.float32, out=out)

    def _decode_layer(self, layer: GpuLayer, index: int, inputs: StepInputs, work: _Workspace, norm: Tensor) -> None:
        """Stream and normed stream in, both out again, in the workspace; `norm` is the next layer's."""
        config = self.config
        group = inputs.full if layer.window is None else inputs.sliding
        assert group is not None
        keys, values = self.kv_layers[index]
        num_tokens = work.stream.shape[0]
        is_few = num_tokens <= MAX_TOKENS
        places = {
            "positions": inputs.positions,
            "slot_mapping": group.slot_mapping,
            "keys": keys,
            "values": values,
            "rope": self.rope,
        }
        if is_few:
            linear_qkv(work.normed, weight=layer.qkv, bias=layer.qkv_bias, q=work.q, **places)
            q = work.q
        else:
            qkv = functional.linear(work.normed, layer.qkv, layer.qkv_bias)
            rope_and_store(qkv, H=config.num_attention_heads, **places)
            q = qkv
        decode_attention(
            q,
            keys=keys,
            values=values,
            block_table=group.block_table,
            context_lens=inputs.context_lens,
            sinks=layer.sinks,
            window=layer.window,
            scratch=work.scratch,
            out=work.attended,
        )
        attended = work.attended.view(num_tokens, -1)
        update = None
        if is_few:
            linear_residual(attended, weight=layer.out, bias=layer.out_bias, stream=work.stream)
        else:
            update = functional.linear(attended, layer.out, layer.out_bias)
        experts = run_experts(
            layer,
            config=config,
            buffers=work.experts,
            stream=work.stream,
            update=update,
            total=None if is_few else work.total,
        )
        self._note(index, experts.routing, inputs)
        residual_norm(
            work.stream if is_few else work.total,
            num_tokens=num_tokens,
            norm=norm,
            eps=config.rms_norm_eps,
            experts=experts,
            stream=work.stream,
            normed=work.normed,
        )
