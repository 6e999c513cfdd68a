from __future__ import annotations

import pytest

from ossia.model.config import PUBLISHED
from ossia.model.cost import expected_experts, prompt_flops, step_bytes

SMALL, LARGE = PUBLISHED["openai/gpt-oss-20b"], PUBLISHED["openai/gpt-oss-120b"]


def test_one_sequence_reads_what_the_published_sizes_say() -> None:
    # 3.6 B and 5.1 B parameters are active; 3.715 and about 5 GB a token with 16-bit dense weights, at 3,145 GB/s.
    assert step_bytes(SMALL, num_seqs=1, context=192) / 3145e9 == pytest.approx(1.18e-3, rel=0.01)
    assert step_bytes(LARGE, num_seqs=1, context=192) / 3145e9 == pytest.approx(1.59e-3, rel=0.01)


def test_more_sequences_use_more_experts_up_to_all() -> None:
    counts = [expected_experts(SMALL, num_tokens=n) for n in (1, 8, 64, 10_000)]
    assert counts[0] == pytest.approx(4)
    assert counts[1] == pytest.approx(21.0, abs=0.1)
    assert counts == sorted(counts)
    assert counts[-1] == pytest.approx(32)


def test_context_costs_in_full_layers_only_beyond_the_window() -> None:
    window = SMALL.sliding_window
    near = step_bytes(SMALL, num_seqs=1, context=window) - step_bytes(SMALL, num_seqs=1, context=window - 1)
    far = step_bytes(SMALL, num_seqs=1, context=window + 1) - step_bytes(SMALL, num_seqs=1, context=window)
    assert near == 24 * 2 * 8 * 64 * 2
    assert far == near / 2


def test_eight_bits_halve_the_dense_weights() -> None:
    whole, half = (step_bytes(SMALL, num_seqs=1, context=1, dense_bytes=size) for size in (2, 34 / 32))
    assert whole == pytest.approx(3.715e9, rel=0.01)
    assert half == pytest.approx(2.575e9, rel=0.01)


def test_a_prompt_costs_more_than_its_tokens_alone() -> None:
    assert prompt_flops(SMALL, length=8192) / 788e12 == pytest.approx(75e-3, rel=0.06)
    assert prompt_flops(SMALL, length=2000) > 2 * prompt_flops(SMALL, length=1000)
