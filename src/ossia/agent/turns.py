"""The thin joint between conversations and the engine, for the loop and for every API of the server.

    prompt = await turns.encode(conversation)
    request = turns.request(prompt, sampling=Sampling(temperature=0.5), owner=caller.key_id)
    async with await turns.start(request, tools=recipients) as turn:
        async for news in turn:          # TurnNews(answer, events, logprobs)
            ...
        result = turn.result()           # engine.turn.Turn of answer 0

`start` returns when the engine has taken the request, so whatever is wrong with it is raised before any byte of an
answer is sent. Leaving the block early cancels the request and gives its pages back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from ossia.core.errors import ContextLengthError
from ossia.engine.output_event import OutputEvent, TokenLogprob
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.engine.turn import Turn, TurnReader, finish_turn
from ossia.harmony.events import Event, RepairKind
from ossia.harmony.message import Conversation
from ossia.harmony.render import render
from ossia.model.loading import Identity, SamplingDefaults

if TYPE_CHECKING:
    from ossia.engine.constraint import Constraint
    from ossia.engine.metrics import MetricsSnapshot
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.model.loading import LoadedModel

logger = logging.getLogger(__name__)

_LONG_TEXT = 50_000
"""Characters; more are encoded in a thread, so that other clients' tokens need not wait."""


class EventStream(Protocol):
    """One request's events, as `AsyncEngine.submit` gives them."""

    def __aiter__(self) -> AsyncIterator[OutputEvent]: ...
    async def __anext__(self) -> OutputEvent: ...
    def cancel(self) -> None: ...


class EngineClient(Protocol):
    """What is needed of an engine: `AsyncEngine`, or one that follows a script."""

    @property
    def is_alive(self) -> bool: ...
    async def submit(self, request: Request) -> EventStream: ...
    async def metrics(self) -> MetricsSnapshot: ...
    async def record_repairs(self, kinds: list[str]) -> None: ...
    async def shutdown(self, *, drain: bool = False) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What the loop and the server must know of the model besides its engine."""

    name: str
    tokenizer: Tokenizer
    identity: Identity
    context_length: int
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    created_at: int = 0

    @staticmethod
    def of(loaded: LoadedModel, *, name: str | None = None, created_at: int = 0) -> ServedModel:
        """Of a loaded model, under another name if one is given."""
        return ServedModel(
            name=name or loaded.name,
            tokenizer=loaded.tokenizer,
            identity=loaded.identity,
            context_length=loaded.context_length,
            sampling=loaded.sampling,
            created_at=created_at,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """What a client chose, in the words of `SamplingParams`; None leaves it to the model's defaults.

    Attributes:
        max_tokens: clamped to what the context holds, never an error.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None

    def resolve(self, defaults: SamplingDefaults, *, room: int) -> SamplingParams:
        """What the engine is told.

        Args:
            defaults: the model's.
            room: tokens that fit behind the prompt.

        Raises:
            InvalidInputError: a value out of range.
        """
        wanted = self.max_tokens if self.max_tokens is not None else defaults.max_tokens
        return SamplingParams(
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            n=self.n,
            max_tokens=room if wanted is None else min(wanted, room),
            stop=self.stop,
            logprobs=self.logprobs,
            constraint=self.constraint,
        )


class TurnNews(NamedTuple):
    """What became known of an answer.

    Attributes:
        answer: which of the request's answers.
        events: in harmony's terms. With logprobs asked for they are of one token each.
        logprobs: of the tokens that brought the events about, if asked for.
        is_last: the answer is over.
    """

    answer: int
    events: list[Event]
    logprobs: tuple[TokenLogprob, ...] | None
    is_last: bool


