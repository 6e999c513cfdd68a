"""llama.cpp loads our GGUF of nano, cuts text into the same ids and answers with the same greedy tokens."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from ossia.harmony.content import Effort
from ossia.model.checkpoint.gguf import write_gguf
from ossia.model.checkpoint.load import resolve_model
from ossia.model.loading import load

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it builds llama.cpp from source)")

from benchmarks.engine import gguf_llama

ERROR = 0.02
"""The median, of logits relative to their norm. llama.cpp's 8-bit activations give 0.005 to 0.01; without the rope keys
it is 0.05, with a window of 64 0.06, without the biases of q, k and v 0.15."""
TIE = 0.5
"""Where likelihoods of two tokens differ by less, rounding may turn them over."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bf16", "f16", "q8_0"])
@pytest.mark.parametrize("effort", [Effort.LOW, Effort.MEDIUM])
def test_same_greedy_tokens(kind: str, effort: Effort, tmp_path: Path) -> None:
    loaded = load("nano", device="cpu")
    path = tmp_path / "nano.gguf"
    write_gguf(resolve_model("nano"), path, dense=kind)
    answers = list(gguf_llama.compare(loaded, model=gguf_llama.reference(), path=path, efforts=[effort]))
    assert len(answers) == len(gguf_llama.QUESTIONS)
    assert statistics.median(answer.error for answer in answers) < ERROR
    assert sum(answer.num_tokens for answer in answers) > 100
    different = [answer for answer in answers if answer.differs is not None]
    assert len(different) <= 1
    assert all(answer.gap is not None and answer.gap < TIE for answer in different)
