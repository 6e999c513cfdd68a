"""Rotary position embedding with YaRN by parts (arXiv 2104.09864 and 2309.00071).

Dimension i of a head's first half and dimension i of its second half are one pair, turned by the angle
position * frequency[i]. YaRN divides slow frequencies by `factor`, keeps fast ones and blends in between; it also
multiplies both cos and sin by a concentration, which sharpens attention over long contexts.
"""

# T tokens, H heads, C head dim, P positions

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class RopeFrequencies(NamedTuple):
    """Angle a position for each pair of dimensions, [C / 2] float32, and the factor on cos and sin."""

    frequencies: Tensor
    concentration: float


class RopeTables(NamedTuple):
    """cos and sin over the whole head, both [..., C] float32, with sin's first half negated (see `apply_rope`)."""

    cos: Tensor
    sin: Tensor


def rope_frequencies(
    head_dim: int,
    *,
    theta: float,
    factor: float = 1.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    original_max_position_embeddings: int = 4096,
    truncate: bool = False,
    device: torch.device | str | None = None,
) -> RopeFrequencies:
    """The frequencies of each pair; `factor` 1.0 is plain rope.

    Float32 throughout and in the order of operations of the public implementations: at far positions the rounding of
    a frequency is visible in the angle, so an exacter frequency would be a different model.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    period = theta**exponents
    plain = 1.0 / period
    if factor == 1.0:
        return RopeFrequencies(plain, 1.0)

    def pair_turning(times: float) -> float:
        """The (fractional) pair that makes so many turns within the original context."""
        return head_dim * math.log(original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp, without dividing by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    stretched = 1.0 / (factor * period)
    return RopeFrequencies(stretched * (1 - keep) + plain * keep, 0.1 * math.log(factor) + 1.0)


def rope_tables(frequencies: RopeFrequencies, *, num_positions: int) -> RopeTables:
    """Tables for positions 0 to num_positions - 1: both [P, C] float32."""
    positions = torch.arange(num_positions, dtype=torch.float32, device=frequencies.frequencies.device)
    angles = positions[:, None] * frequencies.frequencies
    cos = angles.cos() * frequencies.concentration
    sin = angles.sin() * frequencies.concentration
    return RopeTables(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def apply_rope(x: Tensor, *, tables: RopeTables) -> Tensor:
    """Turn x [T, H, C] by its tokens' rows of the tables, each [T, 1, C]; computed in float32, in x's dtype.

    With x = (a, b) in halves, (a cos - b sin, b cos + a sin) is x * (cos, cos) + (b, a) * (-sin, sin): three operations
    on whole heads.
    """
    wide = x.float()
    return torch.addcmul(wide * tables.cos, wide.roll(x.shape[-1] // 2, dims=-1), tables.sin).to(x.dtype)


def apply_rope_torch(x: Tensor, *, tables: RopeTables) -> Tensor:
    """The reference: the rotation of each pair, written out."""
    half = x.shape[-1] // 2
    a, b = x[..., :half].float(), x[..., half:].float()
    cos, sin = tables.cos[..., half:], tables.sin[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
