"""The loss of policy optimisation: GRPO's clipped ratio, weighted by how the trainer differs from the engine."""

# N sampled tokens, all of one update

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ossia.training.rl.config import PolicyConfig


class TokenValues(NamedTuple):
    """What is known of each sampled token before the update, [N] float32 each.

    Attributes:
        engine: log-probability by the engine that sampled it.
        old: by the trainer, with the weights that sampled it.
        advantage: of its episode.
        reference: by the model that the run began with; None without a price on the divergence.
    """

    engine: Tensor
    old: Tensor
    advantage: Tensor
    reference: Tensor | None = None

    def select(self, part: Tensor | slice) -> TokenValues:
        """Some of the tokens."""
        return TokenValues(*(None if value is None else value[part] for value in self))  # pyright: ignore[reportArgumentType]


class PolicyLoss(NamedTuple):
    """A sum over tokens, to be divided by their number in the whole update.

    Attributes:
        total: with gradient.
        clipped: tokens whose ratio was held back.
        kl: sum of the estimates of the divergence from the reference.
    """

    total: Tensor
    clipped: Tensor
    kl: Tensor


def importance_weights(values: TokenValues, *, config: PolicyConfig) -> Tensor:
    """Truncated importance weights [N], min(pi_old / pi_engine, C), a constant of the update.

    Tokens were drawn from the engine's probabilities, the gradient is of the trainer's; the weight corrects for what
    rounding makes of that, and the bound keeps its variance finite ("Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training", Yao et al. 2025, there for this very mismatch; the truncation is Ionides 2008).
    """
    return (values.old - values.engine).exp().clamp(max=config.max_importance)


def policy_loss(logprobs: Tensor, values: TokenValues, *, config: PolicyConfig) -> PolicyLoss:
    """The loss of N tokens, summed.

    With rho = pi / pi_old and w from `importance_weights`, a token's loss is
    -w min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A): PPO's clipped objective with GRPO's group advantages
    (DeepSeekMath, arXiv 2402.03300, equation 3), the upper bound apart from the lower as in DAPO (arXiv 2503.14476,
    section 3.1). All tokens of an update weigh the same, whatever episode they are of (DAPO, section 3.3): a mean over
    each episode first would make tokens of long wrong answers cheap (Dr. GRPO, arXiv 2503.20783, section 3.1).

    To this comes `kl` times GRPO's estimate of KL(pi || reference) (arXiv 2402.03300, equation 4).

    Args:
        logprobs: [N] by the trainer now, with gradient.
        values: what was known before.
        config: bounds and weights.
    """
    ratio = (logprobs - values.old).exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gains = torch.minimum(ratio * values.advantage, bounded * values.advantage)
    total = -(importance_weights(values, config=config) * gains).sum()
    clipped = (gains.detach() < (ratio * values.advantage).detach()).sum()
    kl = logprobs.new_zeros(())
    if values.reference is not None:
        gap = values.reference - logprobs
        divergence = (torch.expm1(gap) - gap).sum()
        total, kl = total + config.kl * divergence, divergence.detach()
    return PolicyLoss(total, clipped, kl)
