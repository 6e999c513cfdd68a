"""An engine that says what a script tells it: for tests, benchmarks, and for trying clients without a model.

    engine = ScriptedEngine(tokenizer, script=lambda prompt: "<|channel|>final<|message|>Hello<|return|>")

A script gets the prompt as text, control tokens by name, and gives what the assistant says behind `<|start|>assistant`
likewise; the ids are real ones. Everything else (events, cancelling, limits, errors) is as with `AsyncEngine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, TypeAlias

from ossia.core.errors import EngineDeadError, EngineOverloadedError
from ossia.engine.constraint import TurnConstraint
from ossia.engine.metrics import Metrics, MetricsSnapshot
from ossia.engine.output import OutputDelta, SequenceOutput
from ossia.engine.output_event import OutputEvent, TokenLogprob
from ossia.engine.request import FinishReason, Request, check_request

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer

Script: TypeAlias = Callable[[str], str]


def encode_text(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of a text in which control tokens stand by name. For texts of one's own only."""
    return tuple(tokenizer.encode_with_specials(text))


class ScriptedStream:
    """The events of one request."""

    def __init__(self, events: Sequence[OutputEvent], *, engine: ScriptedEngine, request: Request) -> None:
        self._events = deque(events)
        self._engine = engine
        self._request = request
        self._num_open = request.params.n
        self._is_cancelled = asyncio.Event()
        self._num_sent = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> OutputEvent:
        if self._num_open == 0:
            raise StopAsyncIteration
        await self._wait()
        if not self._engine.is_alive and self._engine.error is not None:
            self._engine.forget(self._request.id)
            raise self._engine.error
        is_late = self._request.deadline is not None and time.monotonic() >= self._request.deadline
        if self._is_cancelled.is_set() or is_late or not self._events:
            event = OutputEvent(self._request.id, self._request.params.n - self._num_open)
            event = event._replace(finish_reason=FinishReason.DEADLINE if is_late else FinishReason.CANCELLED)
        else:
            event = self._events.popleft()
        self._num_sent += 1
        if event.finish_reason is not None:
            self._num_open -= 1
            self._engine.metrics_now.finished[event.finish_reason.value] += 1
            if self._num_open == 0:
                self._engine.forget(self._request.id)
        return event

    async def _wait(self) -> None:
        engine = self._engine
        if engine.gate is not None:
            waits = [asyncio.ensure_future(engine.gate.wait()), asyncio.ensure_future(self._is_cancelled.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        elif engine.seconds_per_event > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_cancelled.wait(), engine.seconds_per_event)
        else:
            await asyncio.sleep(0)

    def cancel(self) -> None:
        if self._num_open and not self._is_cancelled.is_set():
            self._is_cancelled.set()
            self._engine.cancelled.append(self._request.id)
            self._engine.forget(self._request.id)


class ScriptedEngine:
    """See the module.

    Attributes:
        requests: all that were taken, in order.
        open: ids of those in progress, as an engine would hold pages for them.
        cancelled: ids of those that were cancelled.
        gate: while this is set to an event, nothing comes before that event is set.
        error: set by `die`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        script: Script,
        context_length: int = 4096,
        tokens_per_event: int = 1,
        seconds_per_event: float = 0.0,
        max_open: int = 1 << 30,
        num_cached: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.context_length = context_length
        self.tokens_per_event = tokens_per_event
        self.seconds_per_event = seconds_per_event
        self.max_open = max_open
        self.num_cached = num_cached
        self.requests: list[Request] = []
        self.open: set[str] = set()
        self.cancelled: list[str] = []
        self.gate: asyncio.Event | None = None
        self.error: EngineDeadError | None = None
        self.metrics_now = Metrics()
        self.repairs: Counter[str] = Counter()
        self._is_stopping = False

    @property
    def is_alive(self) -> bool:
        return self.error is None and not self._is_stopping

    async def submit(self, request: Request) -> ScriptedStream:
        if not self.is_alive:
            raise self.error or EngineDeadError("the engine was shut down")
        check_request(request, vocab_size=self.tokenizer.vocab_size, context_length=self.context_length)
        if len(self.open) >= self.max_open:
            self.metrics_now.rejected += 1
            raise EngineOverloadedError(num_new=request.params.n, num_waiting=len(self.open), limit=self.max_open)
        self.requests.append(request)
        self.open.add(request.id)
        self.metrics_now.num_requests += 1
        self.metrics_now.num_prompt_tokens += len(request.prompt_ids)
        prompt = self.tokenizer.decode(request.prompt_ids)
        events = [event for i in range(request.params.n) for event in self._say(request, i, self.script(prompt))]
        return ScriptedStream(events, engine=self, request=request)

    def _say(self, request: Request, index: int, text: str) -> list[OutputEvent]:
        ids = encode_text(text, self.tokenizer)
        params = request.params
        stop_ids = params.stop_ids or (self.tokenizer.return_, self.tokenizer.call, self.tokenizer.endoftext)
        if isinstance(params.constraint, TurnConstraint) and params.constraint.num_calls > 1:
            stop_ids = tuple(token for token in stop_ids if token != self.tokenizer.call)
        output = SequenceOutput(
            tokenizer=self.tokenizer,
            params=params,
            stop_ids=stop_ids,
            max_tokens=params.max_tokens or self.context_length,
        )
        num_cached = min(self.num_cached, len(request.prompt_ids))
        events: list[OutputEvent] = []
        for i in range(0, len(ids), self.tokens_per_event):
            chunk = ids[i : i + self.tokens_per_event]
            logprobs = None if params.logprobs is None else [_logprob(token, params.logprobs) for token in chunk]
            events.append(_event(request, index, output.push(chunk, logprobs), num_cached=num_cached))
            if output.finish_reason is not None:
                break
        else:
            rest = output.finish(FinishReason.STOP)
            last = events.pop() if events else OutputEvent(request.id, index, num_cached=num_cached)
            events.append(last._replace(text=last.text + rest.text, finish_reason=rest.finish_reason))
        self.metrics_now.num_output_tokens += output.num_tokens
        return events

    def forget(self, request_id: str) -> None:
        """A request is over."""
        self.open.discard(request_id)

    def die(self) -> None:
        """Fail as an engine whose thread died: all that is in progress, and all that is asked later."""
        self.error = EngineDeadError("the engine died (RuntimeError); restart the server and see its log")
        if self.gate is not None:
            self.gate.set()

    async def metrics(self) -> MetricsSnapshot:
        self.metrics_now.parser_repairs = self.repairs
        return self.metrics_now.snapshot(
            num_waiting=0, num_running=len(self.open), num_pages=1024, num_free_pages=1024 - len(self.open)
        )

    async def record_repairs(self, kinds: list[str]) -> None:
        self.repairs.update(kinds)

    async def shutdown(self, *, drain: bool = False) -> None:
        self._is_stopping = True
        limit = time.monotonic() + 60
        while drain and self.open and time.monotonic() < limit:
            await asyncio.sleep(0.01)


def _event(request: Request, index: int, delta: OutputDelta, *, num_cached: int) -> OutputEvent:
    return OutputEvent(
        request.id,
        index,
        delta.token_ids,
        delta.text,
        delta.logprobs,
        finish_reason=delta.finish_reason,
        stop=delta.stop,
        num_cached=num_cached,
    )


def _logprob(token: int, num_top: int) -> TokenLogprob:
    """A made-up but steady distribution: the token itself first, then its neighbours in the vocabulary."""
    top = tuple((token + i if token < 100 else token - i, math.log(0.5 ** (i + 1))) for i in range(num_top))
    return TokenLogprob(token, math.log(0.5), 1, top)
