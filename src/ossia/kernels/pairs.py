"""Pairs of token and expert, sorted by expert and put back, with gradients that only gather."""

# T tokens, A active experts a token, P = T * A pairs, E experts, D model

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inverse_of(order: Tensor) -> Tensor:
    """The permutation that undoes `order`, [P]."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))


def add_up(out: Tensor, weights: Tensor) -> Tensor:
    """out [P, D] in the order of the tokens, weights [T, A] -> [T, D]."""
    by_token = out.view(*weights.shape, -1)
    return (by_token.float() * weights.float().unsqueeze(-1)).sum(dim=1).to(out.dtype)


class SortPairs(torch.autograd.Function):
    """x [T, D] -> [P, D]: a row for each pair, sorted by expert.

    Its gradient gathers by the inverse permutation and adds each token's A rows; autograd's own would scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, num_active: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.num_active = num_active
        return x[order // num_active]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        (grad,) = grads
        return grad[inverse].view(-1, ctx.num_active, grad.shape[-1]).sum(dim=1), None, None, None


class Unsort(torch.autograd.Function):
    """[P, D] sorted by expert -> [P, D] in the order of the tokens; the gradient is the sorting again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows[inverse]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        (grad,) = grads
        return grad[order], None, None


class AddBias(torch.autograd.Function):
    """rows [P, D] plus the row of bias [E, D] that `owner` [P] says, an expert's number of any int dtype.

    A gather, which a compiler makes part of what reads the sum. The bias' gradient is a product with one-hot rows;
    autograd's own would be a scatter into a few rows that all pairs share.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(owner)
        ctx.num_experts = bias.shape[0]
        return rows + bias[owner.int()]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (owner,) = ctx.saved_tensors
        (grad,) = grads
        one_hot = torch.arange(ctx.num_experts, dtype=owner.dtype, device=owner.device)[:, None] == owner
        return grad, one_hot.to(grad.dtype) @ grad, None
