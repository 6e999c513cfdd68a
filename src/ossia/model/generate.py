"""Generation, one sequence at a time: the plain way, by which a faster engine can be judged."""

# T tokens, N rows, V vocabulary

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ossia.core.errors import ContextLengthError, InvalidInputError
from ossia.kernels.sampling import sample, token_uniform
from ossia.model.attention import CachedAttention, KVCache
from ossia.model.transformer import Transformer

PREFILL_CHUNK = 2048
"""Prompt tokens a forward pass, which bounds the memory of a long prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How tokens are chosen, and when to stop.

    Attributes:
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: sample from the likeliest tokens that together have this share.
        top_k: sample from so many of the likeliest tokens; 0 for all.
        min_p: sample from tokens at least this times as likely as the likeliest.
        seed: the same seed gives the same tokens; None draws one.
        max_tokens: generate so many at most; None for as many as the context holds.
        stop_ids: tokens that end generation; the one met is given, too.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "a finite number of at least 0")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "a number above 0, at most 1")
        _check("top_k", self.top_k, _is_int(self.top_k) and self.top_k >= 0, "a whole number, 0 for all tokens")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "a number from 0 to 1")
        _check("seed", self.seed, self.seed is None or _is_int(self.seed), "a whole number or None")
        is_count = _is_int(self.max_tokens) and self.max_tokens >= 1  # type: ignore[operator]
        _check(
            "max_tokens", self.max_tokens, self.max_tokens is None or is_count, "a whole number of at least 1, or None"
        )


def generate(
    model: Transformer, prompt_ids: Sequence[int], *, options: GenerationOptions | None = None
) -> Iterator[int]:
    """Generate token by token, until a stop id (which comes too), `max_tokens` or the end of the context.

    The input is checked at once; the model runs as the iterator is consumed.

    Raises:
        ContextLengthError: the prompt leaves no room for an answer.
        InvalidInputError: the prompt is empty or has ids outside the vocabulary, as may `stop_ids`.
    """
    options = options or GenerationOptions()
    config = model.config
    prompt = list(prompt_ids)
    if not prompt:
        raise InvalidInputError("the prompt is empty; give at least one token", param="prompt_ids")
    _check_ids(prompt, "prompt_ids", config.vocab_size)
    _check_ids(options.stop_ids, "stop_ids", config.vocab_size)
    limit = config.max_position_embeddings - 1
    if len(prompt) > limit:
        raise ContextLengthError(num_tokens=len(prompt), limit=limit, param="prompt_ids")
    room = config.max_position_embeddings - len(prompt)
    return _generate(model, prompt, options, min(room, options.max_tokens or room))


def _generate(model: Transformer, prompt: list[int], options: GenerationOptions, max_tokens: int) -> Iterator[int]:
    seed = secrets.randbits(63) if options.seed is None else options.seed
    stops = frozenset(options.stop_ids)
    weight = model.embed_tokens.weight
    cache = KVCache(
        model.config,
        capacity=len(prompt) + min(max_tokens, PREFILL_CHUNK),
        dtype=weight.dtype,
        device=weight.device,
    )
    for begin in range(0, len(prompt) - PREFILL_CHUNK, PREFILL_CHUNK):
        next_logits(model, prompt[begin : begin + PREFILL_CHUNK], cache=cache)
    logits = next_logits(model, prompt[cache.length :], cache=cache)
    for index in range(max_tokens):
        token = _choose(logits, options, token_uniform(seed, index))
        yield token
        if token in stops or index + 1 == max_tokens:
            return
        logits = next_logits(model, [token], cache=cache)


@torch.inference_mode()
def next_logits(model: Transformer, token_ids: Sequence[int], *, cache: KVCache) -> Tensor:
    """Append tokens to a cached sequence and return the logits after the last one, float32 [1, V]."""
    device = cache.keys.device
    positions = torch.arange(cache.length, cache.length + len(token_ids), device=device)
    attention = CachedAttention(cache, num_tokens=len(token_ids))
    hidden = model(torch.tensor(token_ids, device=device), positions=positions, attention=attention)
    attention.commit()
    return model.logits(hidden[-1:])


@torch.inference_mode()
def _choose(logits: Tensor, options: GenerationOptions, uniform: float) -> int:
    if options.temperature == 0:
        return int(logits.argmax(dim=-1))
    chosen = sample(
        logits,
        temperature=options.temperature,
        uniforms=torch.tensor([uniform], dtype=torch.float64, device=logits.device),
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
    )
    return int(chosen)


def _check(name: str, got: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise InvalidInputError(f"{name} is {got!r}; allowed: {allowed}", param=name)


def _check_ids(ids: Sequence[int], name: str, vocab_size: int) -> None:
    for place, token in enumerate(ids):
        if not (_is_int(token) and 0 <= token < vocab_size):
            raise InvalidInputError(
                f"{name}[{place}] is {token!r}; allowed: token ids from 0 to {vocab_size - 1}, this model's vocabulary",
                param=name,
            )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
