"""From logits to token ids: greedy, or by inverse CDF with one uniform number a token.

A row's token depends on that row's logits, options and uniform only, and a token's uniform is a pure function of the
request's seed and the token's index. So a request gives the same tokens whatever else is in its batch.
"""

# N rows, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def token_uniform(seed: int, index: int) -> float:
    """A number in [0, 1), a pure function of a request's seed and a token's index among those it samples.

    Counter-based: SplitMix64's output function (Steele, Lea and Flood 2014), once over the seed and once over the
    counter, so that neighbouring seeds give unrelated sequences.
    """
    return (_mix(_mix(seed & _MASK64) + index) >> 11) / (1 << 53)


def sample(
    logits: Tensor,
    *,
    temperature: Tensor | float,
    uniforms: Tensor,
    top_k: Tensor | int = 0,
    top_p: Tensor | float = 1.0,
    min_p: Tensor | float = 0.0,
) -> Tensor:
    """Choose one token a row.

    The order is: temperature, top_k, top_p (of what top_k left), min_p. At least the likeliest token always stays.

    Args:
        logits: [N, V].
        temperature: [N] or one for all; 0 takes the largest logit, the first of equals.
        uniforms: [N] float64 in [0, 1); ignored where greedy.
        top_k: keep so many of the likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens until their share reaches this; 1 keeps all.
        min_p: keep tokens at least this times as likely as the likeliest; 0 keeps all.

    Returns:
        [N] int64.
    """
    greedy = logits.argmax(dim=-1)
    temperature = _column(temperature, logits)
    if bool((temperature <= 0).all()):
        return greedy
    is_greedy = temperature <= 0
    wide = logits.double()
    # The largest logit is taken away first: a tiny temperature must not turn two large logits into infinities.
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / temperature.masked_fill(is_greedy, 1.0)
    probabilities = scaled.softmax(dim=-1)
    top_k, top_p, min_p = _column(top_k, logits), _column(top_p, logits), _column(min_p, logits)
    probabilities = _keep_top(probabilities, top_k=top_k, top_p=top_p)
    floor = min_p.clamp(max=1.0) * probabilities.amax(dim=-1, keepdim=True)
    sampled = _invert(probabilities.masked_fill(probabilities < floor, 0.0), uniforms=uniforms)
    return torch.where(is_greedy[:, 0], greedy, sampled)


def _keep_top(probabilities: Tensor, *, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero what top_k and then top_p cut off, [N, V]; of equal probabilities the lower id ranks first."""
    V = probabilities.shape[-1]
    top_k = top_k.masked_fill(top_k <= 0, V)
    if bool((top_k >= V).all()) and bool((top_p >= 1.0).all()):
        return probabilities  # sorting is the dearest step
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(V, device=probabilities.device)
    ranked = ranked.masked_fill(rank >= top_k, 0.0)
    before = ranked.cumsum(dim=-1) - ranked
    is_cut = (top_p < 1.0) & (before >= top_p * ranked.sum(dim=-1, keepdim=True)) & (rank > 0)
    ranked = ranked.masked_fill(is_cut, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ranked)


def _invert(weights: Tensor, *, uniforms: Tensor) -> Tensor:
    """The first token at which the running sum of weights [N, V] exceeds the uniform's share of the total: [N]."""
    running = weights.cumsum(dim=-1)
    total = running[:, -1:]
    # Below the total even after rounding, so that some token exceeds it; one of weight 0 never is the first to.
    target = torch.minimum(uniforms.to(running).view(-1, 1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, target, right=True).squeeze(-1)


def _column(value: Tensor | float, logits: Tensor) -> Tensor:
    """An option for each row: [N, 1] float64, or [1, 1] if one is for all."""
    return torch.as_tensor(value, dtype=torch.float64, device=logits.device).reshape(-1, 1)


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
