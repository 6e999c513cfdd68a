"""What is minimised: cross-entropy on the tokens that the model should produce, plus the router's two side losses."""

# Shapes: T tokens, E experts, A active experts, V vocabulary, L layers.

from __future__ import annotations

from collections.abc import Callable
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
    """A router backend that routes as usual and keeps each layer's logits and choices for the side losses.

    They are kept by layer, so that a layer that is computed again in the backward pass is not counted twice.
    """

    def __init__(self) -> None:
        self.logits: dict[int, Tensor] = {}
        self.indices: dict[int, Tensor] = {}

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        """Take the top experts and the softmax over their logits, as the model does by itself."""
        top, indices = top_of_few(logits, num_active) if torch.compiler.is_compiling() else logits.topk(num_active)
        self.logits[layer] = logits
        self.indices[layer] = indices
        return indices, torch.softmax(top.float(), dim=-1)

    def losses(self, *, share_loads: Callable[[Tensor], Tensor] | None = None) -> RouterLosses:
        """Compute both side losses over the layers seen so far.

        Balance is Switch Transformer's equation 4 (arXiv 2101.03961) for top-A routing: E * sum_e f_e P_e / A, which is
        1 when the load is even. z is ST-MoE's equation 5 (arXiv 2202.08906).

        Args:
            share_loads: makes the loads f [L, E] of all processes' tokens from those of this one's. The mean over
                processes of the balance loss, and of its gradient, is then that of the whole batch; f has no gradient.
        """
        probabilities, zs, loads = [], [], []
        num_active = 1
        for layer, logits in self.logits.items():
            scores, indices = logits.float(), self.indices[layer]
            num_experts, num_active = scores.shape[-1], indices.shape[-1]
            loads.append(functional.one_hot(indices, num_experts).sum(dim=1).float().mean(dim=0))
            probabilities.append(torch.softmax(scores, dim=-1).mean(dim=0))
            zs.append(torch.logsumexp(scores, dim=-1).square().mean())
        load = torch.stack(loads).detach()
        if share_loads is not None:
            load = share_loads(load)
        balance = load.shape[-1] * (load * torch.stack(probabilities)).sum(dim=-1) / num_active
        return RouterLosses(balance.mean(), torch.stack(zs).mean(), load)


def top_of_few(logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
    """The largest A of E logits [T, E], greatest first, and their places: values [T, A] and int64 [T, A].

    As torch.topk, which on a GPU is two sorting kernels over all rows; here a compiler makes A reductions one kernel.
    Of equal logits the first counts, where torch.topk takes any.
    """
    place = torch.arange(logits.shape[-1], device=logits.device)
    left = logits.detach()
    values: list[Tensor] = []
    indices: list[Tensor] = []
    for _ in range(num_active):
        best = left.argmax(dim=-1, keepdim=True)
        is_best = place == best
        left = left.masked_fill(is_best, float("-inf"))
        # One term is not zero, so the sum is exact, and its gradient is no scatter.
        values.append(torch.where(is_best, logits, 0.0).sum(dim=-1, keepdim=True))
        indices.append(best)
    return torch.cat(values, dim=-1), torch.cat(indices, dim=-1)


def next_token_loss(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, num_learned: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy [scalar, float32] of logits [T, V] against targets [T], over targets that are not IGNORED.

    Args:
        logits: of the next token.
        targets: the next token, or IGNORED.
        weights: how much each target counts [T]; None for 1. The mean is then the weighted one.
        num_learned: by what to divide the sum; None for `count_learned` of these. Where that is 0, so is the loss.
    """
    if weights is None:
        total = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    else:
        each = functional.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="none")
        total = (each * weights).sum()  # what is ignored is 0
    count = count_learned(targets, weights) if num_learned is None else num_learned
    return total / torch.where(count > 0, count, 1)


def count_learned(targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """How many targets are learned, or the sum of their weights [scalar]."""
    is_learned = targets != IGNORED
    return is_learned.sum() if weights is None else (weights * is_learned).sum()
