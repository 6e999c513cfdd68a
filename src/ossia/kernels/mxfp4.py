"""MXFP4: weights in 4.25 bits (OCP Microscaling Formats v1.0, sections 5.2, 5.3.3 and 6.3).

32 neighbours along the last dimension share one scale byte, 2^(scale - 127), 255 being NaN (E8M0). Each byte of a
block holds two values, the low nibble first; a nibble is a sign bit and three bits of magnitude (E2M1).
"""

# N blocks along the last dimension, of 32 values in 16 bytes

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError

BLOCK = 32
NAN_SCALE = 255
SCALE_BIAS = 127
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of the three magnitude bits; bit 3 of a code is the sign."""

_LARGEST_EXPONENT = 2  # of 4.0, the largest power of two among the magnitudes
_PACK_CHUNK = 1 << 16  # blocks packed at once: 16 MiB in float64
_LUT_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Mxfp4(NamedTuple):
    """A packed tensor of shape [..., 32 N]: blocks uint8 [..., N, 16] and scales uint8 [..., N]."""

    blocks: Tensor
    scales: Tensor

    def select(self, index: Tensor | int) -> Mxfp4:
        """Those entries of the first dimension, still packed."""
        return Mxfp4(self.blocks[index], self.scales[index])


def unpack_mxfp4(blocks: Tensor, *, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Unpack blocks uint8 [..., N, 16] and scales uint8 [..., N] into [..., 32 N].

    Exact in float32, float64 and bfloat16, up to their range: the topmost scales reach past float32's largest number
    and give infinities there. Other dtypes are rounded from float32. A block with scale 255 is all NaN.
    """
    wide = dtype if dtype in _LUT_DTYPES else torch.float32
    pairs, powers = _tables(wide, blocks.device)
    values = pairs[blocks.int()].view(wide) if wide != torch.float64 else pairs[blocks.int()].flatten(-2)
    values = values * powers[scales.int()].unsqueeze(-1)
    return values.flatten(-2).to(dtype)


