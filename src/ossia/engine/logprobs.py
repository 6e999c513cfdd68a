"""How likely tokens were, by the model's own distribution: the log-softmax of the logits as the model gave them,
before penalties, bias, constraint and temperature.
"""

# N rows, V vocabulary, K likeliest tokens

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.engine.output_event import TokenLogprob
from ossia.kernels.sampling import rank_tokens

PROMPT_ROWS = 64
"""Rows that `prompt_logprobs` works on at a time, which bounds its memory."""


class LogprobTensors(NamedTuple):
    """Logprobs of N tokens.

    Attributes:
        ids: [N] int64, the tokens.
        logprobs: [N] float32.
        ranks: [N] int32, 1 for the likeliest; of equals the lower id is the likelier.
        top_ids: [N, K] int64, likeliest first.
        top_logprobs: [N, K] float32.
    """

    ids: Tensor
    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def to_host(self) -> LogprobTensors:
        """Copies in host memory. Of a GPU's tensors they are complete once the current stream has come here."""
        if self.ids.device.type != "cuda":
            return self
        return LogprobTensors(*(tensor.to("cpu", non_blocking=True) for tensor in self))

    def to_list(self, num_top: Sequence[int]) -> list[TokenLogprob]:
        """One entry a row, with so many of the likeliest tokens."""
        tops = zip(self.top_ids.tolist(), self.top_logprobs.tolist(), strict=True)
        rows = zip(self.ids.tolist(), self.logprobs.tolist(), self.ranks.tolist(), tops, num_top, strict=True)
        return [
            TokenLogprob(token, logprob, rank, tuple(zip(top_ids[:count], top[:count], strict=True)))
            for token, logprob, rank, (top_ids, top), count in rows
        ]


def compute_logprobs(logits: Tensor, ids: Tensor, *, num_top: int) -> LogprobTensors:
    """Logprobs of the tokens `ids` [N] under `logits` [N, V], and the `num_top` likeliest of each row.

    Nothing here waits for a GPU. Sums are taken in float32.
    """
    V = logits.shape[-1]
    logits = logits.float()
    chosen = logits.gather(-1, ids.view(-1, 1))
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    is_lower = torch.arange(V, device=logits.device) < ids.view(-1, 1)
    is_likelier = (logits > chosen) | ((logits == chosen) & is_lower)
    top_ids = rank_tokens(logits, num_tokens=min(num_top, V)) if num_top else ids.new_empty(len(ids), 0)
    return LogprobTensors(
        ids=ids,
        logprobs=(chosen - normaliser)[:, 0],
        ranks=is_likelier.view(torch.uint8).sum(dim=-1, dtype=torch.int32) + 1,
        top_ids=top_ids,
        top_logprobs=logits.gather(-1, top_ids) - normaliser,
    )


def prompt_logprobs(logits: Tensor, next_ids: Sequence[int], *, num_top: int) -> list[TokenLogprob]:
    """Logprobs of a prompt's tokens, from a chunk of it.

    The prompt's first token has none. A prompt in chunks is done by a call for each: token i's logits stand at i - 1,
    so the next chunk's first token belongs to this one's last row.

    Args:
        logits: [N, V], of N tokens of the prompt.
        next_ids: the N tokens one place further on.
        num_top: so many of the likeliest tokens with each.
    """
    ids = torch.tensor(next_ids, dtype=torch.int64, device=logits.device)
    found: list[TokenLogprob] = []
    for begin in range(0, len(ids), PROMPT_ROWS):
        part = slice(begin, begin + PROMPT_ROWS)
        tensors = compute_logprobs(logits[part], ids[part], num_top=num_top)
        found += tensors.to_list([num_top] * len(tensors.ids))
    return found
