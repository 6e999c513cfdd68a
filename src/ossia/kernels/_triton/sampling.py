"""Choosing a token without sorting: largest logit, or inverse CDF over the vocabulary, block by block."""

# N rows, V vocabulary

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]  # not installed where there is no GPU
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def block_max_kernel(logits, stride, V, largest, where, num_blocks, BLOCK: tl.constexpr):
    """Of each block of a row the largest logit and the first place of it."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + at, mask=at < V, other=float("-inf"))
    best = tl.max(x, 0)
    tl.store(largest + row * num_blocks + block, best)
    tl.store(where + row * num_blocks + block, tl.min(tl.where(x == best, at, V), 0))


@triton.jit
def _row_max(largest, row, num_blocks, BLOCKS: tl.constexpr):
    i = tl.arange(0, BLOCKS)
    return tl.load(largest + row * num_blocks + i, mask=i < num_blocks, other=float("-inf"))


@triton.jit
def _weights(logits, row, stride, V, at, best, temperature, min_p):
    """float64 exp((x - best) / temperature), 0 below min_p and past the end."""
    x = tl.load(logits + row * stride + at, mask=at < V, other=float("-inf")).to(tl.float64)
    weight = tl.exp((x - best) / temperature)
    return tl.where((weight >= min_p) & (at < V), weight, 0.0)


@triton.jit
def block_sum_kernel(logits, stride, V, largest, temperatures, min_ps, sums, num_blocks, BLOCK: tl.constexpr,
                     BLOCKS: tl.constexpr):  # fmt: skip
    """Of each block of a row the sum of its weights; nothing for a greedy row."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if temperature <= 0:
        return
    best = tl.max(_row_max(largest, row, num_blocks, BLOCKS), 0).to(tl.float64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    weights = _weights(logits, row, stride, V, at, best, temperature, tl.load(min_ps + row))
    tl.store(sums + row * num_blocks + block, tl.sum(weights, 0))


@triton.jit
def choose_kernel(logits, stride, V, largest, where, sums, temperatures, min_ps, uniforms, out, num_blocks,
                  BLOCK: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """The row's token."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCKS)
    maxima = _row_max(largest, row, num_blocks, BLOCKS)
    best = tl.max(maxima, 0)
    places = tl.load(where + row * num_blocks + i, mask=i < num_blocks, other=V)
    temperature = tl.load(temperatures + row)
    greedy = tl.min(tl.where(maxima == best, places, V), 0)
    if temperature <= 0:
        tl.store(out + row, greedy.to(tl.int64))
        return
    parts = tl.load(sums + row * num_blocks + i, mask=i < num_blocks, other=0.0)
    running = tl.cumsum(parts, 0)
    total = tl.sum(parts, 0)
    # Below the total even after rounding (the sums here and in the blocks have different orders).
    target = tl.minimum(tl.load(uniforms + row), 1.0 - 4e-16) * total
    block = tl.sum((running <= target).to(tl.int32), 0)
    last = tl.max(tl.where(parts > 0, i, 0), 0)
    block = tl.minimum(block, last)
    before = tl.sum(tl.where(i < block, parts, 0.0), 0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    weights = _weights(logits, row, stride, V, at, best.to(tl.float64), temperature, tl.load(min_ps + row))
    inner = before + tl.cumsum(weights, 0)
    # The first token of some weight at which the running sum exceeds the target; else the block's last one of weight.
    chosen = tl.min(tl.where((inner > target) & (weights > 0), at, V), 0)
    final = tl.max(tl.where(weights > 0, at, 0), 0)
    tl.store(out + row, tl.where(chosen < V, chosen, final).to(tl.int64))
