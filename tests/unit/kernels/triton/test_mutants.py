"""The tests of the CUDA kernels can fail: a broken kernel is found by the test that should find it.

The sources are compiled for the CPU, so this needs no GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.unit.kernels.triton import test_attention, test_experts, test_linear, test_routing
from tests.unit.kernels.triton.conftest import Emulator

from ossia.kernels._cuda import driver

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def attend(*, context: int, window: int | None) -> None:
    test_attention.test_attention_matches_float32(CPU, [context, 5], 4, 2, 64, 32, window)


def run_experts() -> None:
    test_experts.test_experts_match_float32(CPU, 3, 5, 2, 224, 96, 8, 1)


def run_many(**sizes: int) -> None:
    test_experts.assert_many_tokens_match_float32(
        CPU, **({"T": 5, "E": 3, "A": 2, "D": 64, "F": 32, "favour": 0, "tile_size": 128} | sizes)
    )


def run_skewed() -> None:
    """Tiles of up to 96 and of up to 32 tokens."""
    run_many(T=90, E=2, A=1, D=96, F=64, favour=90)


def pack() -> None:
    test_experts.test_packing_is_the_reference_layout(CPU, 2, 32, 64)


def project() -> None:
    test_linear.test_qkv_turns_and_stores(CPU, 4, 96, 8, 2, 64, False)


def logits() -> None:
    test_linear.test_logits_match_float32(CPU, 1, 864, 40)


def long_logits() -> None:
    test_linear.test_logits_match_float32(CPU, 2, 2080, 24)


def tall_logits() -> None:
    """More row tiles than blocks."""
    test_linear.test_logits_match_float32(CPU, 5, 96, 200)


def add_many() -> None:
    test_linear.test_many_tokens_take_their_experts_outputs(CPU, 256, 264, 5)


def add_residual() -> None:
    test_linear.test_the_stream_takes_the_experts_outputs(CPU, 5, 132, 3, 1)


def route() -> None:
    test_routing.test_routing_matches_the_reference(CPU, 5, 128, 4, 320, 8, True, True)


def route_plain() -> None:
    test_routing.test_routing_matches_the_reference(CPU, 3, 8, 2, 3104, 64, True, False)


class Mutant(NamedTuple):
    """One place of one source, its includes put in place, and the test that has to find it broken."""

    source: str
    sound: str
    broken: str
    find: Callable[[], None]


MUTANTS = {
    "window": Mutant(
        "attention",
        "max_int(0, context - window)",
        "max_int(0, context - window - 1)",
        lambda: attend(context=300, window=128),
    ),
    "future": Mutant("attention", "key < context;", "key <= context;", lambda: attend(context=301, window=None)),
    "sink": Mutant(
        "attention",
        "sum = exp2_fast(sink - largest);\n    }",
        "sum = 0;\n    }",
        lambda: attend(context=17, window=None),
    ),
    "softmax": Mutant("attention", "out[0] *= kept_one,", "out[0] *= 1.0f,", lambda: attend(context=300, window=None)),
    "exponent": Mutant("experts", "(scales << 15)", "(scales << 14)", run_experts),
    "columns": Mutant("experts", "row + block * 64", "row", run_experts),
    "swizzle": Mutant("experts_many", "(piece ^ row % 8)", "piece", run_many),
    "scales of rows": Mutant("experts_many", "w.scales, 0, 0x4242)", "w.scales, 0, 0x4141)", run_many),
    "stages": Mutant("experts_many", "to_fill = (STAGES - 2)", "to_fill = (STAGES - 1)", lambda: run_many(D=640)),
    "ahead": Mutant("experts_many", "a[1], ahead + 1, 1)", "a[1], ahead, 1)", lambda: run_many(D=160)),
    "weight": Mutant("experts_many", "shares[token]", "shares[0]", run_many),
    "choice": Mutant("experts_many", "work.count <= 64", "work.count <= 96", run_skewed),
    "narrow": Mutant(
        "experts_many",
        "if (MOST == 64) {\n    if (work.count <= 32)",
        "if (MOST == 64) {\n    if (work.count <= 64)",
        lambda: run_many(T=70, E=2, A=1, D=96, F=160, favour=90, tile_size=64),
    ),
    "passes": Mutant("experts_many", "target + stage + PASS * i * 128", "target + stage", run_skewed),
    "groups": Mutant("experts_many", "blockIdx.x * (GROUPS * 4)", "blockIdx.x * 4", lambda: run_many(F=160)),
    "code": Mutant("pack", "{12, 13, 14, 16 + 5}", "{12, 13, 14, 5}", pack),
    "pair": Mutant("experts", "rotate_right(rest, 4)", "rotate_right(rest, 20)", run_experts),
    "scale": Mutant("pack", "block = 2 * chunk + i % 2;", "block = 2 * chunk;", pack),
    "rope": Mutant("linear", "*second = *first + C / 2;", "*second = *first + 8;", project),
    "turns": Mutant("linear", "w < LINEAR_WARPS; ++w", "w < LINEAR_WARPS - 1; ++w", logits),
    "ring": Mutant("linear", "drain == (STAGES - 1)", "drain == (STAGES - 2)", long_logits),
    "next tile": Mutant("linear", "next_tile += gridDim.x;", "next_tile += 1;", tall_logits),
    "many tokens": Mutant("residual", "parts && first < A;", "parts && first < A - 1;", add_many),
    "norm": Mutant("residual", "/ D + epsilon", "/ (D - 4) + epsilon", add_residual),
    "update": Mutant("residual", "x[3] += high_bf16(more.y)", "x[3] += low_bf16(more.y)", add_residual),
    "plain": Mutant("router", "n * D + i) = pair;", "n * D + i) = scale_up(pair);", route_plain),
    "shares": Mutant("router", "weights[lane] = weight / sum", "weights[lane] = weight", route),
    "tiles": Mutant("router", "min_int(tile_size, counts[e] - done)", "tile_size", route),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_kernel_is_found(
    name: str, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant = MUTANTS[name]
    read = driver.read_source

    def read_broken(source: str) -> str:
        text = read(source)
        if source != mutant.source:
            return text
        assert text.count(mutant.sound) >= 1
        return text.replace(mutant.sound, mutant.broken)

    monkeypatch.setattr(driver, "load_kernel", emulator.kernel)
    mutant.find()
    broken = Emulator(tmp_path, read=read_broken)
    monkeypatch.setattr(driver, "load_kernel", broken.kernel)
    with pytest.raises(AssertionError):
        mutant.find()
