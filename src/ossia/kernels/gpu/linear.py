"""Dense layers for up to 8 tokens on the GPU, where reading the weights is all the work."""

# N tokens, D model, H heads, K KV heads, C head dim, V vocab

from __future__ import annotations

import ctypes

from torch import Tensor

from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import Grid
from ossia.kernels.gpu.experts import num_multiprocessors
from ossia.kernels.rope import RopeTables

MAX_TOKENS = 8
_THREADS = 256
_BLOCKS_PER_MULTIPROCESSOR = 2  # of `linear_float`, whose blocks go on from row tile to row tile
_QKV_STAGES, _RESIDUAL_STAGES, _FLOAT_STAGES = 3, 5, 6  # 3, 2 and 2 blocks of 8 tokens fit a multiprocessor


class _Rope(ctypes.Structure):
    """`Rope` of linear.cu."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("cos", "sin", "positions", "slot_mapping"))


def linear_qkv(
    x: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    rope: RopeTables,
    positions: Tensor,
    slot_mapping: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """q, k and v of x [N, D]; q and k turned by rope; k and v written to their slots.

    Args:
        x: bfloat16 [N, D], N up to MAX_TOKENS, D a multiple of 32.
        weight: bfloat16 [(H + 2 K) C, D].
        bias: [(H + 2 K) C].
        rope: the tables of all positions, [positions, C], sin's first half negated.
        positions: int64 [N].
        slot_mapping: int64 [N], page * page size + offset.
        q: bfloat16 [N, H, C], written.
        keys: bfloat16 [pages, page size, K, C], written in place.
        values: likewise.
    """
    N, D = x.shape
    (H, C), K = q.shape[1:], keys.shape[2]
    struct = _Rope(*(tensor.data_ptr() for tensor in (rope.cos, rope.sin, positions, slot_mapping)))
    driver.load_kernel("linear", "linear_qkv", x.device).launch(
        Grid((H + 2 * K) * C // 16),
        threads=_THREADS,
        shared=_shared(N, D, stages=_QKV_STAGES),
        args=(x, weight, bias, struct, q, keys, values, N, D, H, K, C),
    )


def linear_residual(x: Tensor, *, weight: Tensor, bias: Tensor, stream: Tensor) -> None:
    """Add x [N, I] weight [D, I]^T + bias to the stream bfloat16 [N, D] in place. D even, I a multiple of 32."""
    N, num_in = x.shape
    D = stream.shape[1]
    driver.load_kernel("linear", "linear_residual", x.device).launch(
        Grid(-(-D // 16)),
        threads=_THREADS,
        shared=_shared(N, num_in, stages=_RESIDUAL_STAGES),
        args=(x, weight, bias, stream, N, num_in, D),
    )


def linear_float(x: Tensor, *, weight: Tensor, out: Tensor) -> None:
    """out float32 [N, V] = x [N, D] weight [V, D]^T."""
    N, D = x.shape
    V = weight.shape[0]
    blocks = min(-(-V // 16), num_multiprocessors(x.device) * _BLOCKS_PER_MULTIPROCESSOR)
    driver.load_kernel("linear", "linear_float", x.device).launch(
        Grid(blocks), threads=_THREADS, shared=_shared(N, D, stages=_FLOAT_STAGES), args=(x, weight, out, N, D, V)
    )


def _shared(num_tokens: int, num_columns: int, *, stages: int) -> int:
    row = num_columns * 2 + (64 if num_columns % 64 == 0 else 0)
    return 8 * stages * 1024 + num_tokens * row + 8 * 16 * 9 * 4
