from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ossia.kernels.rms_norm import rms_norm, rms_norm_torch

# Relative to the result: float32 adds some roundings of 2^-24 in the mean and the products, bfloat16 is one rounding
# of at most 2^-8 at the end (float16 2^-11), plus those.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6, torch.float16: 2**-11 + 2e-6}
SHAPES = [(1, 1), (3, 7), (2, 5, 33), (17, 2880), (0, 8)]


def in_float64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = [row / torch.sqrt((row * row).sum() / len(row) + eps) for row in x.double().reshape(-1, x.shape[-1])]
    return torch.stack(rows).view(x.shape) * weight.double() if rows else x.double()


def relative_error(norm: Callable[..., Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> float:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(shape, generator=generator) * 0.01).to(dtype)  # small, so that eps matters
    weight = (1 + torch.rand(shape[-1], generator=generator)).to(dtype)
    got, wanted = norm(x, weight=weight, eps=1e-5), in_float64(x, weight, 1e-5)
    assert got.dtype == dtype
    assert got.shape == x.shape
    return float(((got.double() - wanted).abs() / wanted.abs().clamp(min=1e-4)).amax()) if x.numel() else 0.0


@pytest.mark.parametrize("norm", [rms_norm, rms_norm_torch])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(norm: Callable[..., Tensor], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert relative_error(norm, dtype, shape) <= BOUNDS[dtype]


def weight_after_rounding(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def without_eps(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    return rms_norm_torch(x, weight=weight, eps=0.0)


def centred(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    return rms_norm_torch(x - x.mean(-1, keepdim=True), weight=weight, eps=eps)


@pytest.mark.parametrize(
    ("broken", "dtype"),
    [(weight_after_rounding, torch.bfloat16), (without_eps, torch.float32), (centred, torch.float32)],
)
def test_a_broken_norm_is_noticed(broken: Callable[..., Tensor], dtype: torch.dtype) -> None:
    assert relative_error(broken, dtype, (17, 2880)) > BOUNDS[dtype]


def test_mixed_dtypes_keep_the_input_dtype() -> None:
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    assert rms_norm(x, weight=torch.ones(16), eps=1e-5).dtype == torch.bfloat16


def test_gradient() -> None:
    x = torch.randn(3, 5, dtype=torch.float32, requires_grad=True)
    weight = torch.rand(5, requires_grad=True)
    fast = torch.autograd.grad(rms_norm(x, weight=weight, eps=1e-5).square().sum(), (x, weight))
    plain = torch.autograd.grad(rms_norm_torch(x, weight=weight, eps=1e-5).square().sum(), (x, weight))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b)
