from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ossia.training.rl.config import PolicyConfig
from ossia.training.rl.loss import TokenValues, importance_weights, policy_loss


def values(
    engine: list[float], old: list[float], advantage: list[float], reference: list[float] | None = None
) -> TokenValues:
    return TokenValues(
        torch.tensor(engine),
        torch.tensor(old),
        torch.tensor(advantage),
        None if reference is None else torch.tensor(reference),
    )


def gradient(logprobs: list[float], known: TokenValues, **fields: float) -> Tensor:
    now = torch.tensor(logprobs, requires_grad=True)
    policy_loss(now, known, config=PolicyConfig(**fields)).total.backward()
    assert now.grad is not None
    return now.grad


def test_on_policy_the_gradient_is_reinforce() -> None:
    """With pi = pi_old = pi_engine, d loss / d logprob = -A: Williams 1992."""
    same = [-0.5, -1.0, -2.0]
    grad = gradient(same, values(same, same, [1.0, -0.5, 0.0]))
    torch.testing.assert_close(grad, torch.tensor([-1.0, 0.5, 0.0]))


def test_importance_weights_correct_the_engine_and_are_cut_off() -> None:
    known = values([-1.0, -1.0, -5.0], [-1.0, -1.0 + math.log(1.5), -1.0], [1.0, 1.0, 1.0])
    torch.testing.assert_close(importance_weights(known, config=PolicyConfig()), torch.tensor([1.0, 1.5, 2.0]))
    torch.testing.assert_close(gradient(known.old.tolist(), known), -torch.tensor([1.0, 1.5, 2.0]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "is_held"),
    [
        (1.27, 1.0, False),
        (1.29, 1.0, True),
        (1.29, -1.0, False),
        (0.81, -1.0, False),
        (0.79, -1.0, True),
        (0.5, 1.0, False),
    ],
)
def test_the_ratio_is_held_where_it_went_far_enough(ratio: float, advantage: float, is_held: bool) -> None:
    """Clip-higher: up to 1.28, down to 0.8; on the other side of 1 nothing is held back."""
    known = values([-1.0], [-1.0], [advantage])
    now = -1.0 + math.log(ratio)
    grad = gradient([now], known, clip_low=0.2, clip_high=0.28)
    assert float(grad) == pytest.approx(0.0 if is_held else -ratio * advantage)
    assert int(policy_loss(torch.tensor([now]), known, config=PolicyConfig()).clipped) == is_held


def test_tokens_are_summed_so_that_all_weigh_the_same() -> None:
    same = [-1.0] * 4
    total = policy_loss(torch.tensor(same), values(same, same, [1.0, 1.0, 1.0, -3.0]), config=PolicyConfig()).total
    assert float(total) == pytest.approx(0.0)


def test_the_price_of_divergence_pulls_back_to_the_reference() -> None:
    same, reference = [-1.0, -1.0], [-0.5, -2.0]
    grad = gradient(same, values(same, same, [0.0, 0.0], reference), kl=0.1)
    assert float(grad[0]) < 0 < float(grad[1])  # descent raises the first and lowers the second
    loss = policy_loss(torch.tensor(same), values(same, same, [0.0, 0.0], reference), config=PolicyConfig(kl=0.1))
    expected = sum(math.exp(r + 1.0) - (r + 1.0) - 1 for r in reference)
    assert float(loss.kl) == pytest.approx(expected, rel=1e-5)
    assert float(loss.total) == pytest.approx(0.1 * expected, rel=1e-5)
