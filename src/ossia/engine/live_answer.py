"""All that belongs to one answer while it is made, beside its tokens and pages. No torch."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from ossia.engine.constraint import TurnConstraint
from ossia.engine.output import OutputDelta, SequenceOutput
from ossia.engine.output_event import OutputEvent, TokenLogprob
from ossia.engine.request import FinishReason, Request
from ossia.engine.sequence import Sequence

if TYPE_CHECKING:
    from ossia.engine.grammar.matcher import Matcher
    from ossia.harmony.tokenizer import Tokenizer


class LiveAnswer:
    """Joins a sequence with its text, its constraint and its clock, and makes its events.

    Attributes:
        sequence: its tokens and pages.
        stop_ids: tokens that end it; none with `ignore_eos`.
        matcher: follows its constraint; None without one.
        submitted, last_news: seconds on `time.monotonic()`'s clock; the latter is when its last token came, 0 for none.
    """

    def __init__(
        self,
        sequence: Sequence,
        *,
        tokenizer: Tokenizer,
        stop_ids: tuple[int, ...],
        matcher: Matcher | None,
        submitted: float,
    ) -> None:
        params = sequence.request.params
        constraint = params.constraint
        if isinstance(constraint, TurnConstraint) and constraint.num_calls > 1:
            stop_ids = tuple(token for token in stop_ids if token != tokenizer.call)
        self.sequence = sequence
        self.stop_ids = () if params.ignore_eos else stop_ids
        self.matcher = matcher
        self.submitted = submitted
        self.last_news = 0.0
        self._output = SequenceOutput(
            tokenizer=tokenizer,
            params=params,
            stop_ids=self.stop_ids,
            max_tokens=sequence.max_length - sequence.num_prompt,
        )
        # With several calls, `<|start|>` may turn out to say only that the turn is over: it waits for what follows it.
        self._start_id = tokenizer.start if isinstance(constraint, TurnConstraint) else None
        self._held: tuple[int, ...] = ()
        self._held_logprobs: tuple[TokenLogprob, ...] = ()
        wants_prompt = params.prompt_logprobs is not None and sequence.index == 0
        self._prompt_logprobs: list[TokenLogprob | None] | None = None
        if wants_prompt:
            self._prompt_logprobs = [None for _ in range(sequence.num_prompt)]
        self._num_scored = 1  # the prompt's first token has no logprob

    @property
    def request(self) -> Request:
        return self.sequence.request

    @property
    def num_prompt_scored(self) -> int | None:
        """Prompt tokens whose logprobs are known or will never be; None if they are not wanted."""
        return None if self._prompt_logprobs is None else self._num_scored

    def score_prompt(self, logprobs: Items[TokenLogprob]) -> None:
        """Take the logprobs of the prompt's next tokens."""
        assert self._prompt_logprobs is not None
        end = self._num_scored + len(logprobs)
        self._prompt_logprobs[self._num_scored : end] = logprobs
        self._num_scored = end

    def push(self, tokens: Items[int], logprobs: Items[TokenLogprob] | None) -> OutputDelta:
        """Take sampled tokens; what of them counts. The constraint follows those, and may end the answer or break."""
        delta = self._output.push(tokens, logprobs)
        matcher = self.matcher
        if matcher is None:
            return delta
        for token in delta.token_ids:
            if matcher.is_finished or not matcher.advance(token):
                break
        if delta.finish_reason is None and matcher.error is None and matcher.is_finished:
            end = self._output.finish(FinishReason.STOP)
            delta = delta._replace(text=delta.text + end.text, finish_reason=FinishReason.STOP)
        return delta

    def event(self, delta: OutputDelta) -> OutputEvent | None:
        """What is to be told of new tokens; None while they wait for what follows."""
        token_ids, logprobs = delta.token_ids, delta.logprobs
        if self._start_id is not None:
            token_ids, logprobs = self._hold_start(delta)
        if not token_ids and not delta.text and delta.finish_reason is None:
            return None
        sequence, prompt_logprobs = self.sequence, self._prompt_logprobs
        self._prompt_logprobs = None
        return OutputEvent(
            sequence.request.id,
            sequence.index,
            token_ids,
            delta.text,
            logprobs,
            None if prompt_logprobs is None else tuple(prompt_logprobs),
            delta.finish_reason,
            delta.stop,
            None,
            sequence.num_cached,
        )

    def end_event(self, reason: FinishReason, *, error: str | None = None) -> OutputEvent:
        """End it from outside; the text held back is given out."""
        text = self._output.finish(reason).text
        sequence = self.sequence
        held, logprobs = self._held, self._held_logprobs
        self._held, self._held_logprobs = (), ()
        return OutputEvent(
            sequence.request.id,
            sequence.index,
            token_ids=held,
            text=text,
            logprobs=logprobs or None,
            finish_reason=reason,
            error=error,
            num_cached=sequence.num_cached,
        )

    def _hold_start(self, delta: OutputDelta) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...] | None]:
        """Keep a `<|start|>` at the end back; at the end of the answer, drop what only says that it is over."""
        tokens = (*self._held, *delta.token_ids)
        logprobs = None if delta.logprobs is None else (*self._held_logprobs, *delta.logprobs)
        self._held, self._held_logprobs = (), ()
        if delta.finish_reason is None:
            if tokens and tokens[-1] == self._start_id:
                self._held, tokens = tokens[-1:], tokens[:-1]
                if logprobs is not None:
                    self._held_logprobs, logprobs = logprobs[-1:], logprobs[:-1]
        elif self.matcher is not None and self.matcher.num_excess:
            end = len(tokens) - self.matcher.num_excess
            tokens = tokens[:end]
            logprobs = None if logprobs is None else logprobs[:end]
        return tokens, logprobs
