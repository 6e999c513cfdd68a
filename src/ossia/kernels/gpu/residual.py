"""The residual stream between layers, on the GPU: add what was made, normalise."""

# N tokens, D model, A active experts, P pairs

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import Grid
from ossia.kernels.gpu.routing import RoutingBuffers
from ossia.kernels.rope import RopeTables

_MANY = 256  # tokens, from which on one loads all that it needs at once
_MANY_THREADS = 384


class ExpertOutputs(NamedTuple):
    """What `down_few` or `down_many` wrote, [splits, P, D] float32 or bfloat16 in sorted order, and the order."""

    parts: Tensor
    routing: RoutingBuffers


def residual_norm(
    base: Tensor,
    *,
    num_tokens: int,
    norm: Tensor,
    eps: float,
    index: Tensor | None = None,
    update: Tensor | None = None,
    experts: ExpertOutputs | None = None,
    stream: Tensor | None = None,
    normed: Tensor | None = None,
) -> None:
    """Sum and normalise, a token at a time.

    Args:
        base: bfloat16 [rows, D]; row n, or row index[n], of it is token n's.
        num_tokens: N.
        norm: the norm's weight [D].
        eps: of the norm.
        index: int64 [N].
        update: bfloat16 [N, D] to add.
        experts: outputs to add to their tokens.
        stream: [N, D], written with the sum in bfloat16; may be the base if there is no index.
        normed: [N, D], written with the norm of that.
    """
    D = base.shape[1]
    parts, is_wide, positions, active, splits, pairs = None, False, None, 0, 0, 0
    if experts is not None:
        parts, positions = experts.parts, experts.routing.pair_position
        is_wide = parts.dtype == torch.float32
        active, (splits, pairs) = experts.routing.num_active, parts.shape[:2]
    if num_tokens >= _MANY and index is None and not is_wide and splits < 2 and D % 8 == 0 and D <= 8 * _MANY_THREADS:
        driver.load_kernel("residual", "residual_norm_many", base.device).launch(
            Grid(num_tokens),
            threads=-(-D // 256) * 32,
            shared=128,
            args=(base, update, parts, positions, norm, stream, normed, D, active, eps),
        )
        return
    # A few tokens: each as fast as can be. Many: several blocks a multiprocessor, which hide each other's waiting.
    threads = min(1024 if num_tokens < _MANY else 256, -(-D // 128) * 32)
    driver.load_kernel("residual", "residual_norm", base.device).launch(
        Grid(num_tokens),
        threads=threads,
        shared=4 * D + 256 + 128,
        args=(base, index, update, parts, int(is_wide), positions, norm, stream, normed, D, active, splits, pairs, eps),
    )


def rope_and_store(
    qkv: Tensor, *, rope: RopeTables, positions: Tensor, slot_mapping: Tensor, keys: Tensor, values: Tensor, H: int
) -> None:
    """Turn q and k of qkv bfloat16 [T, (H + 2 K) C]: q in place, k and v to their slots of the pages.

    Args:
        qkv: contiguous.
        rope: the tables of all positions, [positions, C], sin's first half negated.
        positions: int64 [T].
        slot_mapping: int64 [T].
        keys: bfloat16 [pages, page size, K, C].
        values: likewise.
        H: query heads.
    """
    K, C = keys.shape[2:]
    driver.load_kernel("residual", "rope_and_store", qkv.device).launch(
        Grid(qkv.shape[0]),
        threads=256,
        args=(qkv, rope.cos, rope.sin, positions, slot_mapping, keys, values, H, K, C),
    )
