"""Causal attention of one sequence, with grouped heads, a sliding window and sinks.

A head's sink is a learned logit that joins the softmax's denominator and takes no value: a head that finds nothing to
look at can give its weight to the sink instead.
"""

# T queries, S keys, H heads, K KV heads, M = H / K heads a KV head, C head dim

from __future__ import annotations

import torch
from torch import Tensor

QUERY_CHUNK = 512
"""Queries at a time, so that a long prompt's scores never stand in memory all at once."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None = None) -> Tensor:
    """Let the last T of S tokens attend to their past.

    Args:
        q: [T, H, C], of the sequence's last T tokens.
        k: [S, K, C], S >= T; head h reads KV head h // M.
        v: [S, K, C].
        sinks: [H].
        window: a query at position p sees keys in (p - window, p]; None for all up to p.

    Returns:
        [T, H, C] in q's dtype; the softmax is float32.
    """
    T, H, C = q.shape
    S, K = k.shape[:2]
    keys, values = k.permute(1, 2, 0), v.transpose(0, 1)  # [K, C, S] and [K, S, C], views
    grouped_sinks = sinks.view(K, H // K)
    if T == 1:  # one token being decoded sees all keys of its window: no mask
        if window is not None and window < S:
            keys, values = keys[:, :, S - window :], values[:, S - window :]
        return _attend(q.view(K, H // K, C), keys, values, sinks=grouped_sinks).view(1, H, C)
    by_group, start = q.view(T, K, H // K, C), S - T
    parts = []
    for begin in range(0, T, QUERY_CHUNK):
        end = min(begin + QUERY_CHUNK, T)
        first = 0 if window is None else max(0, start + begin - window + 1)
        last = start + end
        hidden = hidden_keys(end - begin, last - first, window=window, device=q.device)
        parts.append(
            _attend_chunk(
                by_group[begin:end],
                keys[:, :, first:last],
                values[:, first:last],
                sinks=grouped_sinks,
                hidden=hidden,
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def hidden_keys(num_queries: int, num_keys: int, *, window: int | None, device: torch.device) -> Tensor:
    """[T, S] bool: True where a query, one of the last T of S tokens, does not see a key."""
    keys = torch.arange(num_keys, device=device)
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    hidden = keys > queries
    return hidden if window is None else hidden | (keys <= queries - window)


def _attend(q: Tensor, keys: Tensor, values: Tensor, *, sinks: Tensor) -> Tensor:
    """q [K, M, C], keys [K, C, S], values [K, S, C], sinks [K, M] -> [K, M, C]: every query sees every key."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, keys).float()
    weights = torch.softmax(torch.cat((scores, sinks.float()[..., None]), dim=-1), dim=-1)[..., :-1]
    return torch.bmm(weights.to(values.dtype), values)


def _attend_chunk(q: Tensor, keys: Tensor, values: Tensor, *, sinks: Tensor, hidden: Tensor) -> Tensor:
    """q [T, K, M, C], keys [K, C, S], values [K, S, C], sinks [K, M], hidden [T, S] -> [T, H, C]."""
    T, K, M, C = q.shape
    rows = q.permute(1, 2, 0, 3).reshape(K, M * T, C)
    scores = torch.bmm(rows * C**-0.5, keys).float().view(K, M, T, -1).masked_fill(hidden, float("-inf"))
    sink = sinks.float()[..., None, None].expand(K, M, T, 1)
    weights = torch.softmax(torch.cat((scores, sink), dim=-1), dim=-1)[..., :-1].to(values.dtype)
    out = torch.bmm(weights.reshape(K, M * T, -1), values)
    return out.view(K, M, T, C).permute(2, 0, 1, 3).reshape(T, K * M, C)


def attention_torch(q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None = None) -> Tensor:
    """The reference: softmax over the visible keys alone, times sigmoid(lse - sink), head by head in float32."""
    T, H, C = q.shape
    group = H // k.shape[1]
    hidden = hidden_keys(T, k.shape[0], window=window, device=q.device)
    heads = []
    for head in range(H):
        key, value = k[:, head // group].float(), v[:, head // group].float()
        scores = (q[:, head].float() @ key.T / C**0.5).masked_fill(hidden, float("-inf"))
        kept = torch.sigmoid(scores.logsumexp(dim=-1, keepdim=True) - sinks[head].float())
        heads.append(scores.softmax(dim=-1) @ value * kept)
    return torch.stack(heads, dim=1).to(q.dtype)
