"""Attention of several queries a sequence over its pages, with grouped heads, a window and sinks."""

# R = queries * heads a KV head, the rows of a tile; C head dim; S page size; K KV heads

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]  # not installed where there is no GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _see(q, m, total, acc, at, key_base, value_base, table, low, end, position, window, K: tl.constexpr,
         C: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr, IS_MASKED: tl.constexpr):  # fmt: skip
    """BLOCK keys from `at` on; q is scaled to base 2."""
    key = at + tl.arange(0, BLOCK)
    dims = tl.arange(0, C)
    is_there = (key >= low) & (key < end)  # what lies beyond may be a NaN, which a weight of 0 does not hide
    page = tl.load(table + key // S, mask=is_there, other=0).to(tl.int64)
    row = (page * S + key % S) * (K * C)
    k = tl.load(key_base + row[None, :] + dims[:, None], mask=is_there[None, :], other=0.0)
    scores = tl.dot(q, k)
    if IS_MASKED:
        is_seen = (key[None, :] <= position[:, None]) & (key[None, :] > position[:, None] - window) & is_there[None, :]
        scores = tl.where(is_seen, scores, float("-inf"))
    largest = tl.maximum(m, tl.max(scores, 1))
    weights = tl.exp2(scores - largest[:, None])
    kept = tl.exp2(m - largest)
    v = tl.load(value_base + row[:, None] + dims[None, :], mask=is_there[:, None], other=0.0)
    acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None])
    return largest, total * kept + tl.sum(weights, 1), acc


# What changes from step to step must not decide what is compiled: a service would stop to compile at the first number
# that is a multiple of 16, or 1.
@triton.jit(do_not_specialize=["columns", "num_blocks"])
def prefill_attention_kernel(
    q,
    q_stride,
    keys,
    values,
    block_table,
    columns,
    block_sequence,
    block_start,
    cu_seqlens_q,
    context_lens,
    sinks,
    out,
    scale,
    window,
    num_blocks,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    C: tl.constexpr,
    S: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """A program takes QUERIES queries of a sequence and one KV head; the longest pasts go first.

    The sink is where the running maximum and sum begin: a logit without a value. Scores are in units of log2.
    """
    block = num_blocks - 1 - tl.program_id(1)
    kv = tl.program_id(0)
    sequence = tl.load(block_sequence + block)
    if sequence < 0:
        return
    first = tl.load(block_start + block)
    token = tl.load(cu_seqlens_q + sequence)
    num_queries = tl.load(cu_seqlens_q + sequence + 1) - token
    context = tl.load(context_lens + sequence)
    rows = tl.arange(0, QUERIES * GROUP)
    query, head = first + rows // GROUP, kv * GROUP + rows % GROUP
    position = context - num_queries + query
    is_query = query < num_queries
    dims = tl.arange(0, C)
    log2_e: tl.constexpr = 1.44269504
    row = (token + query).to(tl.int64)
    tile = tl.load(q + row[:, None] * q_stride + head[:, None] * C + dims[None, :], mask=is_query[:, None], other=0.0)
    tile = (tile.to(tl.float32) * (scale * log2_e)).to(tile.dtype)
    m = tl.load(sinks + head).to(tl.float32) * log2_e
    total = tl.full([QUERIES * GROUP], 1.0, tl.float32)
    acc = tl.zeros([QUERIES * GROUP, C], tl.float32)
    table = block_table + sequence.to(tl.int64) * columns
    key_base, value_base = keys + kv * C, values + kv * C

    start = context - num_queries + first
    end = tl.minimum(start + QUERIES, context)
    begin, low = 0, 0
    if HAS_WINDOW:
        low = tl.maximum(start - window + 1, 0)
        begin = low // BLOCK * BLOCK
        plain = begin
    else:
        plain = (start + 1) // BLOCK * BLOCK  # every query sees all keys before this
        for at in range(begin, plain, BLOCK):
            m, total, acc = _see(tile, m, total, acc, at, key_base, value_base, table, low, end, position, window, K,
                                 C, S, BLOCK, False)  # fmt: skip
    for at in range(plain, end, BLOCK):
        m, total, acc = _see(tile, m, total, acc, at, key_base, value_base, table, low, end, position, window, K, C, S,
                             BLOCK, True)  # fmt: skip
    acc = acc / total[:, None]
    place = out + (row * (K * GROUP) + head)[:, None] * C + dims[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=is_query[:, None])
