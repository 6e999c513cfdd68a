"""Decode attention over pages against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.gpu.attention import DecodeScratch, check_heads, decode_attention
from ossia.kernels.paged_attention import paged_attention_torch

pytestmark = pytest.mark.slow  # emulated, where there is no GPU


def paged(contexts: list[int], *, K: int, C: int, S: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, block table and context lengths; pages in random order, NaN where nothing was written."""
    generator = torch.Generator().manual_seed(seed)
    columns = max(-(-max(contexts) // S), 1)
    num_pages = 1 + len(contexts) * columns
    keys = torch.full((num_pages, S, K, C), float("nan"), dtype=torch.bfloat16)
    values = keys.clone()
    table = (torch.randperm(num_pages - 1, generator=generator) + 1).int().view(len(contexts), columns)
    for n, context in enumerate(contexts):
        for token in range(context):
            page = int(table[n, token // S])
            keys[page, token % S] = torch.randn(K, C, generator=generator).bfloat16()
            values[page, token % S] = torch.randn(K, C, generator=generator).bfloat16()
    return keys, values, table, torch.tensor(contexts, dtype=torch.int32)


@pytest.mark.parametrize(
    ("contexts", "H", "K", "C", "S", "window"),
    [
        ([1], 8, 1, 64, 16, None),
        ([17, 0, 200], 8, 2, 64, 16, None),
        ([700], 16, 2, 64, 16, None),  # several shares
        ([300, 5], 4, 2, 64, 32, 128),
        ([130], 8, 1, 32, 16, 128),
        ([97, 64], 6, 2, 128, 16, None),
    ],
)
def test_attention_matches_float32(
    device: torch.device, contexts: list[int], H: int, K: int, C: int, S: int, window: int | None
) -> None:
    keys, values, table, lens = paged(contexts, K=K, C=C, S=S, seed=sum(contexts))
    generator = torch.Generator().manual_seed(9)
    N = len(contexts)
    q, sinks = torch.randn(N, H, C, generator=generator).bfloat16() * 2, torch.randn(H, generator=generator).bfloat16()
    expected = paged_attention_torch(
        q.float(),
        keys,
        values,
        block_table=table,
        cu_seqlens_q=torch.arange(N + 1),
        context_lens=lens,
        sinks=sinks,
        window=window,
    )
    if window is not None:  # pages that left the window are gone
        for n, context in enumerate(contexts):
            table[n, : max(0, context - window) // S] = 0
    scratch = DecodeScratch(num_sequences=N, num_kv_heads=K, head_dim=C, device=device)
    out = torch.full((N, H, C), float("nan"), dtype=torch.bfloat16, device=device)
    for _ in range(2):  # the counters must be back at zero
        decode_attention(
            q.to(device),
            keys=keys.to(device),
            values=values.to(device),
            block_table=table.to(device),
            context_lens=lens.to(device),
            sinks=sinks.to(device),
            window=window,
            scratch=scratch,
            out=out,
        )
    # Weights and results are rounded to bfloat16, 2^-9 each.
    torch.testing.assert_close(out.cpu().float(), expected, rtol=2**-7, atol=8e-3)


def test_what_the_kernel_cannot_take_is_refused() -> None:
    for shape in ({"head_dim": 80}, {"num_heads": 32}, {"page_size": 8}):
        good = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 64, "page_size": 16}
        with pytest.raises(InvalidInputError, match="head dim"):
            check_heads(**(good | shape))
