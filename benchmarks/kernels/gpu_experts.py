"""The experts' kernels for few and for many tokens at one layer of the 20b's shape: time, arithmetic and bandwidth.

    python benchmarks/kernels/gpu_experts.py --tokens 16 32 64 128 256 512 1024 8192

A layer's weights are many times the L2 cache. Routing is by random logits, so experts have unequal numbers of tokens.
The limit is the larger of two times: of the bytes of the experts hit at the copy's bandwidth, and of the products at
the rate of a large bfloat16 product.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu_decode import copy_bandwidth, graph_of, matmul_rate, median_ms

from ossia.kernels.gpu.experts import (
    choose_many_tile_size,
    down_few,
    down_many,
    gate_up_few,
    gate_up_many,
    padded_columns,
)
from ossia.kernels.gpu.routing import FEW_TOKENS, RoutingBuffers, norm_and_route, route_many

D = F = 2880
E, A = 32, 4
MOST_FEW = 1024


class Layer(NamedTuple):
    """Packed weights with random codes, and biases."""

    gate_up: Tensor
    gate_up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    router: Tensor
    router_bias: Tensor


def random_layer(device: torch.device) -> Layer:
    def packed(num_rows: int, num_columns: int) -> Tensor:
        shape = (E, num_rows // 16, padded_columns(num_columns) // 64)
        codes = torch.randint(0, 256, (*shape, 512), dtype=torch.uint8, device=device)
        scales = torch.randint(119, 122, (*shape, 32), dtype=torch.uint8, device=device)
        return torch.cat((codes, scales), dim=-1)

    def normal(*shape: int, std: float) -> Tensor:
        return (torch.randn(shape, device=device) * std).bfloat16()

    return Layer(
        packed(2 * F, D),
        normal(E, 2 * F, std=0.02),
        packed(D, F),
        normal(E, D, std=0.02),
        normal(E, D, std=0.02),
        normal(E, std=0.02),
    )


def runs(layer: Layer, *, num_tokens: int) -> dict[str, tuple]:
    """Name -> (what runs it, its output in the order of tokens as float32 when called)."""
    device = layer.router.device
    x = torch.randn(num_tokens, D, device=device).bfloat16()
    P = num_tokens * A
    out = {}

    def add(kind: str, routing: RoutingBuffers, up, down, parts: Tensor) -> None:
        def by_token() -> Tensor:
            up()
            down()
            places = routing.pair_position[:P].long()
            return parts.float().sum(0)[places].view(num_tokens, A, D).sum(1)

        out[f"{kind} gate_up"] = (up, by_token)
        out[f"{kind} down"] = (down, by_token)

    if num_tokens <= MOST_FEW:
        few = RoutingBuffers(num_tokens=num_tokens, num_experts=E, num_active=A, tile_size=FEW_TOKENS, device=device)
        placed = torch.empty(num_tokens, padded_columns(D), dtype=torch.bfloat16, device=device)
        norm = torch.ones(D, dtype=torch.bfloat16, device=device)
        norm_and_route(x, norm=norm, eps=1e-5, weight=layer.router, bias=layer.router_bias, out=few, normed=placed)
        hidden = torch.zeros(P, padded_columns(F), dtype=torch.bfloat16, device=device)
        parts = torch.empty(1, P, D, device=device)
        add(
            "few",
            few,
            lambda: gate_up_few(
                placed, packed=layer.gate_up, bias=layer.gate_up_bias, routing=few, alpha=1.702, limit=7.0, out=hidden
            ),
            lambda: down_few(hidden, packed=layer.down, bias=layer.down_bias, routing=few, out=parts),
            parts,
        )
    size = choose_many_tile_size(P, num_experts=E)
    many = RoutingBuffers(num_tokens=num_tokens, num_experts=E, num_active=A, tile_size=size, device=device)
    normed = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)).bfloat16()
    route_many(normed, weight=layer.router, bias=layer.router_bias, out=many)
    plain_hidden = torch.empty(P, F, dtype=torch.bfloat16, device=device)
    plain = torch.empty(1, P, D, dtype=torch.bfloat16, device=device)
    add(
        "many",
        many,
        lambda: gate_up_many(
            normed,
            packed=layer.gate_up,
            bias=layer.gate_up_bias,
            routing=many,
            alpha=1.702,
            limit=7.0,
            out=plain_hidden,
        ),
        lambda: down_many(plain_hidden, packed=layer.down, bias=layer.down_bias, routing=many, out=plain),
        plain,
    )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 32, 64, 128, 256, 512, 1024, 8192])
    options = parser.parse_args()
    torch.manual_seed(0)
    layer = random_layer(torch.device("cuda:0"))
    bandwidth, flops = copy_bandwidth(), matmul_rate()
    print(f"copy {bandwidth / 1e9:,.0f} GB/s, matmul {flops / 1e12:,.0f} TFLOP/s")
    for num_tokens in options.tokens:
        for name, (run, _) in runs(layer, num_tokens=num_tokens).items():
            us = median_ms(graph_of(run).replay, rounds=10) * 1e3
            rows = 2 * F if "gate_up" in name else D
            work, num_bytes = 2 * num_tokens * A * rows * D, min(E, num_tokens * A) * rows * D * 17 / 32
            limit = max(work / flops, num_bytes / bandwidth) * 1e6
            print(
                f"{num_tokens:6} {name:26} {us:8.1f} us {work / us / 1e6:6.0f} TFLOP/s "
                f"{num_bytes / us / 1e3:6.0f} GB/s {limit / us:5.0%} of the limit"
            )


if __name__ == "__main__":
    main()
