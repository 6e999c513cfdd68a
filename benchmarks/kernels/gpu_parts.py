"""Each kernel of a decode step by itself, over all layers of the 20b's shapes in one CUDA graph: time and bandwidth.

    python benchmarks/kernels/gpu_parts.py --batch 1 8 64

The layers' weights are several times the L2 cache, so every layer's come from memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_decode import PAGE, Cache, copy_bandwidth, graph_of, median_ms

from ossia.kernels.gpu.attention import decode_attention
from ossia.kernels.gpu.experts import down_few, gate_up_few
from ossia.kernels.gpu.layers import GpuLayers
from ossia.kernels.gpu.linear import linear_float, linear_qkv, linear_residual
from ossia.kernels.gpu.residual import ExpertOutputs, residual_norm
from ossia.kernels.gpu.routing import norm_and_route
from ossia.model.config import PUBLISHED
from ossia.model.random_weights import fill_randomly
from ossia.model.transformer import Transformer


def parts_of(layers: GpuLayers, cache: Cache, *, num_seqs: int, context: int) -> dict[str, tuple]:
    """Name -> (what runs it for all layers, bytes that one layer reads, whether it fits so many tokens)."""
    config, inputs = layers.config, cache.decode_inputs(num_seqs, context)
    inputs.token_ids.random_(0, config.vocab_size)
    layers._step.is_possible = False  # the kernels by themselves, also for one sequence
    layers.decode(inputs)
    work, group = layers._workspaces[num_seqs], inputs.full
    A = config.num_experts_per_tok
    distinct = int(work.routing.pair_expert[: num_seqs * A].unique().numel())
    D, F = config.hidden_size, config.intermediate_size

    def each(run) -> object:
        return lambda: [run(layer, index) for index, layer in enumerate(layers.layers)]

    places = {"positions": inputs.positions, "slot_mapping": group.slot_mapping, "rope": layers.rope}
    attended = work.attended.view(num_seqs, -1)
    qkv = lambda layer, i: linear_qkv(  # noqa: E731
        work.normed,
        weight=layer.qkv,
        bias=layer.qkv_bias,
        q=work.q,
        keys=layers.kv_layers[i][0],
        values=layers.kv_layers[i][1],
        **places,
    )
    attend = lambda layer, i: decode_attention(  # noqa: E731
        work.q,
        keys=layers.kv_layers[i][0],
        values=layers.kv_layers[i][1],
        block_table=group.block_table,
        context_lens=inputs.context_lens,
        sinks=layer.sinks,
        window=layer.window,
        scratch=work.scratch,
        out=work.attended,
    )
    route = lambda layer, i: norm_and_route(  # noqa: E731
        work.stream,
        norm=layer.mlp_norm,
        eps=1e-5,
        weight=layer.router,
        bias=layer.router_bias,
        out=work.routing,
        normed=work.placed,
    )
    up = lambda layer, i: gate_up_few(  # noqa: E731
        work.normed,
        packed=layer.gate_up,
        bias=layer.gate_up_bias,
        routing=work.routing,
        alpha=1.702,
        limit=7.0,
        out=work.hidden,
    )
    down = lambda layer, i: down_few(  # noqa: E731
        work.hidden, packed=layer.down, bias=layer.down_bias, routing=work.routing, out=work.parts
    )
    join = lambda layer, i: residual_norm(  # noqa: E731
        work.stream,
        num_tokens=num_seqs,
        norm=layer.attn_norm,
        eps=1e-5,
        experts=ExpertOutputs(work.parts, work.routing),
        stream=work.total,
        normed=work.placed,
    )
    few = num_seqs <= 8
    out = {
        "qkv": (each(qkv), layers.layers[0].qkv.numel() * 2, few),
        "attention": (each(attend), num_seqs * (context + min(context, 128)) / 2 * 2048, True),
        "out": (
            each(lambda layer, i: linear_residual(attended, weight=layer.out, bias=layer.out_bias, stream=work.total)),
            layers.layers[0].out.numel() * 2,
            few,
        ),
        "router": (each(route), layers.layers[0].router.numel() * 2, True),
        "gate_up": (each(up), distinct * 2 * F * D * 17 / 32, True),
        "down": (each(down), distinct * F * D * 17 / 32, True),
        "residual": (each(join), work.parts.numel() * 4, True),
    }
    if few:
        logits = torch.empty(num_seqs, config.vocab_size, device=layers.device)
        out["logits"] = (
            lambda: linear_float(work.normed, weight=layers.lm_head, out=logits),
            layers.lm_head.numel() * 2,
            True,
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--context", type=int, default=192)
    options = parser.parse_args()
    torch.manual_seed(0)
    device, config = torch.device("cuda:0"), PUBLISHED["openai/gpt-oss-20b"]
    bandwidth = copy_bandwidth()
    model = Transformer(config, dtype=torch.bfloat16, device=device, packed_experts=True)
    fill_randomly(model)
    cache = Cache(config, num_seqs=max(options.batch), length=options.context + PAGE, device=device)
    layers = GpuLayers(model, kv_layers=cache.layers, device=device)
    for num_seqs in options.batch:
        print(f"batch {num_seqs}, copy {bandwidth / 1e9:,.0f} GB/s")
        for name, (run, num_bytes, fits) in parts_of(layers, cache, num_seqs=num_seqs, context=options.context).items():
            if not fits:
                continue
            graph = graph_of(run)
            count = 1 if name == "logits" else config.num_hidden_layers
            us = median_ms(graph.replay, rounds=20) * 1e3 / count
            print(f"{name:10} {us:8.2f} us {num_bytes / us / 1e3:8.0f} GB/s {num_bytes / us / 1e-6 / bandwidth:6.0%}")


if __name__ == "__main__":
    main()