class Turns:
    """Starts turns of one model on one engine."""

    def __init__(self, engine: EngineClient, *, model: ServedModel) -> None:
        self.engine = engine
        self.model = model

    async def encode(self, conversation: Conversation) -> tuple[int, ...]:
        """The prompt for the assistant's next turn. Long ones are encoded in a thread.

        Raises:
            ContextLengthError: it leaves no room for an answer.
        """
        size = sum(len(message.text) for message in conversation)
        if size > _LONG_TEXT:
            ids = await asyncio.to_thread(render, conversation, tokenizer=self.model.tokenizer)
        else:
            ids = render(conversation, tokenizer=self.model.tokenizer)
        if len(ids) >= self.model.context_length:
            raise ContextLengthError(num_tokens=len(ids), limit=self.model.context_length - 1, param="input")
        return tuple(ids)

    def request(
        self,
        prompt: tuple[int, ...],
        *,
        sampling: Sampling,
        owner: str,
        request_id: str,
        deadline: float | None = None,
    ) -> Request:
        """What the engine is asked.

        Args:
            prompt: from `encode`, so it leaves room.
            owner: the caller's key; prefixes are shared among its requests alone.
            request_id: unique among those in progress.
            deadline: see `Request`.

        Raises:
            InvalidInputError: a value out of range.
        """
        room = self.model.context_length - len(prompt)
        return Request(
            id=request_id,
            prompt_ids=prompt,
            params=sampling.resolve(self.model.sampling, room=room),
            deadline=deadline,
            cache_salt=owner,
        )

    async def start(self, request: Request, *, tools: Sequence[str] = ()) -> RunningTurn:
        """Hand a request in.

        Args:
            tools: recipients that the prompt declares, which help to read an odd one.

        Raises:
            EngineOverloadedError, EngineDeadError: the engine takes nothing now.
            InvalidInputError: the model cannot run it.
        """
        stream = await self.engine.submit(request)
        readers = [
            TurnReader(self.model.tokenizer, num_prompt=len(request.prompt_ids), tools=tools)
            for _ in range(request.params.n)
        ]
        return RunningTurn(stream, readers=readers, engine=self.engine, splits=request.params.logprobs is not None)


class RunningTurn:
    """A turn in progress: iterate over it once.

    Attributes:
        readers: one for each answer; they hold its messages and usage so far.
    """

    def __init__(
        self, stream: EventStream, *, readers: Sequence[TurnReader], engine: EngineClient, splits: bool
    ) -> None:
        self.readers = readers
        self._stream = stream
        self._engine = engine
        self._splits = splits
        self._num_open = len(readers)
        self._ready: list[TurnNews] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TurnNews:
        """The next news.

        Raises:
            EngineDeadError: the engine stopped before the turn was over.
        """
        while not self._ready:
            if self._num_open == 0:
                raise StopAsyncIteration
            event = await anext(self._stream)
            reader = self.readers[event.index]
            if reader.engine_finish is None:
                self._ready = self._read(event, reader)[::-1]
        return self._ready.pop()

    def _read(self, event: OutputEvent, reader: TurnReader) -> list[TurnNews]:
        news: list[TurnNews] = []
        for part in _split(event) if self._splits else (event,):
            events = reader.push(part)
            if reader.engine_finish is None and reader.is_done:
                # The model began to speak for others: what comes now is nobody's.
                events += reader.push(OutputEvent(event.request_id, event.index, finish_reason=FinishReason.STOP))
                if self._num_open == 1:
                    self._stream.cancel()
            is_last = reader.engine_finish is not None
            news.append(TurnNews(event.index, events, part.logprobs, is_last))
            if is_last:
                self._num_open -= 1
                break
        return news

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.cancel()
        kinds: list[RepairKind] = [repair.kind for reader in self.readers for repair in reader.repairs]
        if kinds:
            await self._engine.record_repairs([kind.value for kind in kinds])

    def cancel(self) -> None:
        """Stop the engine's work on it; its answers then end with CANCELLED."""
        self._stream.cancel()

    def result(self, index: int = 0) -> Turn:
        """What an answer came to, once it is over."""
        return finish_turn(self.readers[index])

    @property
    def num_tokens(self) -> int:
        """Prompt and answers so far, as a key is charged for them."""
        return self.readers[0].usage.num_prompt + sum(reader.usage.num_output for reader in self.readers)


def _split(event: OutputEvent) -> list[OutputEvent]:
    """One event a token, so that the text of each can be told."""
    if len(event.token_ids) <= 1:
        return [event]
    last = len(event.token_ids) - 1
    parts: list[OutputEvent] = []
    for i, token in enumerate(event.token_ids):
        logprobs = event.logprobs[i : i + 1] if event.logprobs else None
        part = OutputEvent(event.request_id, event.index, (token,), "", logprobs, num_cached=event.num_cached)
        if i == last:
            part = part._replace(finish_reason=event.finish_reason, stop=event.stop, error=event.error)
        parts.append(part)
    return parts
