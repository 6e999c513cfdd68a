"""Greedy generation for many prompts at once, so that an evaluation of thousands of problems takes minutes.

Every row keeps its keys and values in its own stretch of one contiguous cache, position p in slot p. That makes one
mask right for prefill and decoding alike: a query at position p sees the slots up to p. Rows that have stopped are
squeezed out of the cache from time to time, so that a few long answers do not hold up the batch. `generate`, one
sequence at a time, is the oracle: in float32 both give the same tokens.

Shapes: B rows, N tokens of one step laid end to end, T tokens a row (padded), S slots, H heads, K KV heads,
M = H / K heads a KV head, C head dim, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ossia.core.errors import ContextLengthError, InvalidInputError
from ossia.model.transformer import Transformer

CHECK_EVERY = 8
"""Steps between two looks at which rows have stopped: on a GPU each look waits for the device."""


class RowAttention:
    """The attention of one step over a cache of rows; an `AttentionBackend`.

    Args:
        keys: [L, B, S, K, C], written in place at each token's row and position.
        values: likewise.
        rows: [N] the row of each token.
        positions: [N] the position of each token in its row, which is its slot in the cache.
        columns: [N] the place of each token among its row's tokens of this step.
        num_columns: T, the most tokens that a row has in this step.
        num_slots: how many slots can hold something after this step; the others are not read.
    """

    def __init__(
        self,
        *,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        positions: Tensor,
        columns: Tensor,
        num_columns: int,
        num_slots: int,
    ) -> None:
        self.keys, self.values = keys, values
        self.rows, self.positions, self.columns = rows, positions, columns
        self.num_columns, self.num_slots = num_columns, num_slots
        num_rows = keys.shape[1]
        self._query_positions = positions.new_zeros(num_rows, num_columns)
        self._query_positions[rows, columns] = positions
        self._hidden: dict[int | None, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """Store k and v [N, K, C] and let q [N, H, C] attend to its row's past: [N, H, C]."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, self.positions] = k
        values[self.rows, self.positions] = v
        queries = q.new_zeros(keys.shape[0], self.num_columns, *q.shape[1:])
        queries[self.rows, self.columns] = q
        out = attend_rows(
            queries,
            keys[:, : self.num_slots],
            values[:, : self.num_slots],
            hidden=self._hidden_slots(window),
            sinks=sinks,
        )
        return out[self.rows, self.columns]

    def _hidden_slots(self, window: int | None) -> Tensor:
        """[B, T, S]: True where a query does not see a slot. One mask serves all layers with the same window."""
        if window not in self._hidden:
            query = self._query_positions[:, :, None]
            slot = torch.arange(self.num_slots, device=query.device)
            hidden = slot > query
            if window is not None:
                hidden |= slot <= query - window
            self._hidden[window] = hidden
        return self._hidden[window]


