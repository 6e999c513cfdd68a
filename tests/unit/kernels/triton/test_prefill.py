"""Prompt attention over pages against float32; without a GPU in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from ossia.kernels.gpu.prefill import plan_queries, prefill_attention
from ossia.kernels.paged_attention import paged_attention_torch

pytest.importorskip("triton", reason="needs Triton")


def place() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1")


def paged(contexts: list[int], *, K: int, C: int, S: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and block table; NaN where nothing was written."""
    generator = torch.Generator().manual_seed(sum(contexts))
    columns = -(-max(contexts) // S)
    num_pages = 1 + len(contexts) * columns
    keys = torch.full((num_pages, S, K, C), float("nan"), dtype=dtype)
    values = keys.clone()
    table = (torch.randperm(num_pages - 1, generator=generator) + 1).int().view(len(contexts), columns)
    for n, context in enumerate(contexts):
        for held in (keys, values):
            flat = torch.full((columns * S, K, C), float("nan"), dtype=dtype)
            flat[:context] = torch.randn(context, K, C, generator=generator).to(dtype)
            held[table[n].long()] = flat.view(columns, S, K, C)
    return keys, values, table


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("counts", "contexts", "H", "K", "C", "window"),
    [
        ([5], [5], 8, 1, 64, None),
        ([70, 1, 33], [70, 40, 90], 8, 2, 64, None),
        ([50, 3], [200, 130], 8, 1, 64, 128),
        ([40], [140], 4, 2, 32, 20),
    ],
)
def test_prompts_match_float32(
    counts: list[int], contexts: list[int], H: int, K: int, C: int, window: int | None
) -> None:
    device, S = place(), 16
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16  # the interpreter has no bfloat16 products
    keys, values, table = paged(contexts, K=K, C=C, S=S, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    T = sum(counts)
    q, sinks = torch.randn(T, H, C, generator=generator).to(dtype) * 2, torch.randn(H, generator=generator).to(dtype)
    cu = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    lens = torch.tensor(contexts, dtype=torch.int32)
    expected = paged_attention_torch(
        q.float(),
        keys,
        values,
        block_table=table,
        cu_seqlens_q=cu,
        context_lens=lens,
        sinks=sinks,
        window=window,
    )
    if window is not None:  # pages that left the window of all queries are gone
        for n, (count, context) in enumerate(zip(counts, contexts, strict=True)):
            table[n, : max(0, context - count + 1 - window) // S] = 0
    out = torch.full((T, H, C), float("nan"), dtype=dtype, device=device)
    on = cu.to(device)
    prefill_attention(
        q.to(device),
        keys=keys.to(device),
        values=values.to(device),
        block_table=table.to(device),
        cu_seqlens_q=on,
        context_lens=lens.to(device),
        sinks=sinks.to(device),
        window=window,
        blocks=plan_queries(on, num_tokens=T, group=H // K),
        out=out,
    )
    # The scaled query, weights and results are rounded to bfloat16, 2^-9 each.
    torch.testing.assert_close(out.cpu().float(), expected, rtol=2**-6, atol=2e-2)


def test_the_plan_holds_every_query_once() -> None:
    cu = torch.tensor([0, 17, 17, 18, 50], dtype=torch.int32)
    blocks = plan_queries(cu, num_tokens=50, group=8)
    seen = [(int(n), int(start)) for n, start in zip(blocks.sequence, blocks.start, strict=True) if n >= 0]
    assert seen == [(0, 0), (0, 16), (2, 0), (3, 0), (3, 16)]
