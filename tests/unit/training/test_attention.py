from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from ossia.training.attention import BLOCK, DenseRowAttention, DocumentRowAttention, FlexRowAttention

WINDOW = 3
HEADS, KV_HEADS, WIDTH = 4, 2, 16
# Two rows of three and two documents; the last of each may be taken for padding.
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.int32)
# float32 sums of at most eleven terms of size one; the float64 reference is exact beside them.
TOLERANCE = 2e-5


def inputs(*, device: str = "cpu") -> list[Tensor]:
    """Random q, k, v (flat over both rows) and sinks, float64, which ask for gradients."""
    generator = torch.Generator().manual_seed(0)
    size = DOCUMENTS.numel()
    shapes = [(size, HEADS, WIDTH), (size, KV_HEADS, WIDTH), (size, KV_HEADS, WIDTH), (HEADS,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device).requires_grad_() for s in shapes]


def reference(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *, window: int | None) -> Tensor:
    """One query, one head at a time, over the tokens that it may see."""
    rows, length = DOCUMENTS.shape
    out: list[Tensor] = []
    for row in range(rows):
        for i in range(length):
            seen = [j for j in range(i + 1) if DOCUMENTS[row, j] == DOCUMENTS[row, i]]
            if window is not None:
                seen = [j for j in seen if i - j < window]
            places = [row * length + j for j in seen]
            heads: list[Tensor] = []
            for head in range(HEADS):
                kv = head * KV_HEADS // HEADS
                scores = (k[places, kv] @ q[row * length + i, head]) / math.sqrt(WIDTH)
                weights = scores.exp() / (scores.exp().sum() + sinks[head].exp())
                heads.append(weights @ v[places, kv])
            out.append(torch.stack(heads))
    return torch.stack(out)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    return DenseRowAttention(DOCUMENTS, window=WINDOW).attend(0, q, k, v, sinks=sinks, window=window)


def worst_error(attend: Attend, *, window: int | None) -> float:
    """The largest error of the output and of all four gradients against the reference."""
    exact = inputs()
    expected = reference(*exact, window=window)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected * weights).sum().backward()
    ours = [x.detach().float().requires_grad_() for x in exact]
    result = attend(*ours, window)
    (result * weights.to(result.dtype)).sum().backward()
    errors = [(result.detach().double() - expected.detach()).abs().max()]
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        errors.append((mine.grad.double() - theirs.grad).abs().max())
    return float(torch.stack(errors).max())


def by_document(block: int, *, documents: Tensor = DOCUMENTS, width: int = WINDOW) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        return DocumentRowAttention(documents, window=width, block=block).attend(0, q, k, v, sinks=sinks, window=window)

    return attend


@pytest.mark.parametrize("block", [1, 4, 256])  # longer documents than a block, and shorter ones
@pytest.mark.parametrize("window", [None, WINDOW], ids=["full", "sliding"])
def test_by_document_against_loops_with_all_gradients(window: int | None, block: int) -> None:
    assert worst_error(by_document(block), window=window) < TOLERANCE


@pytest.mark.parametrize("block", [4, 256])
def test_broken_ways_by_document_fail_the_comparison(block: int) -> None:
    assert worst_error(by_document(block, documents=torch.zeros_like(DOCUMENTS)), window=WINDOW) > 100 * TOLERANCE
    assert worst_error(by_document(block, width=WINDOW + 1), window=WINDOW) > 100 * TOLERANCE


@pytest.mark.parametrize("window", [None, WINDOW], ids=["full", "sliding"])
def test_dense_against_loops_with_all_gradients(window: int | None) -> None:
    assert worst_error(dense, window=window) < TOLERANCE


def without_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    return dense(q, k, v, sinks * 0 - 1e9, window)


def with_frozen_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    return dense(q, k, v, sinks.detach() + 0 * sinks, window)


