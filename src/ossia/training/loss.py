"""What is minimised: cross-entropy on the tokens that the model should produce, plus the router's two side losses."""

# Shapes: T tokens, E experts, A active experts, V vocabulary, L layers.

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""Target of a token that carries no loss."""


class RouterLosses(NamedTuple):
    """Side losses, averaged over layers, and each layer's share of tokens an expert gets ([L, E], sums to A)."""

    balance: Tensor
    z: Tensor
    loads: Tensor


class RecordingRouter:
    """A router backend that routes as usual and keeps each layer's logits and choices for the side losses."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.indices: list[Tensor] = []

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        """Take the top experts and the softmax over their logits, as the model does by itself."""
        top, indices = torch.topk(logits, num_active, dim=-1)
        self.logits.append(logits)
        self.indices.append(indices)
        return indices, torch.softmax(top.float(), dim=-1)

    def losses(self) -> RouterLosses:
        """Compute both side losses over the layers seen so far.

        Balance is Switch Transformer's equation 4 (arXiv 2101.03961) for top-A routing: E * sum_e f_e P_e / A, which is
        1 when the load is even. z is ST-MoE's equation 5 (arXiv 2202.08906).
        """
        balances, zs, loads = [], [], []
        for logits, indices in zip(self.logits, self.indices, strict=True):
            scores = logits.float()
            num_experts = scores.shape[-1]
            load = functional.one_hot(indices, num_experts).sum(dim=1).float().mean(dim=0)
            probability = torch.softmax(scores, dim=-1).mean(dim=0)
            balances.append(num_experts * (load * probability).sum() / indices.shape[-1])
            zs.append(torch.logsumexp(scores, dim=-1).square().mean())
            loads.append(load.detach())
        return RouterLosses(torch.stack(balances).mean(), torch.stack(zs).mean(), torch.stack(loads))


def next_token_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy [scalar, float32] of logits [T, V] against targets [T], over targets that are not IGNORED.

    With weights [T] it is their weighted mean. Where all targets are ignored, it is 0.
    """
    if weights is None:
        total = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)
    each = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
    counting = weights * (targets != IGNORED)
    return (each * counting).sum() / counting.sum().clamp(min=torch.finfo(torch.float32).tiny)
