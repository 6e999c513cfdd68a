"""The mixture's experts for training without grouped products: expert by expert, with little memory moved in backward.

What autograd would make of the plain loop spends most of its time beside the products: a gradient of the whole stack of
matrices for each expert taken from it, scattered additions for the sorting, and a dozen passes over strided halves for
SwiGLU. Here a stack is unbound once, sorting gathers in both directions, gate and up rows are parted in the weights
instead of the activations, and SwiGLU keeps its input only and has a backward pass of its own. An expert's stretch of
rows is small enough to stay in the processor's cache from one product to the next.
"""

# T tokens, A active experts a token, P = T * A pairs, E experts, D model, F expert hidden, G = 2F, N rows of an expert

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ossia.kernels.pairs import SortPairs, Unsort, add_up, inverse_of


def run_with_gradient(
    x: Tensor,
    experts: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    indices: Tensor,
    weights: Tensor,
    alpha: float,
    limit: float,
) -> Tensor:
    """Run each token's experts and add their outputs, as `expert_mlp` does.

    Args:
        x: [T, D], T at least 1.
        experts: dense gate_up [E, G, D] and its bias [E, G], down [E, D, F] and its bias [E, D].
        indices: [T, A] int, the experts of each token.
        weights: [T, A], by which their outputs are added.
        alpha, limit: of SwiGLU.
    """
    gate_up, gate_up_bias, down, down_bias = experts
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    inverse = inverse_of(order)
    counts = torch.bincount(flat, minlength=down.shape[0]).tolist()
    rows = SortPairs.apply(x, order, inverse, indices.shape[1])
    first = _part(gate_up).unbind(0), _part(gate_up_bias).unbind(0)
    second = down.unbind(0), down_bias.unbind(0)
    outs: list[Tensor] = []
    for own, matrix, bias, out_matrix, out_bias in zip(rows.split(counts), *first, *second, strict=True):
        if own.shape[0]:
            hidden = _Swiglu.apply(functional.linear(own, matrix, bias), alpha, limit)
            outs.append(functional.linear(hidden, out_matrix, out_bias))
    return add_up(Unsort.apply(torch.cat(outs), order, inverse), weights)


def _part(gate_up: Tensor) -> Tensor:
    """Rows gate 0, up 0, gate 1, up 1, ... along dimension 1 -> all gates, then all ups."""
    return torch.cat((gate_up[:, 0::2], gate_up[:, 1::2]), dim=1)


class _Swiglu(torch.autograd.Function):
    """[N, G], gates first, then ups -> [N, F]: g * sigmoid(alpha g) * (u + 1), clamped, in float32 at the least."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, alpha: float, limit: float) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.alpha, ctx.limit = alpha, limit
        gate, up = _wide(gate_up).chunk(2, dim=-1)
        gate = gate.clamp(max=limit)
        swish = torch.sigmoid(gate * alpha).mul_(gate)
        return torch.addcmul(swish, swish, up.clamp(-limit, limit)).to(gate_up.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """With s = sigmoid(alpha g): d/dg = (u + 1) (s + alpha g s (1 - s)), d/du = g s; 0 where the clamp holds."""
        (gate_up,) = ctx.saved_tensors
        grad = _wide(grads[0])
        raw_gate, raw_up = _wide(gate_up).chunk(2, dim=-1)
        gate = raw_gate.clamp(max=ctx.limit)
        up = raw_up.clamp(-ctx.limit, ctx.limit)
        share = torch.sigmoid(gate * ctx.alpha)
        swish = gate.mul_(share)  # gate is not needed any more
        out = torch.empty_like(_wide(gate_up))
        to_gate, to_up = out.chunk(2, dim=-1)
        torch.mul(grad, swish, out=to_up)
        to_up.masked_fill_(raw_up.abs() > ctx.limit, 0.0)
        slope = torch.addcmul(share, swish.mul_(ctx.alpha), 1 - share)
        torch.mul(up.add_(1).mul_(grad), slope, out=to_gate)
        to_gate.masked_fill_(raw_gate > ctx.limit, 0.0)
        return out.to(gate_up.dtype), None, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
