"""RMSNorm and router on the GPU, and the sorted list of work for the experts' kernels."""

# N tokens, D model, E experts, A active experts a token, P = N * A pairs

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import Grid
from ossia.kernels.rms_norm import rms_norm_torch
from ossia.kernels.router import Routing, route_torch

FEW_TOKENS = 8
"""Tokens of one expert that the kernels for few take together. An expert with more has several tiles, and all but the
first find its weights in the L2."""
_MAX_EXPERTS, _MAX_ACTIVE = 256, 32
_WARPS = 8


class RoutingBuffers:
    """What the router writes and the experts' kernels read, at fixed addresses.

    Pairs of token and expert are numbered token * A + choice. Sorted by expert they fall into tiles, each of one expert
    and of up to `tile_size` pairs.

    Args:
        num_tokens: N.
        num_experts: E.
        num_active: A.
        tile_size: FEW_TOKENS, or from experts.choose_many_tile_size.
        device: where.

    Raises:
        InvalidInputError: more experts than the kernels take.
    """

    def __init__(
        self, *, num_tokens: int, num_experts: int, num_active: int, tile_size: int, device: torch.device
    ) -> None:
        if num_experts > _MAX_EXPERTS or num_active > _MAX_ACTIVE:
            raise InvalidInputError(
                f"the GPU router takes up to {_MAX_EXPERTS} experts and {_MAX_ACTIVE} active ones, "
                f"but got {num_experts} and {num_active}"
            )
        self.num_tokens, self.num_experts, self.num_active = num_tokens, num_experts, num_active
        self.tile_size = tile_size
        num_pairs = num_tokens * num_active
        self.logits = torch.zeros(num_tokens, num_experts, dtype=torch.float32, device=device)
        self.pair_weight = torch.zeros(num_pairs, dtype=torch.float32, device=device)
        integers = torch.zeros(7, max(num_pairs, num_tokens + 1), dtype=torch.int32, device=device)
        self.pair_expert, self.sorted_pair, self.pair_position = integers[0], integers[1], integers[2]
        self.tile_expert, self.tile_begin, self.tile_count = integers[3], integers[4], integers[5]
        self.arrived = integers[6]
        self.num_tiles = torch.zeros(1, dtype=torch.int32, device=device)

    @property
    def num_pairs(self) -> int:
        return self.num_tokens * self.num_active


class RoutedStruct(ctypes.Structure):
    """`Routed` of experts.cu."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("tile_expert", "tile_begin", "tile_count", "num_tiles", "sorted_pair", "pair_weight")
    )

    @classmethod
    def of(cls, routing: RoutingBuffers) -> RoutedStruct:
        return cls(*(getattr(routing, name).data_ptr() for name in (field[0] for field in cls._fields_)))


class _RouteOut(ctypes.Structure):
    """`RouteOut` of router.cu."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "logits",
            "pair_expert",
            "pair_weight",
            "tile_expert",
            "tile_begin",
            "tile_count",
            "num_tiles",
            "sorted_pair",
            "pair_position",
            "arrived",
        )
    )


def norm_and_route(
    stream: Tensor,
    *,
    norm: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    out: RoutingBuffers,
    normed: Tensor,
    update: Tensor | None = None,
    total: Tensor | None = None,
    is_placed: bool = True,
) -> None:
    """Normalise the stream, choose each token's experts and list the experts' work.

    Args:
        stream: bfloat16 [N, D], D a multiple of 4.
        norm: the norm's weight [D].
        eps: of the norm.
        weight: the router's, [E, D].
        bias: [E].
        out: written.
        normed: [N, D up to a multiple of 64], written as the experts' kernels for few tokens want it
            (experts.place_tokens_torch); or [N, D], plain.
        update: [N, D] to be added to the stream first, the sum being rounded to bfloat16.
        total: [N, D], written with that sum; not the stream itself.
        is_placed: which of the two orders `normed` gets.
    """
    N, D = stream.shape
    E, A = out.num_experts, out.num_active
    struct = _RouteOut(*(getattr(out, name).data_ptr() for name in (field[0] for field in _RouteOut._fields_)))
    kernel = driver.load_kernel("router", "router", stream.device)
    kernel.launch(
        Grid(-(-E // _WARPS), N),
        threads=_WARPS * 32,
        shared=4 * D + 256 + 8 * E,
        args=(stream, update, total, norm, normed, weight, bias, struct, D, E, A, out.tile_size, eps, int(is_placed)),
    )


def route_many(normed: Tensor, *, weight: Tensor, bias: Tensor, out: RoutingBuffers) -> None:
    """As `norm_and_route`, for many tokens that are normalised already: normed bfloat16 [T, D], plain."""
    T, (E, A), P = normed.shape[0], (out.num_experts, out.num_active), out.num_pairs
    if normed.is_cuda:
        torch.mm(normed, weight.T, out_dtype=torch.float32, out=out.logits)
    else:
        torch.mm(normed.float(), weight.float().T, out=out.logits)
    counters = torch.zeros(2 * E + P, dtype=torch.int32, device=normed.device)
    counts, begins, ranks = counters.split([E, E, P])
    struct = _RouteOut(*(getattr(out, name).data_ptr() for name in (field[0] for field in _RouteOut._fields_)))
    driver.load_kernel("router", "choose_many", normed.device).launch(
        Grid(-(-T // _WARPS)),
        threads=_WARPS * 32,
        shared=8 * E + 16,
        args=(out.logits, bias, struct, counts, begins, ranks, T, E, A, out.tile_size),
    )
    driver.load_kernel("router", "place_pairs", normed.device).launch(
        Grid(-(-P // 256)), threads=256, args=(struct, begins, ranks, P)
    )


def norm_and_route_torch(
    stream: Tensor, *, norm: Tensor, eps: float, weight: Tensor, bias: Tensor, num_active: int
) -> tuple[Tensor, Routing]:
    """The reference: the normed stream, and float32's routing of it."""
    normed = rms_norm_torch(stream, weight=norm, eps=eps)
    return normed, route_torch(normed.float(), weight=weight.float(), bias=bias.float(), num_active=num_active)
