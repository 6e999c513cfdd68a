from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ossia.training.attention import DenseRowAttention, DocumentRowAttention, FlexRowAttention

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
