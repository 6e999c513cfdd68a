"""The mixture's experts: clamped SwiGLU, and the ways to run the experts that each token chose.

- a token or a few (decoding): one matrix product for each pair of token and expert;
- many tokens: sort the pairs by expert, one product an expert (needs the counts on the host);
- the same where gradients are wanted, of dense experts: `experts_with_gradient.py`;
- bfloat16 on a GPU, or under torch.compile: the same sorting and one grouped product, with no host synchronisation
  and no control flow that depends on data.

All give each token the sum of its experts' outputs by the router's weights, and all can be differentiated.
"""

# T tokens, A active experts a token, P = T * A pairs, E experts, D model, F expert hidden, G = 2F

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ossia.kernels.experts_with_gradient import run_with_gradient
from ossia.kernels.mxfp4 import Mxfp4, unpack_mxfp4
from ossia.kernels.pairs import AddBias, SortPairs, Unsort, add_up, inverse_of

FEW_TOKENS = 2
"""Up to so many tokens the experts are run pair by pair: sorting would cost more than it saves."""


class ExpertWeights(NamedTuple):
    """All experts of one layer; matrices are output-major, dense or packed.

    In gate_up, rows alternate: gate 0, up 0, gate 1, up 1, ...
    """

    gate_up: Tensor | Mxfp4  # [E, G, D]
    gate_up_bias: Tensor  # [E, G]
    down: Tensor | Mxfp4  # [E, D, F]
    down_bias: Tensor  # [E, D]


def swiglu(gate_up: Tensor, *, alpha: float, limit: float) -> Tensor:
    """[..., G] -> [..., F]: g * sigmoid(alpha g) * (u + 1), g clamped from above and u on both sides by limit.

    Gate and up alternate in the last dimension. Computed in float32, in gate_up's dtype.
    """
    wide = gate_up.float()
    gate = wide[..., 0::2].clamp(max=limit)
    up = wide[..., 1::2].clamp(min=-limit, max=limit)
    swish = gate * torch.sigmoid(gate * alpha)
    return torch.addcmul(swish, swish, up).to(gate_up.dtype)


def expert_mlp(
    x: Tensor, *, experts: ExpertWeights, indices: Tensor, weights: Tensor, alpha: float, limit: float
) -> Tensor:
    """Run each token's experts and add their outputs.

    Args:
        x: [T, D].
        experts: the layer's experts. Of packed ones, those that some token chose are unpacked, to x's dtype.
        indices: [T, A] int, the experts of each token.
        weights: [T, A], by which their outputs are added.
        alpha: slope of SwiGLU's sigmoid.
        limit: SwiGLU's clamp.

    Returns:
        [T, D] in x's dtype; the sum is float32.
    """
    if _can_group(x, experts):
        run = _run_grouped
    elif 0 < x.shape[0] <= FEW_TOKENS:
        run = _run_pairs
    elif torch.is_grad_enabled() and x.shape[0] and isinstance(experts.gate_up, Tensor):
        assert isinstance(experts.down, Tensor)
        dense = (experts.gate_up, experts.gate_up_bias, experts.down, experts.down_bias)
        return run_with_gradient(x, dense, indices=indices, weights=weights, alpha=alpha, limit=limit)
    else:
        run = _run_sorted
    return run(x, experts, indices, weights, lambda gate_up: swiglu(gate_up, alpha=alpha, limit=limit))


def expert_mlp_torch(
    x: Tensor, *, experts: ExpertWeights, indices: Tensor, weights: Tensor, alpha: float, limit: float
) -> Tensor:
    """The reference: every expert sees every token, and a matrix [T, E] says what counts."""
    share = torch.zeros(x.shape[0], experts.down_bias.shape[0], device=x.device)
    share = share.scatter(1, indices, weights.float())
    total = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(share.shape[1]):
        gate_up = functional.linear(x, _matrix(experts.gate_up, expert, x.dtype), experts.gate_up_bias[expert])
        gate, up = gate_up.float().unflatten(-1, (-1, 2)).unbind(-1)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        hidden = (gate * torch.sigmoid(alpha * gate) * (up + 1)).to(x.dtype)
        out = functional.linear(hidden, _matrix(experts.down, expert, x.dtype), experts.down_bias[expert])
        total = total + share[:, expert, None] * out.float()
    return total.to(x.dtype)


Activation = Callable[[Tensor], Tensor]


def _matrix(weight: Tensor | Mxfp4, expert: int, dtype: torch.dtype) -> Tensor:
    """One expert's matrix in the dtype of the activations."""
    if isinstance(weight, Tensor):
        return weight[expert]
    packed = weight.select(expert)
    return unpack_mxfp4(packed.blocks, scales=packed.scales, dtype=dtype)


