from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels import mxfp4 as module
from ossia.kernels.mxfp4 import Mxfp4, pack_mxfp4, round_mxfp4, unpack_mxfp4, unpack_mxfp4_torch

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
VALUES += [-value for value in VALUES]
TIES = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0}
"""Each midpoint between neighbours, and the neighbour whose code is even."""


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN equals NaN, and zeros have equal signs."""
    return bool(((a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())).all())


def every_byte_and_scale() -> Mxfp4:
    """[256 scales, 16 blocks, 16 bytes]: each byte under each scale."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, 16, 16).contiguous()
    return Mxfp4(blocks, torch.arange(256, dtype=torch.uint8).view(256, 1).expand(256, 16).contiguous())


def unpacked_in_python() -> Tensor:
    """float64 [256, 512]: what every byte under every scale means, by the tables of the specification."""
    rows = []
    for scale in range(256):
        power = math.nan if scale == 255 else 2.0 ** (scale - 127)
        rows.append([VALUES[code] * power for byte in range(256) for code in (byte & 15, byte >> 4)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("unpack", [unpack_mxfp4, unpack_mxfp4_torch])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_unpacking_is_exact_for_all_bytes_and_scales(unpack: Callable[..., Tensor], dtype: torch.dtype) -> None:
    packed = every_byte_and_scale()
    got = unpack(packed.blocks, scales=packed.scales, dtype=dtype)
    assert got.dtype == dtype
    assert same_bits(got, unpacked_in_python().to(dtype))


def high_nibble_first(blocks: Tensor, *, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return unpack_mxfp4(blocks >> 4 | blocks << 4, scales=scales, dtype=dtype)


def scale_zero_is_zero(blocks: Tensor, *, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return unpack_mxfp4(blocks, scales=scales, dtype=dtype).masked_fill(scales.repeat_interleave(32, -1) == 0, 0)


def last_scale_is_a_number(blocks: Tensor, *, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return unpack_mxfp4(blocks, scales=scales.clamp(max=254), dtype=dtype)


@pytest.mark.parametrize("broken", [high_nibble_first, scale_zero_is_zero, last_scale_is_a_number])
def test_broken_unpacking_is_noticed(broken: Callable[..., Tensor]) -> None:
    packed = every_byte_and_scale()
    assert not same_bits(broken(packed.blocks, scales=packed.scales, dtype=torch.float64), unpacked_in_python())


def pack_in_numpy(w: Tensor) -> Mxfp4:
    """Block by block in float64: the scale by math.frexp, each value by comparing its distance to all codes."""
    magnitudes = np.array(VALUES[:8])
    blocks, scales = [], []
    for block in w.double().reshape(-1, 32).numpy():
        if not np.isfinite(block).all():
            scales.append(255)
            blocks.append([0] * 16)
            continue
        largest = float(np.abs(block).max())
        exponent = -127 if largest == 0 else min(max(math.frexp(largest)[1] - 1 - 2, -127), 127)
        codes = []
        for value in block:
            scaled = abs(float(value)) * 2.0**-exponent
            distance = np.abs(magnitudes - scaled)
            nearest = [code for code in range(8) if distance[code] == distance.min()]
            code = next((code for code in nearest if code % 2 == 0), nearest[0])
            codes.append(code + 8 * int(math.copysign(1.0, float(value)) < 0))
        scales.append(exponent + 127)
        blocks.append([low | high << 4 for low, high in zip(codes[0::2], codes[1::2], strict=True)])
    shape = (*w.shape[:-1], w.shape[-1] // 32)
    return Mxfp4(
        torch.tensor(blocks, dtype=torch.uint8).view(*shape, 16), torch.tensor(scales, dtype=torch.uint8).view(shape)
    )


def check_packing(pack: Callable[[Tensor], Mxfp4], w: Tensor) -> None:
    got, wanted = pack(w), pack_in_numpy(w)
    assert torch.equal(got.scales, wanted.scales)
    assert torch.equal(got.blocks, wanted.blocks)


def awkward_weights() -> Tensor:
    """[*, 32] float32: ties and their neighbours under many scales, zeros, denormals, what saturates, extremes."""
    rows = []
    for power in (-140, -130, -127, -126, -20, 0, 3, 100, 124):
        ties = torch.tensor(list(TIES), dtype=torch.float64)
        near = torch.cat((ties, torch.nextafter(ties.float(), torch.tensor(0.0)).double()))
        near = torch.cat((near, torch.nextafter(ties.float(), torch.tensor(9.0)).double(), torch.tensor([4.0, 7.9999])))
        rows.append(torch.cat((near, -near[:9])).float().double() * 2.0**power)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 32, generator=generator, dtype=torch.float64)
    rows.extend(noise * 10.0 ** torch.linspace(-45, 37, 64, dtype=torch.float64)[:, None])
    rows.append(torch.zeros(32))
    rows.append(-torch.zeros(32))
    rows.append(torch.full((32,), 2.0**-149))
    rows.append(torch.full((32,), torch.finfo(torch.float32).max))
    rows.extend(torch.tensor([broken] + [1.0] * 31) for broken in (math.inf, -math.inf, math.nan))
    return torch.stack([row.float() for row in rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_packing_equals_the_reference(dtype: torch.dtype) -> None:
    check_packing(pack_mxfp4, awkward_weights().to(dtype))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32), min_size=32, max_size=32))
def test_packing_equals_the_reference_on_any_floats(values: list[float]) -> None:
    check_packing(pack_mxfp4, torch.tensor(values))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("tie", TIES)
def test_ties_go_to_the_even_code(tie: float, sign: float) -> None:
    w = torch.full((32,), sign * tie)
    w[-1] = 4.0  # makes the scale 1
    packed = pack_mxfp4(w)
    got = unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=torch.float32)
    assert got[:-1].tolist() == [sign * TIES[tie]] * 31
    assert packed.scales.tolist() == [127]


def test_what_the_scale_cannot_hold_saturates() -> None:
    w = torch.full((32,), 7.9)
    packed = pack_mxfp4(w)
    assert unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=torch.float32).tolist() == [6.0] * 32
    beyond = pack_mxfp4(torch.full((32,), 2.0**200, dtype=torch.float64))
    assert beyond.scales.tolist() == [254]
    assert set(beyond.blocks.flatten().tolist()) == {0x77}


def ties_away_from_zero(w: Tensor) -> Mxfp4:
    return pack_mxfp4(torch.nextafter(w.double(), w.double() * 2))


def scale_rounded_up(w: Tensor) -> Mxfp4:
    packed = pack_mxfp4(w)
    return Mxfp4(pack_mxfp4(w / 2).blocks, packed.scales + 1)


@pytest.mark.parametrize("broken", [ties_away_from_zero, scale_rounded_up])
def test_broken_packing_is_noticed(broken: Callable[[Tensor], Mxfp4]) -> None:
    with pytest.raises(AssertionError):
        check_packing(broken, awkward_weights())


def test_packing_undoes_unpacking_wherever_a_block_is_canonical() -> None:
    """Every byte under every scale. Canonical blocks are those that packing can give: a magnitude of 4 or 6 fixes the
    scale, except at the lowest scale, which also takes blocks of smaller values; a NaN block has only zeros."""
    packed = every_byte_and_scale()
    blocks = packed.blocks.clone()
    blocks[1:255, :, 0] = 0x7E  # 4 and 6 * sign: the scale is now the block's own
    blocks[1:255, ::2, 0] = 0x06
    blocks[255] = 0
    values = unpack_mxfp4(blocks, scales=packed.scales, dtype=torch.float64)
    again = pack_mxfp4(values)
    assert torch.equal(again.scales, packed.scales)
    assert torch.equal(again.blocks, blocks)


def test_packed_values_are_fixed_points() -> None:
    w = torch.randn(5, 3, 96, generator=torch.Generator().manual_seed(1))
    once = pack_mxfp4(w)
    assert once.blocks.shape == (5, 3, 3, 16)
    assert once.scales.shape == (5, 3, 3)
    values = unpack_mxfp4(once.blocks, scales=once.scales, dtype=torch.bfloat16)
    assert values.shape == w.shape
    twice = pack_mxfp4(values)
    assert torch.equal(once.blocks, twice.blocks)
    assert torch.equal(once.scales, twice.scales)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = torch.randn(7, 5, 64)
    whole = pack_mxfp4(w)
    monkeypatch.setattr(module, "_PACK_CHUNK", 3)
    parts = pack_mxfp4(w)
    assert torch.equal(whole.blocks, parts.blocks)
    assert torch.equal(whole.scales, parts.scales)


def test_empty_and_transposed() -> None:
    assert pack_mxfp4(torch.zeros(0, 4, 64)).blocks.shape == (0, 4, 2, 16)
    w = torch.randn(64, 8)
    assert torch.equal(pack_mxfp4(w.T).blocks, pack_mxfp4(w.T.contiguous()).blocks)


@pytest.mark.parametrize("shape", [(33,), (2, 16), ()])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="multiples of 32"):
        pack_mxfp4(torch.zeros(shape))


def test_select_keeps_packed() -> None:
    packed = pack_mxfp4(torch.randn(4, 3, 32))
    assert torch.equal(packed.select(2).blocks, packed.blocks[2])
    assert packed.select(torch.tensor([3, 0])).scales.shape == (2, 3, 1)


def rounded_by_packing(w: Tensor) -> Tensor:
    packed = pack_mxfp4(w)
    return unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=torch.float32)


def test_rounding_is_packing_and_unpacking() -> None:
    w = awkward_weights().float()
    rounded = round_mxfp4(w)
    assert same_bits(rounded, rounded_by_packing(w))
    assert same_bits(round_mxfp4(rounded), rounded)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=32, max_size=32))
def test_rounding_is_packing_and_unpacking_for_any_floats(values: list[float]) -> None:
    w = torch.tensor(values)
    rounded = round_mxfp4(w)
    assert same_bits(rounded, rounded_by_packing(w))
    assert same_bits(round_mxfp4(rounded), rounded)


@pytest.mark.parametrize("shape", [(33,), (2, 16), ()])
def test_other_sizes_are_not_rounded(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="blocks of 32"):
        round_mxfp4(torch.ones(shape))
