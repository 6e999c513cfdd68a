"""What the engine tells of a request, step by step. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ossia.engine.request import FinishReason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Choices: TypeAlias = "NDArray[np.integer[Any]]"
"""Experts of tokens, int [T, L, A], L being layers and A the experts that are active."""


class TokenLogprob(NamedTuple):
    """How likely a token was, by the model's own distribution.

    Attributes:
        token_id: the token that was sampled (or stands in the prompt).
        logprob: its natural logarithm of probability.
        rank: 1 for the likeliest token.
        top: the likeliest tokens and their logprobs, likeliest first, as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class OutputEvent(NamedTuple):
    """News of one answer: what a step added to it, or how it ended. The last event of an answer has a finish reason.

    Attributes:
        request_id: whose answer it is.
        index: which of the request's answers.
        token_ids: new tokens, stop tokens included.
        text: new text, as far as it cannot still become part of a stop string or of a character.
        logprobs: one for each new token, if asked for.
        prompt_logprobs: at the first event of the first answer, if asked for; None for the prompt's first token.
        finish_reason: set at the end.
        stop: the stop string or stop id that was met.
        error: what went wrong, for FinishReason.ERROR.
        num_cached: prompt tokens that the prefix cache spared.
        routing: at the end, if the engine records it: the experts of all tokens that were computed, prompt and answer
            but for the last token. Fewer, if the answer was ended from outside.
    """

    request_id: str
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # nobody looks things up in an event
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop: str | int | None = None
    error: str | None = None
    num_cached: int = 0
    routing: Choices | None = None