def with_a_wider_window(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    attention = DenseRowAttention(DOCUMENTS, window=WINDOW + 1)
    return attention.attend(0, q, k, v, sinks=sinks, window=WINDOW)


def across_documents(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    attention = DenseRowAttention(torch.zeros_like(DOCUMENTS), window=WINDOW)
    return attention.attend(0, q, k, v, sinks=sinks, window=window)


def with_interleaved_heads(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    """Head h reads KV head h % K instead of h // (H / K)."""
    order = torch.tensor([0, 2, 1, 3])
    return dense(q[:, order], k, v, sinks[order], window)[:, order]


@pytest.mark.parametrize(
    "broken", [without_sinks, with_frozen_sinks, with_a_wider_window, across_documents, with_interleaved_heads]
)
def test_broken_variants_fail_the_comparison(broken: Attend) -> None:
    assert worst_error(broken, window=WINDOW) > 100 * TOLERANCE


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, WINDOW], ids=["full", "sliding"])
def test_flex_equals_dense_on_a_cpu(window: int | None) -> None:
    q, k, v, sinks = (x.detach().float() for x in inputs())
    with torch.no_grad():
        flex = FlexRowAttention(DOCUMENTS, window=WINDOW).attend(0, q, k, v, sinks=sinks, window=window)
        torch.testing.assert_close(flex, dense(q, k, v, sinks, window), rtol=0, atol=TOLERANCE)


def token_mask(mask: BlockMask) -> Tensor:
    """What a kernel makes of the blocks' tables, [B, S, S]: all pairs of whole blocks, those of others by the rule."""
    rows, _, queries, keys = mask.shape
    b, q, k = torch.arange(rows)[:, None, None], torch.arange(queries)[:, None], torch.arange(keys)
    rule = mask.mask_mod(b, torch.tensor(0), q, k)
    seen = torch.zeros(rows, queries, keys, dtype=torch.bool)
    for row in range(rows):
        for block in range(mask.kv_num_blocks.shape[2]):
            own = slice(block * BLOCK, (block + 1) * BLOCK)
            for j in mask.kv_indices[row, 0, block, : mask.kv_num_blocks[row, 0, block]].tolist():
                there = slice(j * BLOCK, (j + 1) * BLOCK)
                assert not seen[row, own, there].any(), "visited twice"
                seen[row, own, there] = rule[row, own, there]
            assert mask.full_kv_num_blocks is not None
            assert mask.full_kv_indices is not None
            for j in mask.full_kv_indices[row, 0, block, : mask.full_kv_num_blocks[row, 0, block]].tolist():
                there = slice(j * BLOCK, (j + 1) * BLOCK)
                assert not seen[row, own, there].any(), "visited twice"
                seen[row, own, there] = True
    return seen


def tensors_of(mask: BlockMask) -> dict[str, Tensor]:
    """All tables by name."""
    return {name: value for name, value in vars(mask).items() if isinstance(value, Tensor)}


@st.composite
def layouts(draw: st.DrawFn, *, is_ascending: bool) -> Tensor:
    """Document ids [B, S]: a few documents a row with ends anywhere and at ends of blocks; ids may come again."""
    length = draw(st.integers(1, 4 * BLOCK + 40) | st.sampled_from([BLOCK, 2 * BLOCK, 5 * BLOCK]))
    ends = st.integers(1, 5 * BLOCK) | st.integers(1, 5).map(lambda block: block * BLOCK)
    rows: list[Tensor] = []
    for _ in range(draw(st.integers(1, 3))):
        stops = torch.tensor(sorted(draw(st.lists(ends, max_size=6, unique=True))), dtype=torch.long)
        numbers = torch.bucketize(torch.arange(length), stops, right=True)
        if not is_ascending:
            names = draw(st.lists(st.integers(0, 3), min_size=len(stops) + 1, max_size=len(stops) + 1))
            numbers = torch.tensor(names)[numbers]
        rows.append(numbers.int())
    return torch.stack(rows)


NEAR_BLOCKS = [blocks * BLOCK + more for blocks in range(5) for more in range(-1, 4)][2:]
"""Windows that end at a block's edges, or one or two tokens beside them."""
WINDOWS = st.integers(1, 5 * BLOCK) | st.sampled_from(NEAR_BLOCKS)


def masks_of_torch(documents: Tensor, attention: FlexRowAttention) -> list[tuple[BlockMask, BlockMask]]:
    """Ours and, of the same rule, create_block_mask's; full layers' first."""
    rows, length = documents.shape
    size = {"B": rows, "H": None, "Q_LEN": length, "KV_LEN": length, "device": "cpu"}
    ours = [attention._full, attention._near]
    return [(mask, create_block_mask(mask.mask_mod, **size)) for mask in ours]


@pytest.mark.parametrize("window", NEAR_BLOCKS)
@pytest.mark.parametrize("length", [4 * BLOCK, 4 * BLOCK - 1])
def test_masks_of_one_document_are_those_of_create_block_mask(length: int, window: int) -> None:
    assert_equal_masks(torch.zeros(1, length, dtype=torch.int32), window=window)


@settings(deadline=None, max_examples=60)
@given(documents=layouts(is_ascending=True), window=WINDOWS)
def test_masks_are_those_of_create_block_mask(documents: Tensor, window: int) -> None:
    assert_equal_masks(documents, window=window)


def assert_equal_masks(documents: Tensor, *, window: int) -> None:
    for ours, theirs in masks_of_torch(documents, FlexRowAttention(documents, window=window)):
        assert (ours.shape, ours.seq_lengths, ours.BLOCK_SIZE) == (theirs.shape, theirs.seq_lengths, theirs.BLOCK_SIZE)
        assert tensors_of(ours).keys() == tensors_of(theirs).keys()
        for name, table in tensors_of(theirs).items():
            mine = tensors_of(ours)[name]
            assert torch.equal(mine, table), name
            assert (mine.dtype, mine.stride()) == (table.dtype, table.stride()), name


@settings(deadline=None, max_examples=60)
@given(data=st.data(), is_ascending=st.booleans(), window=WINDOWS)
def test_masks_say_who_sees_whom(data: st.DataObject, is_ascending: bool, window: int) -> None:
    """For documents in any order too: exactly the pairs of the reference, found by queries and by keys alike."""
    documents = data.draw(layouts(is_ascending=is_ascending))
    dense = DenseRowAttention(documents, window=window)
    pairs = masks_of_torch(documents, FlexRowAttention(documents, window=window))
    for (ours, theirs), expected in zip(pairs, (dense._full, dense._near), strict=True):
        assert torch.equal(token_mask(ours), expected[:, 0])
        tables = BlockMask.from_kv_blocks(
            ours.kv_num_blocks, ours.kv_indices, ours.full_kv_num_blocks, ours.full_kv_indices
        )
        for name in ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):
            assert torch.equal(getattr(ours, name), getattr(tables, name)), name
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the backward pass of flex_attention needs a CUDA GPU")
@pytest.mark.parametrize("window", [None, WINDOW], ids=["full", "sliding"])
@pytest.mark.filterwarnings("default")  # torch.compile trips over its own warnings when they are errors
def test_flex_against_loops_with_all_gradients_on_a_gpu(window: int | None) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def flex(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        attention = FlexRowAttention(DOCUMENTS.cuda(), window=WINDOW, attend=compiled)
        on_gpu = (x.cuda() for x in (q, k, v, sinks))
        q, k, v, sinks = on_gpu
        return attention.attend(0, q, k, v, sinks=sinks, window=window).cpu()

    # The kernel multiplies float32 in TF32, with 10 bits of mantissa.
    assert worst_error(flex, window=window) < 2e-2
