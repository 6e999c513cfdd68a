from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ossia.kernels.rope import RopeTables, apply_rope, apply_rope_torch, rope_frequencies, rope_tables

PUBLISHED = {"theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}


def frequency_in_float64(pair: int, *, head_dim: int, theta: float, factor: float, fast: float, slow: float) -> float:
    """One pair's frequency from the definition: by how often it turns within the original 4096 positions."""
    plain = theta ** (-2 * pair / head_dim)

    def pair_of(turns: float) -> float:  # solve theta^(-2 i / C) * 4096 / (2 pi) = turns for i
        return head_dim / 2 * math.log(4096 / (2 * math.pi * turns), theta)

    low, high = max(pair_of(fast), 0), min(pair_of(slow), head_dim - 1)
    share = min(max((pair - low) / (high - low), 0), 1)
    return plain / factor * share + plain * (1 - share)


@pytest.mark.parametrize("head_dim", [2, 8, 64, 128])
def test_yarn_frequencies(head_dim: int) -> None:
    got = rope_frequencies(head_dim, **PUBLISHED)
    assert got.concentration == pytest.approx(1.3465735902799727)  # 0.1 ln(32) + 1
    for pair in range(head_dim // 2):
        wanted = frequency_in_float64(pair, head_dim=head_dim, theta=150000.0, factor=32.0, fast=32.0, slow=1.0)
        # A power, a quotient and a blend in float32: some roundings of 2^-24, and the exponent's, times ln(theta).
        assert float(got.frequencies[pair]) == pytest.approx(wanted, rel=3e-6)


def test_fast_pairs_keep_their_frequency_and_slow_ones_are_stretched() -> None:
    plain = rope_frequencies(64, theta=150000.0).frequencies
    ratio = plain / rope_frequencies(64, **PUBLISHED).frequencies
    assert ratio[:8].tolist() == [1.0] * 8
    torch.testing.assert_close(ratio[-10:], torch.full((10,), 32.0))
    assert ratio[12].item() not in (1.0, 32.0)


def test_factor_one_is_plain_rope() -> None:
    got = rope_frequencies(16, theta=10000.0, factor=1.0)
    assert got.concentration == 1.0
    torch.testing.assert_close(got.frequencies, 10000.0 ** (-torch.arange(0, 16, 2) / 16))


def test_truncation_rounds_the_blend_outward() -> None:
    # 64 dimensions: the blend runs over pairs 8.09 to 17.4 as published, 8 to 18 when rounded.
    exact = rope_frequencies(64, **PUBLISHED).frequencies
    rounded = rope_frequencies(64, **PUBLISHED, truncate=True).frequencies
    assert rounded[:8].tolist() == exact[:8].tolist()
    assert rounded[17] > exact[17]
    plain = rope_frequencies(64, theta=150000.0).frequencies
    torch.testing.assert_close(rounded[13], plain[13] * (0.5 + 0.5 / 32))


def test_a_blend_of_no_width_is_a_step() -> None:
    got = rope_frequencies(8, theta=1e4, factor=4.0, beta_fast=1e9, beta_slow=1e8)
    assert got.frequencies.isfinite().all()


def rotate_in_float64(x: Tensor, positions: Tensor, frequencies: Tensor, concentration: float) -> Tensor:
    """Each pair as a complex number, times e^(i angle)."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = torch.empty_like(pairs)
    for t, position in enumerate(positions.tolist()):
        for c in range(half):
            # The angle itself is float32 by definition; see rope_frequencies.
            angle = float(torch.tensor(float(position)) * frequencies[c])
            turned[t, :, c] = pairs[t, :, c] * cmath.rect(concentration, angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


# cos, sin, the products and the sum each round at 2^-24 relative to values up to the concentration; then the cast.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def error(rotate: Callable[..., Tensor], dtype: torch.dtype, heads: int, head_dim: int) -> float:
    generator = torch.Generator().manual_seed(head_dim)
    positions = torch.tensor([0, 1, 2, 77, 4095, 4999])
    x = torch.randn(len(positions), heads, head_dim, generator=generator).to(dtype)
    frequencies = rope_frequencies(head_dim, **PUBLISHED)
    cos, sin = rope_tables(frequencies, num_positions=5000)
    got = rotate(x, tables=RopeTables(cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)))
    assert got.dtype == dtype
    wanted = rotate_in_float64(x, positions, *frequencies)
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("rotate", [apply_rope, apply_rope_torch])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 10), (9, 64)])
def test_rotation_equals_complex_float64(
    rotate: Callable[..., Tensor], dtype: torch.dtype, heads: int, head_dim: int
) -> None:
    assert error(rotate, dtype, heads, head_dim) <= BOUNDS[dtype]


def interleaved(x: Tensor, *, tables: RopeTables) -> Tensor:
    order = torch.arange(x.shape[-1]).view(-1, 2).T.flatten()
    return apply_rope_torch(x[..., order], tables=tables)[..., order.argsort()]


def backwards(x: Tensor, *, tables: RopeTables) -> Tensor:
    return apply_rope(x, tables=RopeTables(tables.cos, -tables.sin))


@pytest.mark.parametrize("broken", [interleaved, backwards])
def test_a_broken_rotation_is_noticed(broken: Callable[..., Tensor]) -> None:
    assert error(broken, torch.float32, 3, 10) > BOUNDS[torch.float32]
