"""One layer's weights as the GPU kernels take them, and how they are made from a model's modules."""

# D model, F expert hidden, E experts, H heads, K KV heads, C head dim

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.gpu.experts import pack_experts
from ossia.kernels.mxfp4 import pack_mxfp4


class GpuLayer(NamedTuple):
    """Weights of one layer on the GPU: bfloat16, the experts' matrices packed by `pack_experts`.

    Attributes:
        window: how many keys a query sees; None for all.
    """

    attn_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2 K) C, D]
    qkv_bias: Tensor
    out: Tensor  # [D, H C]
    out_bias: Tensor
    sinks: Tensor  # [H]
    mlp_norm: Tensor  # [D]
    router: Tensor  # [E, D]
    router_bias: Tensor
    gate_up: Tensor  # uint8 [E, 2 F / 16, ., 544]
    gate_up_bias: Tensor  # [E, 2 F]
    down: Tensor  # uint8 [E, D / 16, ., 544]
    down_bias: Tensor  # [E, D]
    window: int | None


def take_layer(layer: Any, *, window: int | None, device: torch.device) -> GpuLayer:
    """Prepare one `Layer` of the model and release its packed experts, so that they never lie twice for long.

    Args:
        layer: of model/transformer.py, on any device, experts packed. Its experts are empty afterwards.
        window: the layer's.
        device: a GPU.
    """
    experts = layer.mlp.experts
    if not experts.is_packed:
        raise InvalidInputError(
            "the GPU kernels take experts packed in MXFP4; load the model with packed_experts=True",
            param="packed_experts",
        )

    def moved(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=device, dtype=torch.bfloat16).contiguous()

    packed = []
    for name in ("gate_up", "down"):
        blocks, scales = (getattr(experts, f"{name}_{part}").to(device) for part in ("blocks", "scales"))
        packed.append(pack_experts(blocks.contiguous(), scales=scales.contiguous()))
        for part in ("blocks", "scales"):
            setattr(experts, f"{name}_{part}", torch.empty(0, dtype=torch.uint8, device=device))
        del blocks, scales
        if device.type == "cuda":
            # The next packed tensor must not take a part of the hole that this one's source left: the rest of the hole
            # would be lost, half a gigabyte a layer of the 120b.
            torch.cuda.empty_cache()
    return GpuLayer(
        attn_norm=moved(layer.attn_norm.weight),
        qkv=moved(layer.attn.qkv.weight),
        qkv_bias=moved(layer.attn.qkv.bias),
        out=moved(layer.attn.out.weight),
        out_bias=moved(layer.attn.out.bias),
        sinks=moved(layer.attn.sinks),
        mlp_norm=moved(layer.mlp_norm.weight),
        router=moved(layer.mlp.router.weight),
        router_bias=moved(layer.mlp.router.bias),
        gate_up=packed[0],
        gate_up_bias=moved(experts.gate_up_bias),
        down=packed[1],
        down_bias=moved(experts.down_bias),
        window=window,
    )


_NAMES = {
    "attn_norm": "attn_norm.weight",
    "qkv": "attn.qkv.weight",
    "qkv_bias": "attn.qkv.bias",
    "out": "attn.out.weight",
    "out_bias": "attn.out.bias",
    "sinks": "attn.sinks",
    "mlp_norm": "mlp_norm.weight",
    "router": "mlp.router.weight",
    "router_bias": "mlp.router.bias",
    "gate_up_bias": "mlp.experts.gate_up_bias",
    "down_bias": "mlp.experts.down_bias",
}
"""Fields of `GpuLayer` and the model's names of what they hold."""


def update_layer(layer: GpuLayer, weights: Mapping[str, Tensor], *, prefix: str) -> None:
    """Write new values into a layer's tensors, whose addresses kernels and graphs keep.

    Args:
        layer: to change.
        weights: of a dense model, any dtype and device.
        prefix: of this layer's names, as "layers.3.".
    """
    for field, name in _NAMES.items():
        getattr(layer, field).copy_(weights[prefix + name])
    for field in ("gate_up", "down"):
        held: Tensor = getattr(layer, field)
        packed = pack_mxfp4(weights[f"{prefix}mlp.experts.{field}"].to(held.device))
        held.copy_(pack_experts(packed.blocks.contiguous(), scales=packed.scales.contiguous()))
