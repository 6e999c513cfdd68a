"""Attention over packed rows for training, with sinks exact in the backward pass.

On a GPU by flex_attention, on a CPU document by document; the reference is written out over all pairs of a row.

With `lse` the log-sum-exp of a query's scores, softmax over the scores and the sink is the softmax over the scores
alone times `sigmoid(lse - sink)`. flex_attention differentiates through the `lse` that it returns, so the sinks'
gradient needs no kernel of its own (the test compares with float64).
"""

# Shapes: B rows, S tokens a row, T = B * S, N blocks a row, H heads, K KV heads, C head dim.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

BLOCK = 128
"""Tokens of a block, of queries and of keys: flex_attention's own choice."""


class FlexRowAttention:
    """Causal attention in which a token sees its own document only, within the window on sliding layers."""

    def __init__(self, document_ids: Tensor, *, window: int, attend: Callable[..., Any] = flex_attention) -> None:
        """Prepare the masks of one batch.

        Args:
            document_ids: [B, S] int, equal for the tokens of one document; padding is a document too.
            window: sliding window of the model, which counts the token itself.
            attend: flex_attention, compiled or not.
        """
        self.rows, self.length = document_ids.shape
        self._attend = attend

        self._full, self._near = _block_masks(document_ids, window=window)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """Attend within each row: q [T, H, C], k and v [T, K, C], sinks [H] -> [T, H, C]."""
        heads = q.shape[1]
        rows_q, rows_k, rows_v = (x.view(self.rows, self.length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        out, aux = self._attend(
            rows_q,
            rows_k,
            rows_v,
            block_mask=self._near if window is not None else self._full,
            enable_gqa=heads != k.shape[1],
            return_aux=AuxRequest(lse=True),
        )
        kept = torch.sigmoid(aux.lse - sinks.float()[None, :, None])
        return (out * kept[..., None].to(out.dtype)).transpose(1, 2).reshape(q.shape)


def _block_masks(document_ids: Tensor, *, window: int) -> tuple[BlockMask, BlockMask]:
    """The masks of full and of sliding layers, as create_block_mask makes them, without looking at pairs of tokens.

    Which blocks hold visible pairs follows from each block's least and greatest document. Where documents follow one
    another in a row, that is exact; where they do not, some blocks are visited that need not be.
    """
    shape = (document_ids.shape[1], document_ids.shape[1])

    def is_full(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_ids[b, q] == document_ids[b, k])

    def is_near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return is_full(b, h, q, k) & (q - k < window)

    tables = _block_tables(document_ids, window=window)
    both = torch.cat((tables, tables.mT)).int()  # keys by queries, then queries by keys
    # Each a tensor of its own, as create_block_mask's are: views of one would be more for a compiler to guard.
    counts = [count.int() for count in both.sum(dim=-1).unbind(0)]
    orders = [order.int() for order in both.argsort(dim=-1, descending=True, stable=True).unbind(0)]

    def mask(first: int, mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> BlockMask:
        part, whole, part_q, whole_q = first, first + 1, first + 4, first + 5
        return BlockMask(
            seq_lengths=shape,
            kv_num_blocks=counts[part],
            kv_indices=orders[part],
            full_kv_num_blocks=counts[whole],
            full_kv_indices=orders[whole],
            q_num_blocks=counts[part_q],
            q_indices=orders[part_q],
            full_q_num_blocks=counts[whole_q],
            full_q_indices=orders[whole_q],
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=mask_mod,
        )

    return mask(0, is_full), mask(2, is_near)


def _block_tables(document_ids: Tensor, *, window: int) -> Tensor:
    """Blocks of queries by blocks of keys, bool [4, B, 1, N, N].

    In full layers: blocks with pairs of both kinds, and blocks all of whose pairs see each other; then the same in
    sliding layers. Where it is not known whether any pair of a block sees each other, it is of the first kind.
    """
    length = document_ids.shape[1]
    missing = -length % BLOCK
    padded = torch.cat((document_ids, document_ids[:, -1:].expand(-1, missing)), dim=1)  # changes no block's extremes
    blocks = padded.unflatten(1, (-1, BLOCK))
    low, high = blocks.amin(dim=-1), blocks.amax(dim=-1)
    low_q, high_q, low_k, high_k = low[:, :, None], high[:, :, None], low[:, None], high[:, None]
    place = torch.arange(blocks.shape[1], device=document_ids.device)
    ahead = place[:, None] - place  # of the keys' block
    is_seen = (low_q <= high_k) & (low_k <= high_q) & (ahead >= 0)
    is_near = is_seen & ((ahead - 1) * BLOCK + 1 < window)  # the nearest pair
    # Torch counts no block as whole that reaches beyond the row; its keys' block stands before it.
    is_complete = place[:, None] < length // BLOCK
    is_whole = (low_q == high_k) & (low_k == high_q) & (ahead > 0) & is_complete
    is_whole_near = is_whole & ((ahead + 1) * BLOCK - 1 < window)  # the farthest pair
    return torch.stack((is_seen & ~is_whole, is_whole, is_near & ~is_whole_near, is_whole_near)).unsqueeze(2)


class DenseRowAttention:
    """The same, written out over all pairs of tokens in a row: the reference."""

    def __init__(self, document_ids: Tensor, *, window: int) -> None:
        """Prepare the masks of one batch; arguments as for FlexRowAttention."""
        self.rows, self.length = document_ids.shape
        place = torch.arange(self.length, device=document_ids.device)
        distance = place[:, None] - place[None, :]
        is_same = document_ids[:, :, None] == document_ids[:, None, :]
        self._full = (is_same & (distance >= 0))[:, None]
        self._near = self._full & (distance < window)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """Attend within each row: q [T, H, C], k and v [T, K, C], sinks [H] -> [T, H, C]."""
        group = q.shape[1] // k.shape[1]
        rows_q, rows_k, rows_v = (x.view(self.rows, self.length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        rows_k, rows_v = rows_k.repeat_interleave(group, dim=1), rows_v.repeat_interleave(group, dim=1)
        scores = (rows_q @ rows_k.mT).float() * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~(self._near if window is not None else self._full), float("-inf"))
        column = sinks.float()[None, :, None, None].expand(self.rows, -1, self.length, 1)
        shares = torch.softmax(torch.cat((scores, column), dim=-1), dim=-1)[..., :-1]
        return (shares.to(v.dtype) @ rows_v).transpose(1, 2).reshape(q.shape)


class DocumentRowAttention:
    """The same, document by document: the way on a CPU, where pairs that do not see each other would cost most.

    A document longer than `block` is taken in blocks of queries, each with the keys that it may see, so that a sliding
    layer's cost grows with the length and not with its square.
    """

    def __init__(self, document_ids: Tensor, *, window: int, block: int = 256) -> None:
        """Find the documents of one batch; `block` is in tokens, other arguments as for FlexRowAttention."""
        rows = torch.arange(document_ids.shape[0], device=document_ids.device)[:, None]
        numbers = document_ids.long() + rows * (int(document_ids.max()) + 1)
        self._lengths: list[int] = torch.unique_consecutive(numbers.flatten(), return_counts=True)[1].tolist()
        self._window = window
        self._block = block
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """Attend within each document: q [T, H, C], k and v [T, K, C], sinks [H] -> [T, H, C]."""
        num_kv = k.shape[1]
        grouped = q.unflatten(1, (num_kv, -1)).permute(1, 2, 0, 3) * q.shape[-1] ** -0.5  # [K, G, T, C]
        by_head = k.transpose(0, 1).unsqueeze(1), v.transpose(0, 1).unsqueeze(1)  # [K, 1, T, C]
        column = sinks.float().view(num_kv, -1, 1, 1)
        parts = zip(*(x.split(self._lengths, dim=2) for x in (grouped, *by_head)), strict=True)
        out = torch.cat([self._attend_document(a, b, c, column=column, window=window) for a, b, c in parts], dim=2)
        return out.permute(2, 0, 1, 3).reshape(q.shape)

    def _attend_document(self, q: Tensor, k: Tensor, v: Tensor, *, column: Tensor, window: int | None) -> Tensor:
        """q [K, G, n, C], k and v [K, 1, n, C], column [K, G, 1, 1] -> [K, G, n, C]."""
        length = q.shape[2]
        if length <= self._block:
            return self._attend_block(q, k, v, column, 0, window)
        outs: list[Tensor] = []
        for start in range(0, length, self._block):
            stop = min(start + self._block, length)
            first = 0 if window is None else max(0, start - self._window + 1)
            own = q[:, :, start:stop]
            outs.append(
                self._attend_block(own, k[:, :, first:stop], v[:, :, first:stop], column, start - first, window)
            )
        return torch.cat(outs, dim=2)

    def _attend_block(self, q: Tensor, k: Tensor, v: Tensor, column: Tensor, offset: int, window: int | None) -> Tensor:
        """The first query stands `offset` tokens after the first key."""
        scores = (q @ k.mT).float() + self._mask(q.shape[2], offset, window, q.device)
        scores = torch.cat((scores, column.expand(*scores.shape[:-1], 1)), dim=-1)
        return torch.softmax(scores, dim=-1)[..., :-1].to(v.dtype) @ v

    def _mask(self, num_queries: int, offset: int, window: int | None, device: torch.device) -> Tensor:
        """0 where a query sees a key, minus infinity elsewhere, [queries, queries + offset]."""
        key = (num_queries, offset, None if window is None else self._window)
        if key not in self._masks:
            place = torch.arange(num_queries, device=device)[:, None] + offset
            distance = place - torch.arange(num_queries + offset, device=device)
            is_hidden = distance < 0
            if window is not None:
                is_hidden |= distance >= self._window
            self._masks[key] = torch.zeros(distance.shape, device=device).masked_fill(is_hidden, float("-inf"))
        return self._masks[key]