def attend_rows(queries: Tensor, keys: Tensor, values: Tensor, *, hidden: Tensor, sinks: Tensor) -> Tensor:
    """Attend in each row: queries [B, T, H, C], keys and values [B, S, K, C], hidden [B, T, S], sinks [H].

    Scores and softmax are float32. A head's sink logit joins the softmax and takes no value.
    """
    B, T, H, C = queries.shape
    K = keys.shape[2]
    grouped = queries.view(B, T, K, H // K, C)
    scores = torch.einsum("btkmc,bskc->bkmts", grouped, keys).float() * C**-0.5
    scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    sink = sinks.float().view(1, K, H // K, 1, 1).expand(B, -1, -1, T, 1)
    weights = torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]
    return torch.einsum("bkmts,bskc->btkmc", weights.to(values.dtype), values).reshape(B, T, H, C)


class BatchedGenerator:
    """Generates greedily for B prompts at once.

    Holds what one batch needs, so make a new one for each batch; `generate_batch` does.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> None:
        config = model.config
        longest = max(len(prompt) for prompt in prompts)
        if longest + max_tokens > config.max_position_embeddings:
            raise ContextLengthError(num_tokens=longest, limit=config.max_position_embeddings - max_tokens)
        self.model = model
        self.prompts = prompts
        self.device = model.embed_tokens.weight.device
        shape = (
            config.num_hidden_layers,
            len(prompts),
            longest + max_tokens,
            config.num_key_value_heads,
            config.head_dim,
        )
        # Zeros and not just memory: a slot nobody wrote has weight 0, and 0 times NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=model.embed_tokens.weight.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.num_slots = longest

    def prefill(self) -> Tensor:
        """Run all prompts and return each row's next token, [B]. What the prompts share is run once and copied."""
        shared = num_shared(self.prompts)
        if shared:
            prefix = torch.tensor(self.prompts[0][:shared], device=self.device)
            places = torch.arange(shared, device=self.device)
            self._forward(
                prefix, rows=torch.zeros_like(places), positions=places, columns=places, num_columns=shared, num_rows=1
            )
            self.keys[:, 1:, :shared] = self.keys[:, :1, :shared]
            self.values[:, 1:, :shared] = self.values[:, :1, :shared]
        rest = [prompt[shared:] for prompt in self.prompts]
        counts = torch.tensor([len(ids) for ids in rest], device=self.device)
        columns = torch.cat([torch.arange(len(ids), device=self.device) for ids in rest])
        hidden = self._forward(
            torch.tensor([token for ids in rest for token in ids], device=self.device),
            rows=torch.repeat_interleave(torch.arange(len(rest), device=self.device), counts),
            positions=columns + shared,
            columns=columns,
            num_columns=max(len(ids) for ids in rest),
            num_rows=len(rest),
        )
        return self._choose(hidden[counts.cumsum(0) - 1])

    def decode(self, tokens: Tensor) -> Tensor:
        """Append one token to each row and return the next, [B] -> [B]."""
        self.num_slots += 1
        hidden = self._forward(
            tokens,
            rows=torch.arange(len(tokens), device=self.device),
            positions=self.lengths,
            columns=torch.zeros_like(tokens),
            num_columns=1,
            num_rows=len(tokens),
        )
        self.lengths = self.lengths + 1
        return self._choose(hidden)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        if len(rows) == self.keys.shape[1]:
            return
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.lengths = self.lengths[rows]

    def _forward(
        self, tokens: Tensor, *, rows: Tensor, positions: Tensor, columns: Tensor, num_columns: int, num_rows: int
    ) -> Tensor:
        attention = RowAttention(
            keys=self.keys[:, :num_rows],
            values=self.values[:, :num_rows],
            rows=rows,
            positions=positions,
            columns=columns,
            num_columns=num_columns,
            num_slots=self.num_slots,
        )
        return self.model(tokens, positions=positions, attention=attention)

    def _choose(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden).argmax(dim=-1)


@torch.inference_mode()
def generate_batch(
    model: Transformer, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop_ids: Iterable[int]
) -> list[list[int]]:
    """Generate greedily for every prompt: the new ids of each, the stop id included if one was met.

    Raises:
        ContextLengthError: the longest prompt and `max_tokens` together do not fit the model's context.
        InvalidInputError: a prompt is empty, or `max_tokens` is not positive.
    """
    if not prompts:
        return []
    if not all(prompts):
        raise InvalidInputError("a prompt is empty; give it at least one token", param="prompts")
    if max_tokens < 1:
        raise InvalidInputError(f"max_tokens is {max_tokens}; it must be at least 1", param="max_tokens")
    generator = BatchedGenerator(model, prompts, max_tokens=max_tokens)
    stops = torch.tensor(sorted(set(stop_ids)), device=generator.device)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # the prompt of each row
    tokens = generator.prefill()
    num_left = max_tokens
    while alive:
        block = [tokens]
        for _ in range(min(CHECK_EVERY, num_left) - 1):
            block.append(generator.decode(block[-1]))
        num_left -= len(block)
        ids = torch.stack(block, dim=1)
        for prompt, new in zip(alive, ids.tolist(), strict=True):
            answers[prompt] += new
        kept = (~torch.isin(ids, stops).any(dim=1)).nonzero().flatten()
        alive = [alive[row] for row in kept.tolist()] if num_left else []
        if alive:
            generator.keep(kept)
            tokens = generator.decode(ids[kept, -1])
    return [up_to_stop(ids, stops.tolist()) for ids in answers]


def num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, short of the last token of any: that one each row must run itself."""
    shortest = min(prompts, key=len)[:-1]
    for index, token in enumerate(shortest):
        if any(prompt[index] != token for prompt in prompts):
            return index
    return len(shortest)


def up_to_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Cut off what a row generated before anyone saw that it had stopped."""
    ends = [index + 1 for index, token in enumerate(ids) if token in stops]
    return list(ids[: ends[0]] if ends else ids)
