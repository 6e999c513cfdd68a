"""Attention of one query a sequence over its pages, on the GPU."""

# N sequences, H heads, K KV heads, C head dim, P pages, S page size

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import Grid

HEAD_DIMS = (32, 64, 128)
MAX_GROUP = 8
_THREADS = 256
_BLOCKS = 256  # wanted in all, so that a long context fills the chip even alone
_MAX_SPLITS = 32


class DecodeScratch:
    """Where the shares of one sequence's keys meet. One may serve all layers in turn.

    Args:
        num_sequences: N at most.
        num_kv_heads: K.
        head_dim: C.
        device: where.
    """

    def __init__(self, *, num_sequences: int, num_kv_heads: int, head_dim: int, device: torch.device) -> None:
        self.splits = max(1, min(_MAX_SPLITS, _BLOCKS // (num_sequences * num_kv_heads)))
        rows = num_sequences * num_kv_heads
        self.shares = torch.zeros(rows, self.splits, 16 + 8 * head_dim, dtype=torch.float32, device=device)
        self.arrived = torch.zeros(rows, dtype=torch.int32, device=device)


class _Pages(ctypes.Structure):
    """`Pages` of attention.cu."""

    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("block_table", ctypes.c_void_p),
        ("context_lens", ctypes.c_void_p),
        ("columns", ctypes.c_int),
        ("page_size", ctypes.c_int),
    )


def check_heads(*, num_heads: int, num_kv_heads: int, head_dim: int, page_size: int) -> None:
    """Refuse what the kernel cannot take."""
    group = num_heads // num_kv_heads
    if head_dim not in HEAD_DIMS or group > MAX_GROUP or page_size % 16:
        raise InvalidInputError(
            f"the GPU attention takes head dims {HEAD_DIMS}, up to {MAX_GROUP} query heads a KV head and page sizes in "
            f"multiples of 16, but got head dim {head_dim}, {group} heads a KV head and pages of {page_size}"
        )


def decode_attention(
    q: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    sinks: Tensor,
    window: int | None,
    scratch: DecodeScratch,
    out: Tensor,
) -> None:
    """Let each sequence's last token attend to its pages.

    Args:
        q: bfloat16, N rows that each begin with the H C values of the query (those of q, k and v together will do).
        keys: bfloat16 [P, S, K, C].
        values: likewise.
        block_table: int32 [N, columns].
        context_lens: int32 [N], tokens held, the query's own among them; 0 gives zeros.
        sinks: bfloat16 [H].
        window: how many keys the query sees; None for all.
        scratch: see there.
        out: bfloat16 [N, H, C], written; the softmax is float32.
    """
    N, H, C = out.shape
    S, K = keys.shape[1:3]
    pages = _Pages(*(x.data_ptr() for x in (keys, values, block_table, context_lens)), block_table.shape[1], S)
    driver.load_kernel("attention", f"decode_attention_{C}", q.device).launch(
        Grid(scratch.splits, K, N),
        threads=_THREADS,
        shared=8 * (16 + 8 * C) * 4 + 16,
        args=(q, q.stride(0), pages, sinks, out, scratch.shares, scratch.arrived, H, K, window or 0),
    )
