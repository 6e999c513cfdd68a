"""Each part of a step by itself, over some layers of the 20b's shapes in one CUDA graph: time and bandwidth.

    python benchmarks/kernels/gpu_parts.py --batch 1 8 64 512 --context 640
    python benchmarks/kernels/gpu_parts.py --batch --prompts 1 16 --tokens 8192

Four layers' weights are 36 times the L2 cache, so every layer's come from memory. Times are a layer's, of attention one
for each kind of layer; `logits`, `is finite` and `argmax` are a step's.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_decode import PAGE, Cache, copy_bandwidth, graph_of, median_ms

from ossia.kernels.gpu import experts
from ossia.kernels.gpu.attention import decode_attention
from ossia.kernels.gpu.expert_layer import ROUTE_ALONE_UP_TO, ExpertBuffers
from ossia.kernels.gpu.layers import GpuLayers, PagedGroup, StepInputs
from ossia.kernels.gpu.linear import MAX_TOKENS, linear_qkv, linear_residual
from ossia.kernels.gpu.prefill import plan_queries, prefill_attention
from ossia.kernels.gpu.residual import ExpertOutputs, residual_norm, rope_and_store
from ossia.kernels.gpu.routing import norm_and_route, route_many
from ossia.kernels.gpu.weights import GpuLayer
from ossia.model.config import PUBLISHED
from ossia.model.random_weights import fill_randomly
from ossia.model.transformer import Transformer


class Part(NamedTuple):
    """What runs it in one layer, the bytes that it must read, and in which layers: of this window, or in all."""

    run: Callable[[GpuLayer, int], Any]
    num_bytes: float = 0
    window: int | str | None = "any"


class Tokens(NamedTuple):
    """T tokens on their way through a layer."""

    stream: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    total: torch.Tensor


def make_tokens(layers: GpuLayers, num_tokens: int) -> Tokens:
    config = layers.config
    D, rows = config.hidden_size, config.num_attention_heads * config.head_dim

    def normal(columns: int) -> torch.Tensor:
        return torch.randn(num_tokens, columns, device=layers.device).bfloat16()

    return Tokens(normal(D), normal(D), normal(layers.layers[0].qkv.shape[0]), normal(rows), normal(D))


def dense_parts(layers: GpuLayers, tokens: Tokens, inputs: StepInputs) -> Iterator[tuple[str, Part]]:
    """qkv with rope, and the output projection."""
    group, H, C = inputs.full, layers.config.num_attention_heads, layers.config.head_dim
    assert group is not None
    places = {"positions": inputs.positions, "slot_mapping": group.slot_mapping, "rope": layers.rope}
    T = tokens.stream.shape[0]
    qkv_bytes, out_bytes = layers.layers[0].qkv.numel() * 2, layers.layers[0].out.numel() * 2
    q = tokens.attended.view(T, H, C)

    def pages(i: int) -> dict[str, torch.Tensor]:
        return {"keys": layers.kv_layers[i][0], "values": layers.kv_layers[i][1]}

    if T <= MAX_TOKENS:
        yield (
            "qkv",
            Part(
                lambda layer, i: linear_qkv(
                    tokens.normed, weight=layer.qkv, bias=layer.qkv_bias, q=q, **pages(i), **places
                ),
                qkv_bytes,
            ),
        )
        yield (
            "out",
            Part(
                lambda layer, _: linear_residual(
                    tokens.attended, weight=layer.out, bias=layer.out_bias, stream=tokens.total
                ),
                out_bytes,
            ),
        )
        return
    yield "qkv", Part(lambda layer, _: functional.linear(tokens.normed, layer.qkv, layer.qkv_bias), qkv_bytes)
    yield "rope", Part(lambda _, i: rope_and_store(tokens.qkv, H=H, **pages(i), **places), tokens.qkv.numel() * 2)
    yield "out", Part(lambda layer, _: functional.linear(tokens.attended, layer.out, layer.out_bias), out_bytes)


def attention_parts(layers: GpuLayers, tokens: Tokens, inputs: StepInputs) -> Iterator[tuple[str, Part]]:
    """Decode's or prompts' kernel, by kind of layer."""
    config, group = layers.config, inputs.full
    assert group is not None
    T = tokens.stream.shape[0]
    out = tokens.attended.view(T, config.num_attention_heads, config.head_dim)
    table = {"block_table": group.block_table, "context_lens": inputs.context_lens, "out": out}
    is_decode = inputs.max_queries == 1
    if is_decode:
        layers._step.is_possible = False  # the kernels by themselves, also for one sequence
        layers.decode(inputs)
        scratch = layers._workspaces[T].scratch
    else:
        heads = config.num_attention_heads // config.num_key_value_heads
        blocks = plan_queries(inputs.cu_seqlens_q, num_tokens=T, group=heads)

    def attend(layer: GpuLayer, i: int) -> None:
        keys, values = layers.kv_layers[i]
        common = {"keys": keys, "values": values, "sinks": layer.sinks, "window": layer.window, **table}
        if is_decode:
            decode_attention(tokens.qkv, scratch=scratch, **common)
        else:
            prefill_attention(tokens.qkv, cu_seqlens_q=inputs.cu_seqlens_q, blocks=blocks, **common)

    contexts = inputs.context_lens.sum().item() * 2 * config.num_key_value_heads * config.head_dim * 2
    most = inputs.context_lens.clamp(max=config.sliding_window).sum().item() / inputs.context_lens.sum().item()
    yield "attention, full", Part(attend, contexts, None)
    yield "attention, window", Part(attend, contexts * most if is_decode else contexts, config.sliding_window)


def expert_parts(layers: GpuLayers, tokens: Tokens) -> Iterator[tuple[str, Part]]:
    """Router, both products and the way back to the stream."""
    config, T = layers.config, tokens.stream.shape[0]
    D, F, A = config.hidden_size, config.intermediate_size, config.num_experts_per_tok
    buffers = ExpertBuffers(config, num_tokens=T, device=layers.device)
    routing = buffers.routing
    kinds = {"out": buffers.hidden, "routing": routing, "alpha": config.swiglu_alpha, "limit": config.swiglu_limit}
    total = torch.empty_like(tokens.stream)
    gate_up = experts.gate_up_many if buffers.is_many else experts.gate_up_few
    down = experts.down_many if buffers.is_many else experts.down_few

    def norm(layer: GpuLayer, _: int) -> None:
        residual_norm(
            tokens.stream,
            num_tokens=T,
            norm=layer.mlp_norm,
            eps=1e-5,
            update=tokens.total,
            stream=total,
            normed=buffers.normed,
        )

    is_alone = not buffers.is_many or T <= ROUTE_ALONE_UP_TO

    def route(layer: GpuLayer, _: int) -> None:
        if not is_alone:
            route_many(buffers.normed, weight=layer.router, bias=layer.router_bias, out=routing)
        else:
            norm_and_route(
                tokens.stream,
                norm=layer.mlp_norm,
                eps=1e-5,
                weight=layer.router,
                bias=layer.router_bias,
                out=routing,
                normed=buffers.normed,
                is_placed=not buffers.is_many,
            )

    if not is_alone:
        norm(layers.layers[0], 0)
        yield "norm", Part(norm, T * D * 6)
    route(layers.layers[0], 0)
    distinct = int(routing.pair_expert[: T * A].unique().numel())
    yield "router", Part(route, layers.layers[0].router.numel() * 2)
    yield (
        "gate_up",
        Part(
            lambda layer, _: gate_up(buffers.normed, packed=layer.gate_up, bias=layer.gate_up_bias, **kinds),
            distinct * 2 * F * D * 17 / 32,
        ),
    )
    yield (
        "down",
        Part(
            lambda layer, _: down(
                buffers.hidden, packed=layer.down, bias=layer.down_bias, routing=routing, out=buffers.parts
            ),
            distinct * F * D * 17 / 32,
        ),
    )
    total = torch.empty_like(tokens.stream)
    yield (
        "residual",
        Part(
            lambda layer, _: residual_norm(
                tokens.stream,
                num_tokens=T,
                norm=layer.attn_norm,
                eps=1e-5,
                experts=ExpertOutputs(buffers.parts, routing),
                stream=total,
                normed=tokens.normed,
            ),
            buffers.parts.numel() * buffers.parts.element_size(),
        ),
    )


def prompt_inputs(cache: Cache, *, num_prompts: int, num_tokens: int) -> StepInputs:
    """So many prompts of equal length, from their beginnings."""
    each = num_tokens // num_prompts
    one = cache.prompt_inputs(num_tokens, cache.config.vocab_size)
    assert one.full is not None
    group = PagedGroup(one.full.block_table.view(-1)[: num_tokens // PAGE].view(num_prompts, -1), one.full.slot_mapping)
    return one._replace(
        positions=one.positions % each,
        cu_seqlens_q=torch.arange(0, num_tokens + 1, each, dtype=torch.int32, device=cache.device),
        context_lens=torch.full((num_prompts,), each, dtype=torch.int32, device=cache.device),
        full=group,
        sliding=group,
        max_queries=each,
    )


def show(name: str, work: Callable[[], Any], *, count: int, num_bytes: float, bandwidth: float) -> float:
    """Print a part's time and give it in us."""
    us = median_ms(graph_of(work).replay, rounds=10) * 1e3 / count
    rate = num_bytes / us * 1e6
    print(f"{name:18} {us:9.2f} us {rate / 1e9:7.0f} GB/s {rate / bandwidth:5.0%}", flush=True)
    return us


