"""The GPU's sampler against the reference; without a GPU in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os

import pytest
import torch

from ossia.kernels.gpu.sampling import sample_gpu
from ossia.kernels.sampling import sample

pytest.importorskip("triton", reason="needs Triton")
pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    pytest.skip("needs a CUDA GPU, or TRITON_INTERPRET=1")


@pytest.mark.parametrize(("N", "V"), [(1, 50), (7, 2048), (16, 9000)])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_it_chooses_what_the_reference_chooses(device: torch.device, N: int, V: int, min_p: float) -> None:
    generator = torch.Generator().manual_seed(N)
    logits = torch.randn(N, V, generator=generator) * 3
    temperature = torch.tensor([0.0, 1.0, 0.2, 5.0]).double().repeat(N)[:N]
    uniforms = torch.rand(N, generator=generator, dtype=torch.float64)
    floors = torch.full((N,), min_p, dtype=torch.float64)
    expected = sample(logits, temperature=temperature, uniforms=uniforms, min_p=floors)
    chosen = sample_gpu(
        logits.to(device),
        temperature=temperature.to(device),
        uniforms=uniforms.to(device),
        min_p=floors.to(device),
    )
    assert torch.equal(chosen.cpu(), expected)


def test_the_first_of_equals_and_the_ends_of_the_uniforms(device: torch.device) -> None:
    logits = torch.full((4, 5000), -1.0, device=device)
    logits[:, [700, 4000]] = 2.0
    temperature = torch.tensor([0.0, 0.01, 0.01, 0.01], dtype=torch.float64, device=device)
    uniforms = torch.tensor([0.5, 1e-9, 0.75, 1 - 2**-53], dtype=torch.float64, device=device)
    chosen = sample_gpu(logits, temperature=temperature, uniforms=uniforms, min_p=torch.zeros_like(uniforms))
    assert chosen.tolist() == [700, 700, 4000, 4000]


def test_cuts_take_the_sorting_way(device: torch.device) -> None:
    logits = torch.arange(30.0, device=device).repeat(2, 1)
    one = torch.ones(2, dtype=torch.float64, device=device)
    chosen = sample_gpu(
        logits, temperature=one, uniforms=one * 0.999, min_p=one * 0, top_k=torch.tensor([1, 1], device=device)
    )
    assert chosen.tolist() == [29, 29]
