"""Attention over packed rows for training, with sinks exact in the backward pass: by flex_attention on a GPU.

With `lse` the log-sum-exp of a query's scores, softmax over the scores and the sink is the softmax over the scores
alone times `sigmoid(lse - sink)`. flex_attention differentiates through the `lse` that it returns, so the sinks'
gradient needs no kernel of its own (the test compares with float64).
"""

# Shapes: B rows, S tokens a row, T = B * S, H heads, K KV heads, C head dim.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention


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

        def is_full(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document_ids[b, q] == document_ids[b, k])

        def is_near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return is_full(b, h, q, k) & (q - k < window)

        size = {"B": self.rows, "H": None, "Q_LEN": self.length, "KV_LEN": self.length, "device": document_ids.device}
        self._full: BlockMask = create_block_mask(is_full, **size)
        self._near: BlockMask = create_block_mask(is_near, **size)

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


class DenseRowAttention:
    """The same, written out over all pairs of tokens in a row: the reference, and the way on a CPU."""

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
