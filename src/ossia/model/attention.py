"""Attention backends: independent sequences laid end to end, and one sequence with a cache."""

# T tokens of this step, S tokens cached, H heads, K KV heads, C head dim, L layers

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.kernels.attention import attention
from ossia.model.config import ModelConfig


class PackedAttention:
    """Independent sequences laid end to end, each attending to its own past; no cache. Differentiable.

    Args:
        cu_seqlens: where each sequence begins, and last where the last one ends: 0, 5, 12 for two of 5 and 7 tokens.
    """

    def __init__(self, cu_seqlens: Sequence[int] | Tensor) -> None:
        ends = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
        self.lengths = [end - begin for begin, end in itertools.pairwise(ends)]
        if not self.lengths or ends[0] != 0 or min(self.lengths) < 0:
            raise InvalidInputError(
                f"cu_seqlens is {ends}; allowed: at least two numbers, from 0 up, none below the one before",
                param="cu_seqlens",
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """q [T, H, C], k and v [T, K, C], sinks [H] -> [T, H, C]."""
        parts = zip(q.split(self.lengths), k.split(self.lengths), v.split(self.lengths), strict=True)
        return torch.cat([attention(*part, sinks=sinks, window=window) for part in parts if part[0].shape[0]])


class KVCache:
    """Keys and values of one sequence, contiguous, growing by doubling; sliding layers keep all, too.

    Attributes:
        keys: [L, capacity, K, C], of which the first `length` tokens hold something.
        values: likewise.
        length: tokens held.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        capacity: int = 256,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, capacity, config.num_key_value_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.keys.shape[1]

    def reserve(self, length: int) -> None:
        """Make room for so many tokens in all; what is held stays."""
        if length > self.capacity:
            self.keys = self._grown(self.keys, length)
            self.values = self._grown(self.values, length)

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens, to go on from there."""
        if not 0 <= length <= self.length:
            raise InvalidInputError(f"length is {length}; allowed: 0 to the {self.length} cached", param="length")
        self.length = length

    def _grown(self, held: Tensor, length: int) -> Tensor:
        L, capacity, K, C = held.shape
        grown = held.new_empty(L, max(length, 2 * capacity), K, C)
        grown[:, : self.length] = held[:, : self.length]
        return grown


class CachedAttention:
    """The next T tokens of a cached sequence, in one forward pass.

    Each layer writes its keys and values behind those held; `commit` after the pass makes them part of the cache. A
    pass that failed half-way is thus forgotten by not committing.
    """

    def __init__(self, cache: KVCache, *, num_tokens: int) -> None:
        cache.reserve(cache.length + num_tokens)
        self.cache = cache
        self.start, self.end = cache.length, cache.length + num_tokens

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """q [T, H, C], k and v [T, K, C], sinks [H] -> [T, H, C]."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.start : self.end] = k
        values[self.start : self.end] = v
        return attention(q, keys[: self.end], values[: self.end], sinks=sinks, window=window)

    def commit(self) -> None:
        """Call once, when every layer has run."""
        self.cache.length = self.end
