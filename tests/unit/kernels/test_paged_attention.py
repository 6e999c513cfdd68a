from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.kernels import paged_attention as module
from ossia.kernels.paged_attention import FP8, paged_attention, paged_attention_torch, plan_reads, write_kv

# Relative to the largest output, as in test_attention.py.
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 2.5e-2}
# E4M3 keeps 4 significant bits: a key or a value is off by 2^-4 of itself at most, keys of size ~1 shift a score of
# size ~4 by 4 * 2^-4 / sqrt(C) or so in the root mean square, and values add their own error.
FP8_BOUND = 0.12

SHAPES: list[tuple[list[tuple[int, int]], int, int, int, int, int | None]] = [
    ([(1, 1)], 1, 1, 2, 1, None),
    ([(1, 37), (1, 5), (1, 16)], 6, 2, 10, 4, None),
    ([(1, 37), (1, 5), (1, 16)], 6, 2, 10, 4, 5),
    ([(1, 37), (3, 5), (2, 16), (4, 4)], 4, 1, 16, 4, None),
    ([(1, 37), (3, 5), (2, 16), (4, 4)], 4, 4, 16, 5, 3),
    ([(1, 9), (33, 33), (9, 40), (1, 1)], 8, 4, 6, 16, 7),
    ([(12, 12), (5, 41), (20, 50)], 3, 1, 8, 3, None),
    ([(1, 300), (1, 20), (1, 128), (130, 200)], 4, 2, 8, 16, 128),
]
"""(queries, tokens) of each sequence, H, K, C, page size, window."""


class Case(NamedTuple):
    q: Tensor
    keys: Tensor
    values: Tensor
    block_table: Tensor
    cu_seqlens_q: Tensor
    context_lens: Tensor
    sinks: Tensor
    window: int | None
    k: list[Tensor]
    v: list[Tensor]