def _run_pairs(x: Tensor, experts: ExpertWeights, indices: Tensor, weights: Tensor, activate: Activation) -> Tensor:
    """Pair by pair, the activation and the sum for all pairs at once."""
    A = indices.shape[1]
    chosen = indices.flatten().tolist()
    tokens = x.unbind(0)

    def rows_of(weight: Tensor | Mxfp4, bias: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        pairs = zip(chosen, inputs, strict=True)
        return torch.stack([torch.addmv(bias[e], _matrix(weight, e, x.dtype), row) for e, row in pairs])

    gate_up = rows_of(experts.gate_up, experts.gate_up_bias, [tokens[pair // A] for pair in range(len(chosen))])
    return add_up(rows_of(experts.down, experts.down_bias, activate(gate_up).unbind(0)), weights)


def _run_sorted(x: Tensor, experts: ExpertWeights, indices: Tensor, weights: Tensor, activate: Activation) -> Tensor:
    """Expert by expert, over the tokens that chose it."""
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts.down_bias.shape[0]).tolist()
    rows = x[order // indices.shape[1]]
    if not torch.is_grad_enabled() and x.shape[0]:
        gate_up = _products(rows, experts.gate_up, experts.gate_up_bias, counts)
        return add_up(_products(activate(gate_up), experts.down, experts.down_bias, counts)[inverse_of(order)], weights)
    outs = []
    for expert, own in enumerate(rows.split(counts)):
        if own.shape[0]:
            gate_up = functional.linear(own, _matrix(experts.gate_up, expert, x.dtype), experts.gate_up_bias[expert])
            hidden = activate(gate_up)
            outs.append(functional.linear(hidden, _matrix(experts.down, expert, x.dtype), experts.down_bias[expert]))
    if not outs:  # no tokens
        return torch.zeros_like(x)
    return add_up(torch.cat(outs)[inverse_of(order)], weights)


def _products(rows: Tensor, weight: Tensor | Mxfp4, bias: Tensor, counts: Sequence[int]) -> Tensor:
    """Each expert's stretch of the sorted rows [P, in] by its matrix, written to one tensor [P, out].

    So the activation runs once for all experts instead of once for each, which counts when each has a few rows only.
    """
    out = rows.new_empty(rows.shape[0], bias.shape[1])
    matrices = weight.transpose(1, 2).unbind(0) if isinstance(weight, Tensor) else None
    stretches = zip(counts, rows.split(counts), out.split(counts), bias.unbind(0), strict=True)
    for expert, (count, own, target, own_bias) in enumerate(stretches):
        if count:
            matrix = _matrix(weight, expert, rows.dtype).t() if matrices is None else matrices[expert]
            torch.addmm(own_bias, own, matrix, out=target)
    return out


def _run_grouped(x: Tensor, experts: ExpertWeights, indices: Tensor, weights: Tensor, activate: Activation) -> Tensor:
    """One product over all experts, each with its stretch of the sorted pairs."""
    E = experts.down_bias.shape[0]
    # A GPU sorts by radix, so narrow keys are a few passes instead of many.
    owner, order = indices.flatten().to(torch.int16).sort(stable=True)
    inverse = inverse_of(order)
    ends = torch.searchsorted(owner, torch.arange(E, dtype=torch.int16, device=x.device), right=True, out_int32=True)
    assert isinstance(experts.gate_up, Tensor)
    assert isinstance(experts.down, Tensor)
    rows = SortPairs.apply(x, order, inverse, indices.shape[1])
    gate_up = functional.grouped_mm(rows, experts.gate_up.transpose(-2, -1), offs=ends)
    hidden = activate(AddBias.apply(gate_up, experts.gate_up_bias, owner))
    out = functional.grouped_mm(hidden, experts.down.transpose(-2, -1), offs=ends)
    return add_up(Unsort.apply(AddBias.apply(out, experts.down_bias, owner), order, inverse), weights)


def _can_group(x: Tensor, experts: ExpertWeights) -> bool:
    """Whether the grouped product takes these: dense bfloat16 whose rows are multiples of 16 bytes.

    On a CPU it only loops inside, so there it runs under torch.compile alone, where the other ways break the graph.
    """
    if not isinstance(experts.gate_up, Tensor) or not isinstance(experts.down, Tensor) or x.shape[0] == 0:
        return False
    is_bfloat16 = x.dtype == experts.gate_up.dtype == torch.bfloat16
    is_aligned = x.shape[1] % 8 == 0 and experts.down.shape[2] % 8 == 0
    return is_bfloat16 and is_aligned and (x.is_cuda or torch.compiler.is_compiling())
