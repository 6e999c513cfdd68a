"""The C++ kernels one by one, at every level of instructions that this CPU can run."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError, OssiaError
from ossia.kernels import native
from ossia.kernels._native import build as builder
from ossia.kernels.mxfp4 import Mxfp4, pack_mxfp4, unpack_mxfp4
from ossia.kernels.native import Q8, Weight
from ossia.kernels.rms_norm import rms_norm_torch

LEVELS = ("generic", "avx2", "avx512", "amx", "neon")
KINDS = ("float32", "bfloat16", "mxfp4", "q8", "bf12")

SHAPES = [  # T, R, D
    (1, 1, 32),
    (1, 7, 96),
    (2, 33, 160),
    (3, 70, 64),
    (5, 4, 288),
    (8, 31, 1312),
    (9, 257, 224),
    (17, 40, 2880),
    (33, 65, 352),
    (200, 34, 128),
]
BF12_SHAPES = [
    (1, 1, 64),
    (2, 33, 192),
    (3, 70, 64),
    (5, 4, 320),
    (8, 31, 1344),
    (9, 257, 448),
    (33, 65, 2880),
    (200, 34, 128),
]
DENSE_SHAPES = [(1, 5, 1), (3, 9, 17), (4, 33, 31), (7, 12, 33), (18, 37, 47), (20, 3, 101)]

# Relative to the largest output. Float32 and bfloat16 weights: sums of D products in float32. MXFP4 and Q8: activations
# have 16 bits for the largest of 32, so a product is off by at most 2^-16 of it, and these add up at random.
# On amx, products for many round activations to bfloat16, 2^-9 each at most, fine ones to twice as many bits; both
# round Q8 weights to bfloat16.
FEW_BOUND = {"float32": 2e-6, "bfloat16": 2e-6, "bf12": 2e-6, "mxfp4": 1e-4, "q8": 1e-4}
MANY_BOUND = 2e-6
MANY_BOUND_AMX = 8e-3
FINE_BOUND_AMX = {"bfloat16": 4e-5, "mxfp4": 4e-5, "q8": 8e-3}


@pytest.fixture(autouse=True)
def _library() -> Iterator[None]:
    if not native.ensure():
        pytest.skip(f"the C++ kernels are not in use: {native.info().reason}")
    before = native.info().level
    yield
    native.set_level(before)


def use_level(level: str) -> None:
    if level not in native.info().levels:
        pytest.skip(f"this CPU cannot run {level}")
    native.set_level(level)


def make_weight(kind: str, w: Tensor) -> tuple[Weight, Tensor]:
    """A float32 matrix as the kernels take it, and what it then stands for, in float64."""
    if kind == "mxfp4":
        packed = pack_mxfp4(w)
        return packed, unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=torch.float64)
    if kind == "q8":
        return (q8 := native.quantize_q8(w)), widen_q8(q8)
    if kind == "bf12":
        w[:, ::5] *= torch.logspace(-12, 0, w[:, ::5].shape[1])  # some too small for their row's common exponents
        return native.pack_bf12(cast := w.bfloat16()), cast.double()
    return (cast := w.to(getattr(torch, kind))), cast.double()


def widen_q8(weight: Q8) -> Tensor:
    return (weight.data.double().unflatten(-1, (-1, 32)) * weight.scales.double()[..., None]).flatten(-2)


def product_error(kind: str, shape: tuple[int, int, int], *, way: str) -> float:
    T, R, D = shape
    generator = torch.Generator().manual_seed(T * R + D)
    x, w, bias = (torch.randn(size, generator=generator) for size in ((T, D), (R, D), (R,)))
    x *= torch.logspace(-2, 1, D)  # of very different sizes
    weight, meant = make_weight(kind, w)
    got = native.matmul(x, weight=weight, bias=bias, way=way)
    wanted = x.double() @ meant.T + bias.double()
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", native.WAYS)
def test_products_equal_float64(level: str, kind: str, way: str) -> None:
    use_level(level)
    shapes = BF12_SHAPES if kind == "bf12" else SHAPES if kind in ("mxfp4", "q8") else SHAPES + DENSE_SHAPES
    bound = FEW_BOUND[kind] if way == "few" else MANY_BOUND
    if level == "amx" and way != "few" and kind not in ("float32", "bf12"):
        bound = MANY_BOUND_AMX if way == "many" else FINE_BOUND_AMX[kind]
    errors = {shape: product_error(kind, shape, way=way) for shape in shapes}
    assert max(errors.values()) <= bound, errors


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", native.WAYS)
def test_a_token_does_not_depend_on_the_others(level: str, kind: str, way: str) -> None:
    use_level(level)
    x, w = torch.randn(37, 192), torch.randn(43, 192)
    weight, _ = make_weight(kind, w)
    whole = native.matmul(x, weight=weight, way=way)
    for start, stop in ((0, 1), (3, 5), (7, 23), (20, 37)):
        assert torch.equal(native.matmul(x[start:stop], weight=weight, way=way), whole[start:stop])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_where_a_matrix_begins_changes_nothing(level: str, kind: str) -> None:
    """Matrices in files begin anywhere; what lies around them must not be taken in."""
    use_level(level)
    x, w = torch.randn(8, 352), torch.randn(27, 352).to(getattr(torch, kind))
    wanted = native.matmul(x, weight=w)
    for places in (1, 2, 4, 10, 16, 30):
        around = torch.full((w.numel() + 64,), torch.nan, dtype=w.dtype)
        moved = around[places : places + w.numel()].view_as(w)
        moved.copy_(w)
        for T in (1, 3, 8):
            assert torch.equal(native.matmul(x[:T], weight=moved), wanted[:T])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", native.WAYS)
def test_every_code_and_scale_of_mxfp4(level: str, way: str) -> None:
    """A product with unit vectors gives each weight back, for all 16 codes and all scales but the extreme ones."""
    use_level(level)
    scales = torch.arange(252, dtype=torch.uint8)[:, None]  # beyond, 6 times the scale overflows
    blocks = torch.tensor([(code * 17) % 256 for code in range(16)], dtype=torch.uint8).expand(252, 1, 16).contiguous()
    meant = unpack_mxfp4(blocks, scales=scales, dtype=torch.float32)
    got = native.matmul(torch.eye(32), weight=Mxfp4(blocks, scales), way=way).T
    # Weights below float32's normal range may come as zero; decoding multiplies both scales first, which is 2^-16 less.
    floor = 2.0**-104 if way == "few" else 2.0**-126
    normal = meant.abs() >= floor
    torch.testing.assert_close(got[normal], meant[normal], rtol=2e-7, atol=0)
    assert got[~normal].abs().max() < floor


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", native.WAYS)
def test_a_broken_scale_is_seen(level: str, way: str) -> None:
    use_level(level)
    packed = pack_mxfp4(torch.randn(40, 64))
    packed.scales[5, 1] = 255
    out = native.matmul(torch.randn(3, 64), weight=packed, way=way)
    is_broken = ~out.isfinite().all(dim=0)
    assert is_broken.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_activation_is_seen_in_its_token_only(level: str, kind: str, bad: float) -> None:
    use_level(level)
    weight, _ = make_weight(kind, torch.randn(9, 64))
    x = torch.randn(4, 64)
    x[2, 33] = bad
    out = native.matmul(x, weight=weight)
    assert out[2].isfinite().sum() == 0
    assert out[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
def test_zeros_give_zero(level: str) -> None:
    use_level(level)
    for kind in KINDS:
        weight, _ = make_weight(kind, torch.zeros(9, 64))
        assert not native.matmul(torch.randn(3, 64), weight=weight).any()
        weight, _ = make_weight(kind, torch.randn(9, 64))
        assert not native.matmul(torch.zeros(3, 64), weight=weight).any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", native.WAYS)
@pytest.mark.parametrize("is_mixed", [True, False])
def test_twelve_bits_keep_every_bfloat16(level: str, way: str, is_mixed: bool) -> None:
    """Products with unit vectors give each weight back, whatever else is in its row; infinite ones break their row."""
    use_level(level)
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).short().view(torch.bfloat16)
    w = (every[torch.randperm(1 << 16)] if is_mixed else every).view(-1, 64)
    got = native.matmul(torch.eye(64), weight=native.pack_bf12(w), way=way).T
    is_finite = w.isfinite().all(dim=1)
    assert torch.equal(got[is_finite], w[is_finite].float())
    assert not got[~is_finite].isfinite().all(dim=1).any()


def test_twelve_bits_take_twelve_bits() -> None:
    """Of numbers that are drawn as weights are, one in ten thousand takes more."""
    packed = native.pack_bf12(torch.randn(500, 1024).bfloat16())
    assert packed.data.shape == (500, 1536)
    assert packed.records.numel() <= 500 * 16 + 8 * 100
    with pytest.raises(InvalidInputError, match="multiple of 64"):
        native.pack_bf12(torch.randn(5, 96).bfloat16())
    with pytest.raises(InvalidInputError, match="allowed: bfloat16"):
        native.pack_bf12(torch.randn(5, 64))


def test_quantized_weights_are_half_a_step_off_at_most() -> None:
    w = torch.randn(50, 96) * torch.logspace(-3, 3, 50)[:, None]
    weight = native.quantize_q8(w)
    assert weight.data.abs().max() <= 127
    error = (widen_q8(weight) - w.double()).abs().unflatten(-1, (-1, 32))
    assert bool((error <= 0.5001 * weight.scales.double()[..., None]).all())
    assert torch.equal(widen_q8(native.quantize_q8(w.bfloat16())), widen_q8(native.quantize_q8(w.bfloat16().float())))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("D", [1, 7, 64, 130, 2880])
def test_rms_norm_equals_torch(level: str, D: int) -> None:
    use_level(level)
    x, weight = 3 * torch.randn(5, D), torch.randn(D)
    # One rounding each for the mean, the root and two products, of numbers near 1.
    torch.testing.assert_close(
        native.rms_norm(x, weight=weight, eps=1e-5), rms_norm_torch(x, weight=weight, eps=1e-5), rtol=3e-6, atol=1e-6
    )


def test_any_number_of_threads_gives_the_same() -> None:
    x, w = torch.randn(20, 96), torch.randn(300, 96)
    whole = native.matmul(x, weight=w)
    try:
        for count in (1, 2, 5):
            assert native.set_num_threads(count) == count
            assert torch.equal(native.matmul(x, weight=w), whole)
    finally:
        native.set_num_threads(None)


def test_wrong_input_is_refused() -> None:
    x, w = torch.randn(2, 8), torch.randn(3, 8)
    with pytest.raises(InvalidInputError, match=r"allowed: \[T, 8\]"):
        native.matmul(torch.randn(2, 9), weight=w)
    with pytest.raises(InvalidInputError, match="float32 and bfloat16"):
        native.matmul(x, weight=w.double())
    with pytest.raises(InvalidInputError, match="allowed: many, few, fine"):
        native.matmul(x, weight=w, way="fast")
    with pytest.raises(InvalidInputError, match="contiguous"):
        native.matmul(x, weight=torch.randn(8, 3).T)
    with pytest.raises(InvalidInputError, match="multiple of 32"):
        native.quantize_q8(w)
    with pytest.raises(InvalidInputError, match="at least 1"):
        native.set_num_threads(0)
    with pytest.raises(InvalidInputError, match="allowed on this CPU: generic"):
        native.set_level("sse9")


def test_info_says_what_is_in_use() -> None:
    found = native.info()
    assert found.is_available
    assert found.level in found.levels
    assert found.levels[0] == "generic"
    assert found.num_threads >= 1
    assert Path(found.reason).name == builder.LIBRARY_NAME


def in_process(code: str, **environment: str) -> str:
    """What a fresh process prints, with variables set."""
    result = subprocess.run(
        [sys.executable, "-c", f"from ossia.kernels import native\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return result.stdout.strip()


def test_the_environment_chooses() -> None:
    show = "print(native.info().level, native.info().num_threads, native.info().reason)"
    assert in_process(show, OSSIA_NATIVE="0").endswith("turned off by OSSIA_NATIVE=0")
    assert in_process(show, OSSIA_NATIVE="generic", OSSIA_NATIVE_THREADS="3").startswith("generic 3")
    assert "OSSIA_NATIVE is 'mmx'; allowed: 0, generic" in in_process(show, OSSIA_NATIVE="mmx")


def test_without_a_library_all_says_so(tmp_path: Path) -> None:
    code = "print(native.is_available(), native.info().reason)\nnative.require()"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        in_process(code, OSSIA_NATIVE_FOLDER=str(tmp_path))
    assert "not built; build it with: python -m ossia.kernels.native build" in caught.value.stdout
    assert OssiaError.__name__ in caught.value.stderr


def test_a_file_that_is_no_library_is_not_used(tmp_path: Path) -> None:
    (tmp_path / builder.LIBRARY_NAME).write_bytes(b"not a library")
    assert "cannot be loaded" in in_process("print(native.info().reason)", OSSIA_NATIVE_FOLDER=str(tmp_path))


def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "source_hash", lambda: "another")
    result = native._open(Path(native.info().reason))
    assert result.library is None
    assert "built from other sources" in result.reason


def test_building_without_a_compiler_gives_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert builder.build(tmp_path).reason.startswith("no C++ compiler was found")
    result = builder.build(tmp_path, compiler=[str(tmp_path / "absent")])
    assert result.library is None
    assert "cannot build" in result.reason


def test_a_compiler_that_fails_gives_its_first_line(tmp_path: Path) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    script.chmod(0o755)
    result = builder.build(tmp_path / "out", compiler=[str(script)])
    assert result.library is None
    assert "no such option" in result.reason
    assert list((tmp_path / "out").iterdir()) == []


def test_structures_are_as_large_as_in_c() -> None:
    sizes = (ctypes.c_int32 * 4)()
    native.require().ossia_abi_sizes(sizes)
    kinds = (native.CMatrix, native.CLayer, native.CModel, native.CStep)
    assert list(sizes) == [ctypes.sizeof(kind) for kind in kinds]


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    assert native.main(["info"], lines.append) == 0
    assert lines[0].startswith("the CPU runs on ")
    assert native.main(["brew"], lines.append) == 2
    assert lines[1] == "got brew; allowed: build, info"
