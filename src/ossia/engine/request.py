"""What a user asks of the engine: a prompt, how to choose tokens, and when to stop. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from ossia.core.errors import ContextLengthError, InvalidInputError

if TYPE_CHECKING:
    from ossia.engine.constraint import Constraint

MAX_TOP_LOGPROBS = 128
MAX_SAMPLES = 128
MAX_STOPS = 64
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """A stop id or a stop string was met, or its constraint allows nothing more."""
    LENGTH = "length"
    """`max_tokens` or the end of the context."""
    CANCELLED = "cancelled"
    """The client went away or asked for it."""
    DEADLINE = "deadline"
    """Its time was up."""
    ERROR = "error"
    """It failed by itself (NaN logits, a constraint that broke); the others go on."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    The order is: logits -> repetition, presence and frequency penalties -> logit_bias -> constraint and min_tokens ->
    temperature -> top_k -> top_p -> min_p -> one uniform number a token, a function of the seed and the token's index.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this share.
        top_k: sample from so many of the likeliest tokens; 0 for all.
        min_p: sample from tokens at least this times as likely as the likeliest.
        repetition_penalty: divides positive logits (multiplies negative ones) of tokens in prompt or output
            (Keskar et al. 2019, CTRL); 1 is none.
        presence_penalty: taken from the logit of each token that the output has.
        frequency_penalty: taken from it once for each time that the output has it.
        logit_bias: added to the logits of these token ids, -100 to 100; -100 bans and 100 all but forces.
        seed: the same seed gives the same tokens, whatever else is in the batch; None draws one.
        n: how many answers; answer i of a seed is the same whatever n is.
        max_tokens: at most so many tokens; None for as many as the context holds.
        min_tokens: no stop id is sampled, and no stop string counts, before so many tokens.
        stop: texts that end the answer; the text ends before the one met. Its tokens stay among the ids.
        stop_ids: tokens that end the answer; None for the engine's own (the turn's end). The one met is given, too.
        ignore_eos: go on through `stop_ids`, up to `max_tokens`.
        logprobs: give the logprob of each sampled token, and of so many of the likeliest (0 for none of those).
        prompt_logprobs: likewise for the prompt's tokens. Such a request does not read the prefix cache.
        constraint: what the output must look like.
        speculate: allow drafts by prompt lookup where the engine has them on; the output is the same.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=lambda: _NO_BIAS)
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    speculate: bool = True

    def __post_init__(self) -> None:
        _number(self, "temperature", 0, 100)
        _require(self.top_p, "top_p", _is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0, at most 1")
        _count(self, "top_k", 0, "a whole number, 0 for all tokens")
        _number(self, "min_p", 0, 1)
        is_factor = _is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf
        _require(self.repetition_penalty, "repetition_penalty", is_factor, "a number above 0; 1 is none")
        _number(self, "presence_penalty", -2, 2)
        _number(self, "frequency_penalty", -2, 2)
        for token, bias in self.logit_bias.items():
            is_known = _is_int(token) and token >= 0 and _is_number(bias) and -100 <= bias <= 100
            _require({token: bias}, "logit_bias", is_known, "token ids with numbers from -100 to 100")
        _require(self.seed, "seed", self.seed is None or _is_int(self.seed), "a whole number or None")
        _require(self.n, "n", _is_int(self.n) and 1 <= self.n <= MAX_SAMPLES, f"a whole number from 1 to {MAX_SAMPLES}")
        if self.max_tokens is not None:
            _count(self, "max_tokens", 1, "a whole number of at least 1, or None")
        _count(self, "min_tokens", 0, "a whole number of at least 0")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidInputError(
                f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}; min_tokens must not be above it",
                param="min_tokens",
            )
        are_texts = not isinstance(self.stop, str) and all(self.stop)
        _require(self.stop, "stop", are_texts and len(self.stop) <= MAX_STOPS, f"up to {MAX_STOPS} texts, none empty")
        for token in self.stop_ids or ():
            _require(token, "stop_ids", _is_int(token) and token >= 0, "token ids")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            is_known = value is None or (_is_int(value) and 0 <= value <= MAX_TOP_LOGPROBS)
            _require(value, name, is_known, f"None, or a whole number from 0 to {MAX_TOP_LOGPROBS}")

    @property
    def has_penalties(self) -> bool:
        """Whether the output so far changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One prompt and what is wanted for it.

    Attributes:
        id: names it in every event; unique among those the engine has.
        prompt_ids: at least one token.
        params: how to choose tokens.
        priority: larger goes first. One step up is worth `scheduler.PRIORITY_STEP` places in the queue, so that a
            request of low priority waits long under load, but not for ever.
        deadline: seconds on `time.monotonic()`'s clock; what is not done by then ends with DEADLINE.
        cache_salt: prefixes are shared only among requests with the same salt.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        _require(self.id, "id", bool(self.id), "a text that is not empty")
        if not self.prompt_ids:
            raise InvalidInputError("the prompt is empty; give at least one token", param="prompt_ids")
        _require(self.priority, "priority", _is_int(self.priority) and abs(self.priority) <= 100, "from -100 to 100")


def check_request(request: Request, *, vocab_size: int, context_length: int) -> None:
    """Check a request against a model.

    Raises:
        ContextLengthError: the prompt leaves no room for an answer.
        InvalidInputError: an id is outside the vocabulary.
    """
    if len(request.prompt_ids) >= context_length:
        raise ContextLengthError(num_tokens=len(request.prompt_ids), limit=context_length - 1, param="prompt_ids")
    _check_ids(request.prompt_ids, "prompt_ids", vocab_size)
    _check_ids(request.params.stop_ids or (), "stop_ids", vocab_size)
    _check_ids(tuple(request.params.logit_bias), "logit_bias", vocab_size)


def _check_ids(ids: Sequence[int], name: str, vocab_size: int) -> None:
    for place, token in enumerate(ids):
        if not (_is_int(token) and 0 <= token < vocab_size):
            raise InvalidInputError(
                f"{name}[{place}] is {token!r}; allowed: token ids from 0 to {vocab_size - 1}, this model's vocabulary",
                param=name,
            )


def _count(params: SamplingParams, name: str, minimum: int, allowed: str) -> None:
    value = getattr(params, name)
    _require(value, name, _is_int(value) and value >= minimum, allowed)


def _number(params: SamplingParams, name: str, low: float, high: float) -> None:
    value = getattr(params, name)
    _require(value, name, _is_number(value) and low <= value <= high, f"a number from {low} to {high}")


def _require(got: object, name: str, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise InvalidInputError(f"{name} is {got!r}; allowed: {allowed}", param=name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