def make(shape: tuple[Any, ...], dtype: torch.dtype, *, kv_dtype: torch.dtype | None = None, seed: int = 0) -> Case:
    """Sequences in shuffled pages; whatever is not theirs, or has left the window, is NaN."""
    spans, H, K, C, S, window = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    widest = max(-(-length // S) for _, length in spans)
    numbers = list(range(1, 1 + widest * len(spans)))
    random.Random(seed).shuffle(numbers)
    keys = torch.full((1 + len(numbers), S, K, C), float("nan"), dtype=kv_dtype or dtype)
    values, table = keys.clone(), torch.zeros(len(spans), widest, dtype=torch.int32)
    k_all, v_all = [], []
    for n, (num_queries, length) in enumerate(spans):
        k, v = draw(length, K, C), draw(length, K, C)
        first = 0 if window is None else max(0, length - num_queries - window + 1) // S * S
        for block in range(first // S, -(-length // S)):
            table[n, block] = numbers.pop()
        places = torch.arange(first, length)
        slots = table[n, places // S].long() * S + places % S
        write_kv(k[first:], v[first:], keys=keys, values=values, slot_mapping=slots)
        k_all.append(k)
        v_all.append(v)
    counts = torch.tensor([0] + [count for count, _ in spans])
    return Case(
        q=2 * draw(int(counts.sum()), H, C),
        keys=keys,
        values=values,
        block_table=table,
        cu_seqlens_q=counts.cumsum(0).int(),
        context_lens=torch.tensor([length for _, length in spans], dtype=torch.int32),
        sinks=2 * draw(H),
        window=window,
        k=k_all,
        v=v_all,
    )


def call(attend: Callable[..., Tensor], case: Case) -> Tensor:
    return attend(
        case.q,
        case.keys,
        case.values,
        block_table=case.block_table,
        cu_seqlens_q=case.cu_seqlens_q,
        context_lens=case.context_lens,
        sinks=case.sinks,
        window=case.window,
    )


def in_float64(case: Case) -> Tensor:
    """Query by query and key by key, from the keys and values before they went into pages."""
    (_, H, C), K = case.q.shape, case.k[0].shape[1]
    q, sinks = case.q.double(), case.sinks.double()
    out, row = torch.zeros_like(q), 0
    for n, (k, v) in enumerate(zip(case.k, case.v, strict=True)):
        num_queries = int(case.cu_seqlens_q[n + 1] - case.cu_seqlens_q[n])
        for position in range(len(k) - num_queries, len(k)):
            first = 0 if case.window is None else max(0, position - case.window + 1)
            for h in range(H):
                seen = k[first : position + 1, h * K // H].double()
                powers = torch.exp(seen @ q[row, h] / math.sqrt(C))
                share = powers / (powers.sum() + torch.exp(sinks[h]))
                out[row, h] = share @ v[first : position + 1, h * K // H].double()
            row += 1
    return out


def relative_error(got: Tensor, wanted: Tensor) -> float:
    error = (got.double() - wanted).abs().max() / wanted.abs().max()
    return math.inf if error.isnan() else float(error)


def error(attend: Callable[..., Tensor], case: Case) -> float:
    got = call(attend, case)
    assert got.dtype == case.q.dtype
    assert got.shape == case.q.shape
    return relative_error(got, in_float64(case))


@pytest.mark.parametrize("attend", [paged_attention, paged_attention_torch])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(attend: Callable[..., Tensor], dtype: torch.dtype, shape: tuple[Any, ...]) -> None:
    assert error(attend, make(shape, dtype)) <= BOUNDS[dtype]


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 40)), min_size=1, max_size=6),
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]),
    page_size=st.sampled_from([1, 2, 3, 8, 16]),
    window=st.sampled_from([None, 1, 2, 7, 16, 64]),
    group_bytes=st.sampled_from([1, 1 << 12, 1 << 20]),
)
def test_any_traffic_equals_the_reference(
    spans: list[tuple[int, int]], heads: tuple[int, int], page_size: int, window: int | None, group_bytes: int
) -> None:
    shape = ([(count, count + past) for count, past in spans], *heads, 6, page_size, window)
    case = make(shape, torch.float32, seed=len(spans))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GROUP_BYTES", group_bytes)
        got = call(paged_attention, case)
    assert relative_error(got, call(paged_attention_torch, case).double()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sequence_does_not_depend_on_its_batch(shape: tuple[Any, ...]) -> None:
    case = make(shape, torch.float32)
    together = call(paged_attention, case)
    for n in range(len(shape[0])):
        begin, end = case.cu_seqlens_q[n : n + 2].tolist()
        alone = case._replace(
            q=case.q[begin:end],
            block_table=case.block_table[n : n + 1],
            cu_seqlens_q=torch.tensor([0, end - begin]),
            context_lens=case.context_lens[n : n + 1],
        )
        assert relative_error(call(paged_attention, alone), together[begin:end].double()) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("attend", [paged_attention, paged_attention_torch])
def test_rows_of_padding_are_zero(attend: Callable[..., Tensor]) -> None:
    case = make(([(1, 9), (3, 12), (1, 30)], 4, 2, 8, 4, 6), torch.float32)
    padded = case._replace(
        q=torch.cat((case.q, torch.full((5, 4, 8), float("nan")))),
        block_table=torch.cat((case.block_table, torch.zeros(3, 8, dtype=torch.int32))),
        cu_seqlens_q=torch.tensor([0, 1, 4, 5, 6, 9, 9], dtype=torch.int32),
        context_lens=torch.tensor([9, 12, 30, 0, 0, 0], dtype=torch.int32),
    )
    out = call(attend, padded)
    assert relative_error(out[:5], in_float64(case)) <= BOUNDS[torch.float32]
    assert not out[5:].any()


def test_no_sequence_at_all() -> None:
    case = make(([(1, 1)], 1, 1, 2, 1, None), torch.float32)
    empty = torch.zeros(1, dtype=torch.int32)
    case = case._replace(q=case.q[:0], block_table=case.block_table[:0], cu_seqlens_q=empty, context_lens=empty[:0])
    assert call(paged_attention, case).shape == (0, 1, 2)


@pytest.mark.parametrize("window", [None, 20])
def test_only_pages_that_can_be_seen_are_read(window: int | None) -> None:
    table = torch.arange(1, 31).view(1, 30).numpy()
    reads = plan_reads(
        table,
        cu_seqlens_q=torch.tensor([0, 2]).numpy(),
        context_lens=torch.tensor([100]).numpy(),
        window=window,
        page_size=4,
        token_bytes=4,
    )
    (group,) = reads.groups
    first = 0 if window is None else (98 - window + 1) // 4
    assert group.pages.tolist() == list(range(1 + first, 26))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_fp8_pages(shape: tuple[Any, ...]) -> None:
    case = make(shape, torch.float32, kv_dtype=FP8)
    fast, plain = call(paged_attention, case), call(paged_attention_torch, case)
    assert relative_error(fast, plain.double()) <= BOUNDS[torch.float32]
    assert BOUNDS[torch.float32] < relative_error(fast, in_float64(case)) <= FP8_BOUND


def test_fp8_is_clamped_not_nan() -> None:
    keys = torch.zeros(2, 2, 1, 2, dtype=FP8)
    values = torch.zeros_like(keys)
    k = torch.tensor([[[1e6, -1e6]], [[0.3, 448.0]]])
    write_kv(k, -k, keys=keys, values=values, slot_mapping=torch.tensor([3, 2]))
    assert keys.float()[1].tolist() == [[[0.3125, 448.0]], [[448.0, -448.0]]]
    assert values.float()[1].tolist() == [[[-0.3125, -448.0]], [[-448.0, 448.0]]]
    assert not keys.float()[0].any()


def broken(**changes: Any) -> Callable[..., Tensor]:
    def attend(q: Tensor, keys: Tensor, values: Tensor, **given: Any) -> Tensor:
        return paged_attention(q, keys, values, **(given | {k: change(given) for k, change in changes.items()}))

    return attend


BROKEN = {
    "no sinks": broken(sinks=lambda given: torch.full_like(given["sinks"], -1e9)),
    "window too wide": broken(window=lambda given: given["window"] and given["window"] + 1),
    "window too narrow": broken(window=lambda given: given["window"] and given["window"] - 1),
    "pages of the neighbour": broken(block_table=lambda given: given["block_table"].roll(1, dims=0)),
    "pages in the wrong order": broken(block_table=lambda given: given["block_table"].flip(1)),
    "a token too few": broken(context_lens=lambda given: given["context_lens"] - 1),
    "a token too many": broken(context_lens=lambda given: given["context_lens"] + 1),
}


@pytest.mark.parametrize("way", BROKEN)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_broken_attention_is_noticed(way: str, dtype: torch.dtype) -> None:
    case = make(([(1, 10), (3, 6), (11, 15)], 4, 2, 8, 4, 5), dtype)
    assert error(BROKEN[way], case) > BOUNDS[dtype]


@pytest.mark.parametrize("name", ["hidden", "unseen"])
def test_a_plan_without_its_masks_is_noticed(name: str) -> None:
    case = make(([(1, 10), (3, 6), (1, 15)], 4, 2, 8, 4, 5), torch.float32)
    reads = plan_reads(
        case.block_table.numpy(),
        cu_seqlens_q=case.cu_seqlens_q.numpy(),
        context_lens=case.context_lens.numpy(),
        window=5,
        page_size=4,
        token_bytes=64,
    )
    wanted = in_float64(case)

    def attend(q: Tensor, keys: Tensor, values: Tensor, **given: Any) -> Tensor:
        return paged_attention(q, keys, values, **given, reads=reads)

    assert relative_error(call(attend, case), wanted) <= BOUNDS[torch.float32]
    without = {"hidden": None, "unseen": torch.zeros(0, dtype=torch.int64)}[name]
    reads = reads._replace(groups=tuple(group._replace(**{name: without}) for group in reads.groups))
    assert relative_error(call(attend, case), wanted) > BOUNDS[torch.float32]


def test_huge_scores_stay_finite() -> None:
    case = make(([(1, 5), (2, 9), (12, 12)], 2, 1, 4, 4, None), torch.float32)
    case = case._replace(q=case.q * 1e4, sinks=case.sinks * 1e4)
    assert call(paged_attention, case).isfinite().all()
    assert call(paged_attention_torch, case).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu(shape: tuple[Any, ...]) -> None:
    case = make(shape, torch.float32)
    moved = case._replace(**{name: x.cuda() for name, x in case._asdict().items() if isinstance(x, Tensor)})
    assert relative_error(call(paged_attention, moved).cpu(), in_float64(case)) <= BOUNDS[torch.float32]
