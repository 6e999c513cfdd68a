from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia.kernels import attention as module
from ossia.kernels.attention import attention, attention_torch

# Relative to the largest output. Float32: sums over some hundred terms, each rounded at 2^-24. Bfloat16: the scores,
# the weights and the result are rounded at 2^-9, scores of size ~4 shift a weight by 4 * 2^-9, and these partly add up.
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 2.5e-2}

SHAPES = [  # T, S, H, K, C, window
    (1, 1, 1, 1, 2, None),
    (1, 37, 6, 2, 10, None),
    (1, 37, 6, 2, 10, 5),
    (1, 4, 4, 4, 8, 9),
    (33, 33, 4, 1, 16, None),
    (33, 33, 8, 4, 6, 7),
    (9, 40, 3, 3, 64, None),
    (9, 40, 3, 1, 64, 1),
    (130, 200, 4, 2, 8, 128),
]


def make(T: int, S: int, H: int, K: int, C: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(T * S + H)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return {"q": 2 * draw(T, H, C), "k": draw(S, K, C), "v": draw(S, K, C), "sinks": 2 * draw(H)}


def in_float64(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
    """Query by query and key by key."""
    (T, H, C), (S, K) = q.shape, k.shape[:2]
    q, k, v, sinks = q.double(), k.double(), v.double(), sinks.double()
    out = torch.zeros(T, H, C, dtype=torch.float64)
    for t in range(T):
        position = S - T + t
        first = 0 if window is None else max(0, position - window + 1)
        for h in range(H):
            group = h * K // H
            powers = [math.exp(float(q[t, h] @ k[s, group]) / math.sqrt(C)) for s in range(first, position + 1)]
            total = sum(powers) + math.exp(float(sinks[h]))
            share = torch.tensor(powers, dtype=torch.float64) / total
            out[t, h] = share @ v[first : position + 1, group]
    return out


def error(attend: Callable[..., Tensor], shape: tuple[Any, ...], dtype: torch.dtype) -> float:
    *sizes, window = shape
    given = make(*sizes, dtype)
    got = attend(given["q"], given["k"], given["v"], sinks=given["sinks"], window=window)
    assert got.dtype == dtype
    assert got.shape == given["q"].shape
    wanted = in_float64(given["q"], given["k"], given["v"], sinks=given["sinks"], window=window)
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("attend", [attention, attention_torch])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(attend: Callable[..., Tensor], dtype: torch.dtype, shape: tuple[Any, ...]) -> None:
    assert error(attend, shape, dtype) <= BOUNDS[dtype]


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_of_queries_change_nothing(shape: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_CHUNK", 4)
    assert error(attention, shape, torch.float32) <= BOUNDS[torch.float32]


def without_sinks(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
    return attention(q, k, v, sinks=torch.full_like(sinks, -1e9), window=window)


def window_off_by_one(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
    return attention(q, k, v, sinks=sinks, window=window and window + 1)


def not_causal(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
    return torch.cat([attention(q[t : t + 1], k, v, sinks=sinks, window=window) for t in range(len(q))])


def heads_interleaved(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
    order = torch.arange(q.shape[1]).view(k.shape[1], -1).T.flatten()
    return attention(q[:, order], k, v, sinks=sinks[order], window=window)[:, order.argsort()]


@pytest.mark.parametrize("broken", [without_sinks, window_off_by_one, not_causal, heads_interleaved])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_broken_attention_is_noticed(broken: Callable[..., Tensor], dtype: torch.dtype) -> None:
    assert error(broken, (33, 33, 8, 4, 6, 7), dtype) > BOUNDS[dtype]


@pytest.mark.parametrize("window", [None, 3])
def test_gradients(window: int | None) -> None:
    given = {name: x.requires_grad_() for name, x in make(6, 6, 4, 2, 8, torch.float32).items()}
    grads = []
    for attend in (attention, attention_torch):
        out = attend(given["q"], given["k"], given["v"], sinks=given["sinks"], window=window)
        grads.append(torch.autograd.grad((out * torch.arange(8)).sum(), list(given.values())))
    for fast, plain in zip(*grads, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_huge_scores_stay_finite() -> None:
    given = make(3, 3, 2, 1, 4, torch.float32)
    out = attention(given["q"] * 1e4, given["k"] * 1e4, given["v"], sinks=given["sinks"] * 1e4)
    assert out.isfinite().all()
