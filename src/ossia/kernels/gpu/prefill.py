"""Attention for prompts and mixed batches on the GPU: several queries a sequence, over pages."""

# T tokens, N sequences, H heads, K KV heads, C head dim, P pages, S page size

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_NO_WINDOW = 1 << 30
_FULL, _WINDOWED = (128, 4, 2), (32, 4, 3)  # keys at a time, warps and stages, as measured on an H100
_ROWS = 128  # of a tile: queries times the heads of a KV head


class QueryBlocks(NamedTuple):
    """The work of a step: a block is some queries of one sequence.

    Attributes:
        sequence: int32 [blocks], -1 where there is none.
        start: int32 [blocks], the block's first query, counted within its sequence's queries.
        queries: of a block.
    """

    sequence: Tensor
    start: Tensor
    queries: int


def plan_queries(cu_seqlens_q: Tensor, *, num_tokens: int, group: int) -> QueryBlocks:
    """Cut each sequence's queries into blocks, without waiting for the device.

    Args:
        cu_seqlens_q: int32 [N + 1].
        num_tokens: T.
        group: heads a KV head, a power of 2.
    """
    queries = _ROWS // group
    num_blocks = num_tokens // queries + cu_seqlens_q.shape[0] - 1  # no sequence wastes more than one
    counts = (cu_seqlens_q[1:] - cu_seqlens_q[:-1] + queries - 1) // queries
    ends = counts.cumsum(0)
    block = torch.arange(num_blocks, device=cu_seqlens_q.device)
    sequence = torch.searchsorted(ends, block, right=True)
    known = sequence.clamp(max=counts.shape[0] - 1)
    start = (block - (ends - counts)[known]) * queries
    sequence = torch.where(block < ends[-1], known, -1)
    return QueryBlocks(sequence.int(), start.int(), queries)


def prefill_attention(
    q: Tensor,
    *,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    cu_seqlens_q: Tensor,
    context_lens: Tensor,
    sinks: Tensor,
    window: int | None,
    blocks: QueryBlocks,
    out: Tensor,
) -> None:
    """Let each sequence's last tokens attend to its pages, their own keys and values among them.

    Args:
        q: bfloat16, T rows that each begin with the H C values of the query.
        keys: bfloat16 [P, S, K, C].
        values: likewise.
        block_table: int32 [N, columns].
        cu_seqlens_q: int32 [N + 1].
        context_lens: int32 [N].
        sinks: [H].
        window: how many keys a query sees; None for all.
        blocks: from `plan_queries`.
        out: bfloat16 [T, H, C], written; the softmax is float32.
    """
    from ossia.kernels._triton.prefill_attention import prefill_attention_kernel

    (H, C), (S, K) = out.shape[1:], keys.shape[1:3]
    num_blocks = blocks.sequence.shape[0]
    block, num_warps, num_stages = _FULL if window is None else _WINDOWED
    prefill_attention_kernel[(K, num_blocks)](  # pyright: ignore[reportIndexIssue]  # Triton's launch syntax
        q,
        q.stride(0),
        keys,
        values,
        block_table,
        block_table.shape[1],
        blocks.sequence,
        blocks.start,
        cu_seqlens_q,
        context_lens,
        sinks,
        out,
        C**-0.5,
        window or _NO_WINDOW,
        num_blocks,
        K=K,
        GROUP=H // K,
        C=C,
        S=S,
        QUERIES=blocks.queries,
        BLOCK=block,
        HAS_WINDOW=window is not None,
        num_warps=num_warps,
        num_stages=num_stages,
    )
