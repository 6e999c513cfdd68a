"""The gate: a run whose trainer and engine are not the same model any more must stop."""

# N sampled tokens

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import TrainingError
from ossia.training.rl.config import GateConfig


class Difference(NamedTuple):
    """How trainer and engine differ on a step's sampled tokens, in natural logarithms of probability.

    Attributes:
        mean: mean absolute difference.
        largest: the largest absolute one.
        kl: estimate of KL(engine || trainer), the mean of r - 1 - log r with r = trainer / engine (Schulman's k3).
    """

    mean: float
    largest: float
    kl: float


def compare(trainer: Tensor, engine: Tensor) -> Difference:
    """Compare log-probabilities [N] of the same tokens by the same weights."""
    gap = trainer.double() - engine.double()
    size = gap.abs()
    return Difference(float(size.mean()), float(size.max()), float((torch.expm1(gap) - gap).mean()))


def check_gate(difference: Difference, *, config: GateConfig, step: int) -> None:
    """Let a step pass, or stop the run.

    Args:
        difference: from `compare`.
        config: from `gate_bounds`, so that both bounds are given.
        step: for the message.

    Raises:
        TrainingError: a difference is beyond its bound, or is no number; nothing of this step was learned.
    """
    mean, largest = difference.mean, difference.largest
    assert config.max_mean is not None
    assert config.max_single is not None
    if mean <= config.max_mean and largest <= config.max_single:  # false for NaN
        return
    raise TrainingError(
        f"step {step}: trainer and engine differ on the tokens just sampled: {mean:.3g} nats on average (bound "
        f"gate.max_mean {config.max_mean:g}), {largest:.3g} at most (bound gate.max_single {config.max_single:g}). "
        "They no longer run the same weights or the same arithmetic, so the rewards would teach another model than the "
        "one that earned them. Replay the routing (rollout.replay_routing = true) and run both in one precision; raise "
        "the bounds only if you know where the difference comes from. The last checkpoint is from before"
    )
