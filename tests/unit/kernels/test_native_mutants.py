"""The tests of the C++ kernels can fail: a broken kernel is found by them. And sanitizers find nothing in sound ones.

Both build a library of their own and run the two test files on it, in another process.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from ossia.kernels._native import build as builder

TESTS = [str(Path(__file__).with_name(name)) for name in ("test_native.py", "test_native_model.py")]


class Mutant(NamedTuple):
    """One place of one file, broken; `level` is where it shows."""

    file: str
    sound: str
    broken: str
    level: str = "generic"


MUTANTS = {
    "window": Mutant("attention.h", "? position - window + 1 - base", "? position - window + 2 - base"),
    "future": Mutant("attention.h", "end = position + 1 - base <", "end = position + 2 - base <"),
    "sink": Mutant("attention.h", "denominators[r] = 1.0f", "denominators[r] = 0.0f"),
    "up": Mutant("vectors.h", "(up + 1.0f)", "(up + 0.99f)"),
    "clamp": Mutant("vectors.h", "up < bottom ? bottom : up", "up < bottom ? up : up"),
    "rope": Mutant("vectors.h", "b * cos[i + half] + a", "b * cos[i + half] - a"),
    "norm": Mutant("vectors.h", "(float)dim + eps", "(float)(dim + 1) + eps"),
    "code": Mutant("level_generic.cpp", "-6, -8, -12}", "-6, -8, -11}"),
    "low byte": Mutant("activations.h", "(a - hi * 256)", "(a - hi * 255)"),
    "shares": Mutant("routing.h", "shares[a] /= total", "shares[a] /= 1.01f * total"),
    "bias": Mutant("experts.h", "add_bias(layer.down, expert", "if (expert != 2) add_bias(layer.down, expert"),
    "slot": Mutant("attend.h", "(float*)run.step.values[index]", "(float*)run.step.values[0]"),
    "fp8 tie": Mutant("fp8.h", "bits += 0x7ffffu + (bits >> 20 & 1u);", "bits += 0x80000u;"),
    "fp8 small": Mutant("vectors.h", "(magnitude < 8u)", "(magnitude < 7u)"),
    "few experts": Mutant("forward.cpp", "pack(layer.gate_up.kind, row, D", "pack(layer.gate_up.kind, normed, D"),
    "avx2 code": Mutant("avx2_rows.h", "-6, -8, -12));", "-6, -8, -11));", "avx2"),
    "avx2 columns": Mutant("avx2_rows.h", "{0, 2, 1, 3}", "{0, 1, 2, 3}", "avx2"),
    "avx2 lower half": Mutant("avx2_rows.h", "_mm256_and_si256(low, upper)", "low", "avx2"),
    "avx2 q8": Mutant("avx2_rows.h", "load_bytes(x.x + 16)", "load_bytes(x.x)", "avx2"),
    "avx512 high": Mutant("avx512.h", "_mm512_set1_epi32(256)", "_mm512_set1_epi32(255)", "avx512"),
    "avx512 tail": Mutant("avx512.h", "1 << left * (Groups::kData", "1 << (left - 1) * (Groups::kData", "avx512"),
    "avx512 last line": Mutant("avx512.h", "(__mmask16)((1 << shift) - 1)", "(__mmask16)((1 << shift) - 2)", "avx512"),
    "far rows": Mutant("dense_rows.h", "4, kFarRows ? steps : 1,", "4, kFarRows ? steps + 1 : 1,", "avx512"),
    "bf12 zero": Mutant("bf12.h", "(vu)(code != 15u) &", "(vu)(code != 14u) &"),
    "bf12 others": Mutant("bf12.h", "sum += other.value * x", "sum -= other.value * x"),
    "bf12 widened others": Mutant("bf12.h", "out[other.column] = other.value;", "out[other.column] += 0;"),
    "bf12 bytes": Mutant("avx512.h", "0x10100000 * k", "0x10100000 * (k % 2)", "avx512"),
    "amx exponent": Mutant("level_amx.cpp", "_mm512_slli_epi16(centred, 7)", "_mm512_slli_epi16(centred, 6)", "amx"),
}


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if builder.find_compiler() is None:
        pytest.skip("no C++ compiler")


def run_tests(library: Path, *, level: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    select = ["-k", f"{level} or broken or native_says"] if level else []
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *select, *TESTS],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OSSIA_NATIVE_FOLDER": str(library.parent), "OMP_NUM_THREADS": "1", **environment},
    )


def builder_in(folder: Path) -> ModuleType:
    """The build module of a copy of the sources; what it builds claims to be of the original ones."""
    spec = importlib.util.spec_from_file_location("mutant_build", folder / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["source_hash"] = builder.source_hash
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_kernel_fails_the_tests(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    copy = tmp_path / "source"
    shutil.copytree(builder.SOURCES, copy, ignore=shutil.ignore_patterns("*.so", ".build-*", "__pycache__"))
    text = (copy / mutant.file).read_text()
    assert text.count(mutant.sound) == 1
    (copy / mutant.file).write_text(text.replace(mutant.sound, mutant.broken))
    result = builder_in(copy).build(tmp_path / "built", only_generic=mutant.level == "generic")
    assert result.library is not None, result.reason
    outcome = run_tests(result.library, level=mutant.level)
    if f"this CPU cannot run {mutant.level}" in outcome.stdout:
        pytest.skip(f"this CPU cannot run {mutant.level}")
    assert outcome.returncode == 1, outcome.stdout
    assert "1 failed" in outcome.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer, over all tests at all levels."""
    result = builder.build(tmp_path, sanitize=True)
    if result.library is None:
        pytest.skip(f"cannot build with sanitizers: {result.reason}")
    compiler = builder.find_compiler()
    assert compiler is not None
    preload = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    outcome = run_tests(
        result.library,
        LD_PRELOAD=preload.stdout.strip(),
        # Python itself leaks at exit, and torch's libraries are not instrumented.
        ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
    )
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-8000:]
    assert " passed" in outcome.stdout
    assert "runtime error" not in outcome.stderr


@pytest.mark.slow
def test_arm_kernels_multiply_right(tmp_path: Path) -> None:
    """`arm_check.cpp` and the kernels, compiled for ARM and run by an emulator: every kind of matrix, each level."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no cross compiler for ARM (aarch64-linux-gnu-g++) or no emulator (qemu-aarch64)")
    sources = [path for path in sorted(builder.SOURCES.glob("*.cpp")) if path.name not in builder.X86_ONLY]
    check = Path(__file__).with_name("arm_check.cpp")
    flags = [*builder.COMMON_FLAGS, "-static", "-pthread", f"-I{builder.SOURCES}", '-DOSSIA_SOURCE_HASH="x"']
    program = tmp_path / "check"
    subprocess.run([compiler, *flags, *map(str, sources), str(check), "-o", str(program)], check=True)
    outcome = subprocess.run([emulator, str(program)], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout
    assert "neon mxfp4 way 1" in outcome.stdout


@pytest.mark.slow
def test_arm_sources_compile(tmp_path: Path) -> None:
    """NEON's level and all that goes with it, by a cross compiler: nothing is run."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no cross compiler for ARM (aarch64-linux-gnu-g++)")
    for source in sorted(builder.SOURCES.glob("*.cpp")):
        if source.name in builder.X86_ONLY:
            continue
        flags = [*builder.COMMON_FLAGS, *builder.LEVEL_FLAGS.get(source.name, ()), '-DOSSIA_SOURCE_HASH="x"']
        command = [compiler, *flags, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
