from __future__ import annotations

from dataclasses import replace

import pytest

from ossia.model.config import PUBLISHED, num_parameters
from ossia.training.flops import active_parameters, mfu, peak_flops, training_flops_per_token

GPT_OSS_20B = PUBLISHED["openai/gpt-oss-20b"]


def test_active_parameters_are_those_that_openai_names() -> None:
    """3.61 B of gpt-oss-20b and 5.13 B of 120b, by the model card; norms, biases and sinks are few."""
    assert active_parameters(GPT_OSS_20B) / 1e9 == pytest.approx(3.61, abs=0.01)
    assert active_parameters(PUBLISHED["openai/gpt-oss-120b"]) / 1e9 == pytest.approx(5.13, abs=0.02)


def test_with_every_expert_active_the_matrices_are_all_parameters() -> None:
    """What remains is the input embedding, norms, biases and sinks."""
    config = replace(GPT_OSS_20B, num_experts_per_tok=GPT_OSS_20B.num_local_experts)
    rest = num_parameters(config) - active_parameters(config) - config.vocab_size * config.hidden_size
    assert 0 < rest < 0.005 * num_parameters(config)


def test_attention_counts_the_window_of_sliding_layers() -> None:
    config = GPT_OSS_20B
    heads = config.num_attention_heads * config.head_dim
    at = {length: training_flops_per_token(config, sequence_length=length) for length in (64, 1024, 2048)}
    assert at[64] == 6 * active_parameters(config) + 12 * heads * 64 * 24
    assert at[2048] - at[1024] == 12 * heads * 1024 * 12  # half of the layers


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_mfu_is_a_share_of_the_peak() -> None:
    per_token = training_flops_per_token(GPT_OSS_20B, sequence_length=1024)
    assert mfu(1000.0, GPT_OSS_20B, sequence_length=1024, peak=4000 * per_token) == pytest.approx(0.25)
