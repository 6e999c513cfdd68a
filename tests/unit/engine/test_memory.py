from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.core.errors import NotEnoughMemoryError
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine import memory as module
from ossia.engine.build import EngineConfig
from ossia.engine.memory import check_memory, memory_need, what_fits
from ossia.model.checkpoint.source import read_config
from ossia.model.config import PUBLISHED
from ossia.model.loading import FoundModel

SMALL, LARGE = PUBLISHED["openai/gpt-oss-20b"], PUBLISHED["openai/gpt-oss-120b"]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.native, "is_available", lambda: True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`machine(free, config)`: a machine with so much free memory, where any name is that model."""

    def make(free: int | None, config: Any = SMALL, *, format_name: str = "hf-mxfp4") -> None:
        monkeypatch.setattr(module, "free_memory", lambda: free)
        monkeypatch.setattr(module, "find", lambda _: FoundModel(config, Path("x"), format_name, 1))

    return make


def test_what_the_published_models_need() -> None:
    """Weights are the files' 12.8 and 60.8 GiB; a token of 20b has 24,576 bytes in full layers."""
    need = memory_need(SMALL, engine=EngineConfig(context_length=8192))
    assert need.weights == 13_761_264_768
    assert 8192 * 24_576 < need.kv_cache < 1.05 * 8192 * 24_576
    assert need.total < 14.5 * GIB
    assert memory_need(LARGE).weights == pytest.approx(60.77 * GIB, rel=0.001)
    assert memory_need(SMALL, is_packed=False).weights == pytest.approx(38.96 * GIB, rel=0.001)


def test_options_change_the_need() -> None:
    def total(**options: Any) -> int:
        return memory_need(SMALL, engine=EngineConfig(**options)).total

    plain = memory_need(SMALL)
    assert total(kv_dtype="fp8") == plain.total - plain.kv_cache // 2
    assert total(context_length=131_072) > plain.total + 2.5 * GIB
    assert total(kv_cache_bytes=GIB) == plain.total - plain.kv_cache + GIB
    assert total(num_pages=100) < plain.total
    # lm_head is 1.08 GiB, of which 8 bits save 0.5; attention saves as much but keeps q, k and v.
    assert 0.2 * GIB < plain.total - total(cpu_quant="q8") < 0.8 * GIB
    # Of 2.4 GB 12 bits save a quarter, less than q, k and v, which are kept.
    assert 0 < total(cpu_quant="bf12") - plain.total < 0.2 * GIB
    assert total(max_num_batched_tokens=64) < plain.total


@pytest.mark.parametrize(("quant", "measured"), [("none", 12.60), ("q8", 12.14), ("bf12", 12.71)])
def test_the_need_is_what_was_measured_and_little_more(quant: str, measured: float) -> None:
    """Resident GiB with a context of 8,192 tokens filled (benchmarks/results/cpu-20b-start.md). The embeddings are
    needed whole, 1.08 GiB, of which a process only touches the rows of its tokens."""
    need = memory_need(SMALL, engine=EngineConfig(context_length=8192, max_num_seqs=1, cpu_quant=quant))
    assert measured < need.total / GIB < measured + 1.5


def test_torch_keeps_small_models_in_float32() -> None:
    nano = read_config(PACKAGE_ROOT / "nano")
    assert memory_need(nano, is_native=True).weights == pytest.approx(25.2e6, rel=0.01)
    assert memory_need(nano, is_native=False).weights == pytest.approx(4 * 31.1e6, rel=0.01)


def test_a_model_that_fits_passes(machine: Any) -> None:
    machine(16 * GIB)
    check_memory("m")
    machine(None)
    check_memory("m")


def test_120b_on_a_laptop_is_refused_and_20b_proposed(machine: Any) -> None:
    machine(16 * GIB, LARGE)
    with pytest.raises(NotEnoughMemoryError) as caught:
        check_memory("big")
    message = str(caught.value)
    for part in (
        "big needs about",
        "weights 60.8 GiB",
        "16.0 GiB are free",
        "openai/gpt-oss-20b",
        "OSSIA_MEMORY_CHECK=0",
    ):
        assert part in message
    assert "--context-length" not in message
    assert caught.value.needed > caught.value.free == 16 * GIB


def test_a_shorter_context_is_proposed(machine: Any) -> None:
    machine(15 * GIB)
    with pytest.raises(NotEnoughMemoryError, match=r"131,072 tokens .* a context of 32,768 tokens"):
        check_memory("m", engine=EngineConfig(context_length=131_072))
    check_memory("m", engine=EngineConfig(context_length=32_768))


def test_each_proposal_fits(machine: Any) -> None:
    engine = EngineConfig(context_length=131_072)
    need = memory_need(SMALL, engine=engine).total
    found = what_fits(SMALL, free=need - 1, engine=engine, is_packed=True)
    assert [text.split(" (")[-1].rstrip(")") for text in found] == [
        "--context-length",
        "--kv-dtype fp8",
        "--cpu-quant q8",
        "nano",
    ]
    assert what_fits(SMALL, free=14 * GIB, engine=EngineConfig(), is_packed=False)[0].startswith("the same model")
    assert what_fits(LARGE, free=GIB, engine=EngineConfig(), is_packed=True) == ["nano"]


def test_it_can_be_turned_off(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(GIB)
    monkeypatch.setenv("OSSIA_MEMORY_CHECK", "0")
    check_memory("m")


def test_a_gpu_is_not_looked_at(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(GIB)
    monkeypatch.setattr(module, "choose_device", lambda _: torch.device("cuda"))
    check_memory("m", device="cuda")


def test_a_model_that_is_not_here_is_left_to_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 1)
    monkeypatch.setattr(module, "find", lambda _: FoundModel(SMALL))
    check_memory("openai/gpt-oss-20b")
