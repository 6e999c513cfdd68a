"""The router: which A of E experts see a token, and with what weight."""

# T tokens, D model, E experts, A active experts

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Routing(NamedTuple):
    """A token's experts [T, A] int64, best first, their weights [T, A] float32, and all experts' logits [T, E]."""

    indices: Tensor
    weights: Tensor
    logits: Tensor


def route(x: Tensor, *, weight: Tensor, bias: Tensor, num_active: int) -> Routing:
    """Choose experts for x [T, D] by weight [E, D] and bias [E]: the top logits, softmax over those kept only."""
    logits = functional.linear(x, weight, bias)
    indices, weights = choose_experts(logits, num_active=num_active)
    return Routing(indices, weights, logits)


def choose_experts(logits: Tensor, *, num_active: int) -> tuple[Tensor, Tensor]:
    """Indices and weights, both [T, A], from logits [T, E]."""
    top, indices = torch.topk(logits, num_active, dim=-1)
    return indices, torch.softmax(top, dim=-1, dtype=torch.float32)


def route_torch(x: Tensor, *, weight: Tensor, bias: Tensor, num_active: int) -> Routing:
    """The reference, by sorting."""
    logits = x @ weight.T + bias
    order = logits.argsort(dim=-1, descending=True)[:, :num_active]
    kept = logits.gather(-1, order).float()
    unnormalised = torch.exp(kept - kept[:, :1])
    return Routing(order, unnormalised / unnormalised.sum(dim=-1, keepdim=True), logits)
