from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError, TrainingError
from ossia.training.guard import SpikeGuard
from ossia.training.trainer_config import GuardConfig

CPU = torch.device("cpu")
CONFIG = GuardConfig(window=8, warmup=4, spread=5.0, margin=0.1, max_skipped=3)


def judge(guard: SpikeGuard, loss: float, norm: float = 1.0) -> bool:
    return bool(guard.judge(torch.tensor(loss), torch.tensor(norm)))


def low_median(values: list[float]) -> float:
    return statistics.median_low(values)


@given(st.lists(st.one_of(st.floats(0.5, 20.0, width=32), st.just(float("nan")), st.just(float("inf"))), max_size=40))
def test_the_rule_written_out(losses: list[float]) -> None:
    guard = SpikeGuard(CONFIG, device=CPU)
    counted: list[float] = []
    skipped = 0
    for loss in losses:
        known = [float(torch.tensor(value)) for value in counted[-CONFIG.window :]]
        expected = loss < float("inf")
        if expected and len(known) >= CONFIG.warmup:
            middle = low_median(known)
            distance = low_median([float((torch.tensor(v) - torch.tensor(middle)).abs()) for v in known])
            bound = torch.tensor(middle) + torch.maximum(5.0 * torch.tensor(distance), 0.1 * torch.tensor(middle))
            expected = loss <= float(bound)
        assert judge(guard, loss) == expected
        if expected:
            counted.append(loss)
        skipped += not expected
    assert guard.num_skipped == skipped


def test_a_spike_is_left_out_and_a_slope_is_not() -> None:
    guard = SpikeGuard(GuardConfig(), device=CPU)
    assert all(judge(guard, 6.0 - step / 50) for step in range(100))
    assert not judge(guard, 8.0)
    assert judge(guard, 4.0)
    assert guard.num_skipped_in_a_row == 0


def test_a_gradient_that_is_no_number_is_left_out() -> None:
    guard = SpikeGuard(CONFIG, device=CPU)
    assert not judge(guard, 1.0, float("inf"))
    assert not judge(guard, 1.0, float("nan"))
    assert judge(guard, 1.0, 1e9)


def test_too_many_in_a_row_stop_the_run() -> None:
    guard = SpikeGuard(CONFIG, device=CPU)
    for _ in range(2):
        judge(guard, float("nan"))
        guard.check(step=1, loss=float("nan"), folder="runs/x")
    judge(guard, float("nan"))
    with pytest.raises(
        TrainingError, match=r"step 7: 3 steps in a row were left out, the last with a loss of nan.*runs/x"
    ):
        guard.check(step=7, loss=guard.last_loss, folder="runs/x")


def test_a_warmup_beyond_the_window() -> None:
    with pytest.raises(InvalidInputError, match=r"guard\.warmup is 9; allowed: from 0 to guard\.window, 8"):
        GuardConfig(window=8, warmup=9)
