"""Which runner an engine gets on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.engine import build as module
from ossia.engine.engine import Engine
from ossia.engine.native_runner import NativeRunner
from ossia.engine.request import Request, SamplingParams
from ossia.engine.runner import TorchRunner
from ossia.kernels import native

MakeEngine = Callable[..., Engine]
needs_native = pytest.mark.skipif(not native.is_available(), reason="the C++ kernels are not in use here")


@needs_native
@pytest.mark.parametrize("quant", ["none", "q8", "bf12"])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_the_kernels_take_every_cache(make_engine: MakeEngine, kv_dtype: str, quant: str) -> None:
    engine = make_engine(kv_dtype=kv_dtype, cpu_quant=quant)
    assert isinstance(engine.runner, NativeRunner)
    assert engine.runner.cache.dtype == (torch.float8_e4m3fn if kv_dtype == "fp8" else torch.float32)


@needs_native
def test_fp8_gives_what_torch_gives(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hold the same rounded keys and values, so the tokens are the same ones."""
    texts = []
    for is_native in (True, False):
        monkeypatch.setattr(module.native, "is_available", lambda is_native=is_native: is_native)
        engine = make_engine(kv_dtype="fp8")
        assert isinstance(engine.runner, NativeRunner if is_native else TorchRunner)
        texts.append(answer(engine))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12


def answer(engine: Engine) -> list[int]:
    """Twelve greedy tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    engine.add(Request(id="r", prompt_ids=tuple(range(100, 130)), params=params))
    tokens: list[int] = []
    while engine.has_work:
        for event in engine.step():
            tokens += event.token_ids
    return tokens


def test_without_the_kernels_torch_runs_and_says_so(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module.native, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        engine = make_engine()
    assert isinstance(engine.runner, TorchRunner)
    assert "the C++ kernels are not in use" in caplog.text
    with pytest.raises(InvalidInputError, match="needs the C\\+\\+ kernels"):
        make_engine(cpu_quant="q8")
