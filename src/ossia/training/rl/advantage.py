"""How much better than its group an episode was."""

from __future__ import annotations

from collections.abc import Sequence

from ossia.training.rl.trajectory import Datum, Group, make_data

LEAST_SPREAD = 1e-6
"""Rewards nearer than this are equal."""


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether a group's rewards differ; if not, all its advantages are 0 and it teaches nothing.

    Such groups are left out, so that they do not dilute the others. DAPO (arXiv 2503.14476, section 3.2) draws others
    in their place; here the step is smaller then.
    """
    return max(rewards) - min(rewards) > LEAST_SPREAD


def compute_advantages(rewards: Sequence[float], *, scale: str) -> list[float]:
    """Advantages of a group's episodes.

    "mean": A_i = r_i - mean(r), as Dr. GRPO has it (arXiv 2503.20783, section 3.2). "std": divided by the standard
    deviation too, GRPO's (DeepSeekMath, arXiv 2402.03300, section 4.1.2), which weighs problems that are nearly always
    or nearly never solved more than those in between, and blows tiny differences of the length's price up to the size
    of right against wrong.
    """
    mean = sum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if scale == "mean":
        return centred
    deviation = (sum(value * value for value in centred) / len(centred)) ** 0.5
    return [value / (deviation + LEAST_SPREAD) for value in centred]


def data_of(groups: Sequence[Group], *, scale: str) -> list[Datum]:
    """The data of all groups that teach something."""
    data: list[Datum] = []
    for group in groups:
        if has_signal(group.rewards):
            advantages = compute_advantages(group.rewards, scale=scale)
            for trajectory, advantage in zip(group.trajectories, advantages, strict=True):
                data += make_data(trajectory, advantage=advantage)
    return data
