from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ossia.kernels.router import Routing, route, route_torch


def inputs(T: int, D: int, E: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(T + D + E)
    return {
        "x": torch.randn(T, D, generator=generator).to(dtype),
        "weight": torch.randn(E, D, generator=generator).to(dtype),
        "bias": (3 * torch.randn(E, generator=generator)).to(dtype),
    }


def check_router(router: Callable[..., Routing], T: int, D: int, E: int, A: int, dtype: torch.dtype) -> None:
    """Against plain Python over float64; logits in `dtype`, the softmax over what was kept within float32 rounding."""
    given = inputs(T, D, E, dtype)
    indices, weights, logits = router(given["x"], weight=given["weight"], bias=given["bias"], num_active=A)
    assert logits.dtype == dtype
    assert weights.dtype == torch.float32
    wanted = given["x"].double() @ given["weight"].double().T + given["bias"].double()
    # A sum of D products; the bound is that of the cast, and for float32 D roundings of 2^-24 that add up like noise.
    bound = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    largest = float(wanted.abs().max()) if T else 0.0
    torch.testing.assert_close(logits.double(), wanted, rtol=bound, atol=bound * largest)
    for row in range(T):
        values = logits[row].double()
        best = sorted(range(E), key=lambda e: -float(values[e]))[:A]
        kept = values[indices[row]]
        assert len(set(indices[row].tolist())) == A
        # Equal logits may be taken in any order, so the kept logits are compared and not their owners.
        assert kept.tolist() == values[best].tolist()
        torch.testing.assert_close(weights[row].double(), kept.exp() / kept.exp().sum(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("router", [route, route_torch])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "D", "E", "A"), [(1, 8, 4, 1), (7, 33, 5, 5), (13, 17, 128, 4), (0, 8, 4, 2)])
def test_equals_float64(router: Callable[..., Routing], dtype: torch.dtype, T: int, D: int, E: int, A: int) -> None:
    check_router(router, T, D, E, A, dtype)


def softmax_before_top(x: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor, num_active: int) -> Routing:
    logits = x @ weight.T + bias
    top = logits.float().softmax(-1).topk(num_active, dim=-1)
    return Routing(top.indices, top.values, logits)


def without_bias(x: torch.Tensor, *, weight: torch.Tensor, bias: torch.Tensor, num_active: int) -> Routing:
    return route(x, weight=weight, bias=torch.zeros_like(bias), num_active=num_active)


@pytest.mark.parametrize("broken", [softmax_before_top, without_bias])
def test_a_broken_router_is_noticed(broken: Callable[..., Routing]) -> None:
    with pytest.raises(AssertionError):
        check_router(broken, 13, 17, 128, 4, torch.float32)