def bench(layers: GpuLayers, inputs: StepInputs, *, bandwidth: float) -> None:
    """All parts of a step, and their sum over a model of 24 layers."""
    tokens = make_tokens(layers, inputs.token_ids.shape[0])
    inputs.token_ids.random_(0, layers.config.vocab_size)
    parts = dict(attention_parts(layers, tokens, inputs))
    parts |= dict(dense_parts(layers, tokens, inputs)) | dict(expert_parts(layers, tokens))
    whole = 0.0
    for name, part in parts.items():
        chosen = [(x, i) for i, x in enumerate(layers.layers) if part.window in ("any", x.window)]
        us = show(
            name,
            lambda part=part, chosen=chosen: [part.run(layer, i) for layer, i in chosen],
            count=len(chosen),
            num_bytes=part.num_bytes,
            bandwidth=bandwidth,
        )
        whole += us * (24 if part.window == "any" else 12)
    rows = tokens.normed if inputs.max_queries == 1 else tokens.normed[inputs.cu_seqlens_q[1:].long() - 1]
    logits = layers.logits(rows)
    num_bytes = logits.numel() * 4
    for name, work, size in (
        ("logits", lambda: layers.logits(rows), layers.lm_head.numel() * 2),
        ("is finite", lambda: logits.sum(dim=-1).isfinite(), num_bytes),
        ("argmax", lambda: logits.max(dim=-1), num_bytes),
    ):
        whole += show(name, work, count=1, num_bytes=size, bandwidth=bandwidth)
    print(f"sum of 24 layers   {whole / 1e3:9.2f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--prompts", type=int, nargs="*", default=[], help="cut --tokens into so many prompts")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda:0")
    config = dataclasses.replace(PUBLISHED["openai/gpt-oss-20b"], num_hidden_layers=options.layers, layer_types=())
    bandwidth = copy_bandwidth()
    model = Transformer(config, dtype=torch.bfloat16, device=device, packed_experts=True)
    fill_randomly(model)
    length = options.context + PAGE
    cache = Cache(config, num_seqs=max([1, *options.batch]), length=length, device=device)
    layers = GpuLayers(model, kv_layers=cache.layers, device=device)
    for num_seqs in options.batch:
        print(f"batch {num_seqs}, context {options.context}, copy {bandwidth / 1e9:,.0f} GB/s")
        bench(layers, cache.decode_inputs(num_seqs, options.context), bandwidth=bandwidth)
    if options.prompts:
        cache = Cache(config, num_seqs=1, length=options.tokens, device=device)
        layers.use_cache(cache.layers)
    for num_prompts in options.prompts:
        print(f"{num_prompts} prompts, {options.tokens} tokens in all")
        inputs = prompt_inputs(cache, num_prompts=num_prompts, num_tokens=options.tokens)
        bench(layers, inputs, bandwidth=bandwidth)


if __name__ == "__main__":
    main()