def unpack_mxfp4_torch(blocks: Tensor, *, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The reference: nibble by nibble, in float64."""
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).long()
    magnitude = torch.tensor(MAGNITUDES, dtype=torch.float64, device=blocks.device)[codes & 7]
    signed = torch.where(codes >= 8, -magnitude, magnitude)
    scale = torch.exp2(scales.double() - SCALE_BIAS).masked_fill(scales == NAN_SCALE, float("nan"))
    return (signed * scale.unsqueeze(-1)).flatten(-2).to(dtype)


def pack_mxfp4(w: Tensor) -> Mxfp4:
    """Pack floats [..., 32 N]: each to the nearest code, ties to the even code, what is too large to +-6.

    The scale is the specification's (section 6.3): 2^(floor(log2(largest magnitude)) - 2), clamped to E8M0's range.
    What it leaves open is defined here: a block of zeros has scale byte 0; signs of zeros are kept; a block that holds
    an infinity or a NaN becomes a NaN block (scale byte 255, all codes 0), so that a broken weight cannot pass unseen.

    Raises:
        InvalidInputError: the last dimension is not a multiple of 32.
    """
    if w.dim() == 0 or w.shape[-1] % BLOCK:
        raise InvalidInputError(
            f"MXFP4 packs blocks of {BLOCK} along the last dimension, but got shape {list(w.shape)}; "
            f"choose sizes that are multiples of {BLOCK}"
        )
    leading, N = w.shape[:-1], w.shape[-1] // BLOCK
    flat = w.detach().reshape(-1, BLOCK)
    blocks = torch.empty(flat.shape[0], BLOCK // 2, dtype=torch.uint8, device=w.device)
    scales = torch.empty(flat.shape[0], dtype=torch.uint8, device=w.device)
    for start in range(0, flat.shape[0], _PACK_CHUNK):
        part = slice(start, start + _PACK_CHUNK)
        blocks[part], scales[part] = _pack_blocks(flat[part].double())
    return Mxfp4(blocks.view(*leading, N, BLOCK // 2), scales.view(*leading, N))


def _pack_blocks(w: Tensor) -> Mxfp4:
    """w float64 [B, 32], wide enough that scaling is exact for every float32 and every scale."""
    is_broken = ~w.isfinite().all(dim=-1)
    largest = w.abs().amax(dim=-1).masked_fill(is_broken, 0.0)
    # frexp gives largest = m * 2^e with m in [0.5, 1), so floor(log2) = e - 1, exactly and for denormals too.
    exponent = torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT
    exponent = exponent.masked_fill(largest == 0, -SCALE_BIAS).clamp(-SCALE_BIAS, NAN_SCALE - 1 - SCALE_BIAS)
    scaled = torch.ldexp(w.masked_fill(is_broken[:, None], 0.0), -exponent[:, None])
    codes = torch.bucketize(scaled.abs(), _midpoints(w.device)) | (scaled.signbit().long() << 3)
    blocks = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    scales = (exponent + SCALE_BIAS).masked_fill(is_broken, NAN_SCALE)
    return Mxfp4(blocks, scales.to(torch.uint8))


def round_mxfp4(w: Tensor) -> Tensor:
    """w float32 [..., 32 N] with each value as MXFP4 keeps it: `unpack_mxfp4(*pack_mxfp4(w))`, without packing.

    What training with quantization does at every step, so it is plain float32 arithmetic: a magnitude below 8 is
    rounded to a multiple of the step between codes (a half below 2, 1 below 4, then 2), halves to the even multiple,
    which is the even code. Rounding twice is rounding once.

    Raises:
        InvalidInputError: the last dimension is not a multiple of 32.
    """
    if w.dim() == 0 or w.shape[-1] % BLOCK:
        raise InvalidInputError(
            f"MXFP4 rounds blocks of {BLOCK} along the last dimension, but got shape {list(w.shape)}; "
            f"choose sizes that are multiples of {BLOCK}"
        )
    blocks = w.detach().float().unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    exponent = (torch.frexp(largest).exponent - 1 - _LARGEST_EXPONENT).clamp(min=-SCALE_BIAS)
    exponent = exponent.masked_fill(largest == 0, -SCALE_BIAS)
    scaled = torch.ldexp(blocks, -exponent)
    magnitude = scaled.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    rounded = (torch.round(magnitude / step) * step).clamp(max=MAGNITUDES[-1])
    values = torch.ldexp(torch.copysign(rounded, scaled), exponent)
    return torch.where(largest.isfinite(), values, float("nan")).flatten(-2)


def _midpoints(device: torch.device) -> Tensor:
    """The boundaries between neighbouring magnitudes, float64 [7]; bucketize counts those that lie below a value.

    A value right on a midpoint goes to the even code. Where that is the upper one, the boundary is moved down by the
    smallest step.
    """
    magnitudes = torch.tensor(MAGNITUDES, dtype=torch.float64, device=device)
    middle = (magnitudes[:-1] + magnitudes[1:]) / 2
    upper_is_even = torch.arange(1, len(MAGNITUDES), device=device) % 2 == 0
    return torch.where(upper_is_even, torch.nextafter(middle, torch.zeros_like(middle)), middle)


@lru_cache(maxsize=16)
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both values of each byte, and the 256 scales.

    The pair is one element of an integer as wide as both (float64 has none and stays [256, 2]), so that unpacking
    reads the table once a byte.
    """
    with torch.inference_mode(False):
        magnitudes = torch.tensor(MAGNITUDES, dtype=dtype)
        values = torch.cat((magnitudes, -magnitudes))
        byte = torch.arange(256)
        pairs = torch.stack((values[byte & 15], values[byte >> 4]), dim=-1)
        if dtype != torch.float64:
            pairs = pairs.view(torch.int64 if dtype == torch.float32 else torch.int32).squeeze(-1)
        # Float64 holds every 2^(scale - 127); the conversion keeps float32's and bfloat16's denormal 2^-127.
        powers = torch.ldexp(torch.ones(256, dtype=torch.float64), byte - SCALE_BIAS)
        powers[NAN_SCALE] = float("nan")
        return pairs.to(device), powers.to(dtype).to(device)
