from __future__ import annotations

import numpy as np
import pytest

from ossia.core.errors import InvalidInputError
from ossia.engine.build import EngineConfig
from ossia.evals.speed import SpeedConfig, count_experts, measure_speed
from ossia.model.cost import expected_experts
from ossia.model.loading import load


@pytest.mark.parametrize(
    "wrong", [{"batches": (0,)}, {"batches": (), "prompts": ()}, {"output": 2}, {"prompt": 0}, {"prompts": (-1,)}]
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        SpeedConfig(**wrong)  # type: ignore[arg-type]


def test_experts_are_counted_by_step_and_layer() -> None:
    def routing(*steps: list[list[int]]) -> np.ndarray:
        return np.array(steps)

    prompt = [[9, 9], [9, 9]]
    one = routing(prompt, [[0, 1], [2, 3]], [[0, 1], [0, 1]])
    two = routing(prompt, [[0, 1], [0, 1]], [[2, 3], [0, 4]])
    assert count_experts([one, two], 1) == (2 + 4 + 4 + 3) / 4


def test_rows_say_what_was_run() -> None:
    done: list[tuple[int, int]] = []
    config = SpeedConfig(batches=(1, 3), prompt=5, output=6, prompts=(40,), counts_experts=True)
    loaded = load("nano", device="cpu")
    rows = measure_speed(
        loaded,
        config,
        engine_config=EngineConfig(kv_cache_bytes=1 << 24),
        progress=lambda count, total: done.append((count, total)),
    )
    assert [(row.kind, row.num_seqs, row.num_tokens) for row in rows] == [
        ("decode", 1, 8),
        ("decode", 3, 8),
        ("prompt", 1, 40),
    ]
    assert done == [(1, 3), (2, 3), (3, 3)]
    one, three, prompt = rows
    assert one.num_experts == 4
    assert three.num_experts is not None
    assert 4 <= three.num_experts <= 12 < expected_experts(loaded.model.config, num_tokens=100)
    assert three.tokens_per_second == pytest.approx(3e3 / three.ms)
    assert prompt.tokens_per_second == pytest.approx(40e3 / prompt.ms)
    assert prompt.teraflops is not None
    assert prompt.limit_ms is None
    assert (one.share is None) == (one.limit_ms is None)
