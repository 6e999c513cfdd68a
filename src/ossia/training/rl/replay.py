"""The engine's routing in the trainer, token by token.

A router's choice is a step function: where two experts are nearly even, rounding in the last place decides, and trainer
and engine then compute with other weights. Replaying the choices leaves rounding alone (arXiv 2510.11370, "Stabilizing
MoE Reinforcement Learning by Aligning Training and Inference Routers").
"""

# T tokens, L layers, E experts, A active experts

from __future__ import annotations

import torch
from torch import Tensor


class ReplayRouter:
    """A router backend that goes where it is told, with weights of its own; gradients flow through those.

    Args:
        choices: int [T, L, A]; a token whose first entry in a layer is negative is routed as usual.
    """

    def __init__(self, choices: Tensor) -> None:
        self._choices = choices

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        """logits [T, E] -> indices [T, A] and weights [T, A], the softmax over the logits of the experts chosen."""
        told = self._choices[:, layer].long()
        own = torch.topk(logits.detach(), num_active, dim=-1).indices
        indices = torch.where(told[:, :1] < 0, own, told)
        return indices, torch.softmax(logits.gather(-1, indices).float(), dim=-1)
