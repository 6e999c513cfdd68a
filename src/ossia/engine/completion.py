"""Whole results, collected from the engine's events. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from ossia.engine.output_event import Choices, OutputEvent, TokenLogprob
from ossia.engine.request import FinishReason, Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer to a prompt.

    Attributes:
        index: which of the `n` answers.
        token_ids: all that was sampled, the stop token included.
        text: without control tokens, and ending before the stop string if one was met.
        finish_reason: why it ended.
        stop: the stop string or stop id that was met.
        logprobs: one for each token, if asked for.
        error: what went wrong, for FinishReason.ERROR.
        routing: the experts of prompt and answer, if the engine records them; see `OutputEvent`.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: str | None = None
    routing: Choices | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A prompt and its answers.

    Attributes:
        prompt_ids: the prompt.
        answers: `n` of them, in order.
        prompt_logprobs: one for each prompt token, if asked for; None for the first.
        num_cached: prompt tokens that the prefix cache spared the first answer.
    """

    prompt_ids: tuple[int, ...]
    answers: tuple[Answer, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    num_cached: int = 0

    @property
    def text(self) -> str:
        """The text of the first answer."""
        return self.answers[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens of the first answer."""
        return self.answers[0].token_ids


class Collector:
    """Puts one request's events together."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._events: list[list[OutputEvent]] = [[] for _ in range(request.params.n)]
        self._num_open = request.params.n

    def push(self, event: OutputEvent) -> bool:
        """Take an event of this request; whether it was the last one."""
        self._events[event.index].append(event)
        self._num_open -= event.finish_reason is not None
        return self._num_open == 0

    def result(self) -> Completion:
        """The whole, once `push` has said that nothing is missing."""
        first = self._events[0]
        return Completion(
            prompt_ids=self._request.prompt_ids,
            answers=tuple(self._answer(events) for events in self._events),
            prompt_logprobs=next((e.prompt_logprobs for e in first if e.prompt_logprobs is not None), None),
            num_cached=max(event.num_cached for event in first),
        )

    def _answer(self, events: list[OutputEvent]) -> Answer:
        last = events[-1]
        assert last.finish_reason is not None
        wants_logprobs = self._request.params.logprobs is not None
        return Answer(
            index=last.index,
            token_ids=tuple(token for event in events for token in event.token_ids),
            text="".join(event.text for event in events),
            finish_reason=last.finish_reason,
            stop=last.stop,
            logprobs=tuple(lp for event in events for lp in event.logprobs or ()) if wants_logprobs else None,
            error=last.error,
            routing=last.routing,
        )
