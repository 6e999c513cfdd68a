"""A layer's norm, router and experts for a batch of any size: which kernels, and the buffers between them."""

# T tokens, P pairs, D model, F expert hidden

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ossia.kernels.gpu.experts import (
    choose_many_tile_size,
    down_few,
    down_many,
    gate_up_few,
    gate_up_many,
    padded_columns,
)
from ossia.kernels.gpu.residual import ExpertOutputs, residual_norm
from ossia.kernels.gpu.routing import FEW_TOKENS, RoutingBuffers, norm_and_route, route_many
from ossia.kernels.gpu.weights import GpuLayer

MANY_FROM = 8
"""Tokens an expert on average, from which on the experts' kernels for many are faster, as measured on an H100."""
ROUTE_ALONE_UP_TO = 128
"""Tokens up to which one kernel that norms and routes is faster than a norm, a product and two kernels behind it."""

SPLIT_UP_TO = 16
"""Tokens up to which the columns of `down_few` are dealt in two parts: few units would fill the warps unevenly."""


class ExpertBuffers:
    """What the kernels of one layer's experts hand on; serves all layers in turn, and graphs hold its addresses.

    Args:
        config: the model's.
        num_tokens: T.
        device: the GPU.
    """

    def __init__(self, config: Any, *, num_tokens: int, device: torch.device) -> None:
        D, F = config.hidden_size, config.intermediate_size
        E, A = config.num_local_experts, config.num_experts_per_tok
        P = num_tokens * A

        def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.is_many = P >= MANY_FROM * E
        tile_size = choose_many_tile_size(P, num_experts=E) if self.is_many else FEW_TOKENS
        self.routing = RoutingBuffers(
            num_tokens=num_tokens, num_experts=E, num_active=A, tile_size=tile_size, device=device
        )
        if self.is_many:
            self.normed, self.hidden, self.parts = empty(num_tokens, D), empty(P, F), empty(1, P, D)
        else:
            self.normed, self.hidden = empty(num_tokens, padded_columns(D)), empty(P, padded_columns(F)).zero_()
            num_parts = 2 if num_tokens <= SPLIT_UP_TO else 1
            self.parts = empty(num_parts, P, D, dtype=torch.float32)


def run_experts(
    layer: GpuLayer,
    *,
    config: Any,
    buffers: ExpertBuffers,
    stream: Tensor,
    update: Tensor | None,
    total: Tensor | None,
) -> ExpertOutputs:
    """The experts of the norm of stream plus update.

    Args:
        layer: whose.
        config: the model's.
        buffers: of this number of tokens; overwritten.
        stream: bfloat16 [T, D].
        update: [T, D] to be added first; None for nothing.
        total: [T, D], written with that sum, if there is an update; not the stream itself.

    Returns:
        The outputs, in the buffers.
    """
    routing = buffers.routing
    activation = {"alpha": config.swiglu_alpha, "limit": config.swiglu_limit}
    router = {"weight": layer.router, "bias": layer.router_bias, "out": routing}
    up = {"packed": layer.gate_up, "bias": layer.gate_up_bias, "routing": routing, "out": buffers.hidden}
    down = {"packed": layer.down, "bias": layer.down_bias, "routing": routing}
    norm = {"norm": layer.mlp_norm, "eps": config.rms_norm_eps, "update": update, "normed": buffers.normed}
    if buffers.is_many and stream.shape[0] <= ROUTE_ALONE_UP_TO:
        norm_and_route(stream, total=total, is_placed=False, **norm, **router)
    elif buffers.is_many:
        residual_norm(stream, num_tokens=stream.shape[0], stream=total, **norm)
        route_many(buffers.normed, **router)
    if buffers.is_many:
        gate_up_many(buffers.normed, **up, **activation)
        down_many(buffers.hidden, **down, out=buffers.parts)
    else:
        norm_and_route(stream, total=total, **norm, **router)
        gate_up_few(buffers.normed, **up, **activation)
        down_few(buffers.hidden, **down, out=buffers.parts)
    return ExpertOutputs(buffers.parts, routing)
