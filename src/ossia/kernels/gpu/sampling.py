"""Sampling on the GPU, without waiting for it."""

# N rows, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ossia.kernels.sampling import sample

_BLOCK = 2048


def sample_gpu(
    logits: Tensor,
    *,
    temperature: Tensor,
    uniforms: Tensor,
    min_p: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """Choose one token a row, as `ossia.kernels.sampling.sample` does.

    Agrees with it but where a uniform falls within rounding (about 1e-15 of the total) of a border between tokens.
    Without `top_k` and `top_p` nothing is sorted: the logits are read three times, each weight is a float64, and the
    launches can be captured in a graph.

    Args:
        logits: float32 [N, V], rows contiguous.
        temperature: float64 [N]; 0 takes the largest logit, the first of equals.
        uniforms: float64 [N] in [0, 1).
        min_p: float64 [N]; 0 keeps all.
        top_k: int [N], if some row cuts there; 0 keeps all.
        top_p: float64 [N], if some row cuts there; 1 keeps all.

    Returns:
        int64 [N].
    """
    if top_k is not None or top_p is not None:
        return sample(
            logits,
            temperature=temperature,
            uniforms=uniforms,
            top_k=0 if top_k is None else top_k,
            top_p=1.0 if top_p is None else top_p,
            min_p=min_p,
        )
    from ossia.kernels._triton.sampling import block_max_kernel, block_sum_kernel, choose_kernel

    launch_max: Any = block_max_kernel  # Triton's launch syntax, kernel[grid](...), has no types
    launch_sum: Any = block_sum_kernel
    launch_choice: Any = choose_kernel
    N, V = logits.shape
    num_blocks = -(-V // _BLOCK)
    most = 1 << (num_blocks - 1).bit_length()
    largest = torch.empty(N, num_blocks, dtype=torch.float32, device=logits.device)
    where = torch.empty(N, num_blocks, dtype=torch.int32, device=logits.device)
    sums = torch.empty(N, num_blocks, dtype=torch.float64, device=logits.device)
    out = torch.empty(N, dtype=torch.int64, device=logits.device)
    floor = min_p.clamp(max=1.0)
    stride = logits.stride(0)
    launch_max[(N, num_blocks)](logits, stride, V, largest, where, num_blocks, BLOCK=_BLOCK)
    launch_sum[(N, num_blocks)](
        logits, stride, V, largest, temperature, floor, sums, num_blocks, BLOCK=_BLOCK, BLOCKS=most
    )
    launch_choice[(N,)](
        logits,
        stride,
        V,
        largest,
        where,
        sums,
        temperature,
        floor,
        uniforms,
        out,
        num_blocks,
        BLOCK=_BLOCK,
        BLOCKS=most,
    )
    return out
