"""Where a response's messages come from: one turn of the model, or an agent's run with the server's own tools."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from ossia.agent.events import AgentEvent, CallEnded, RunEnded, StopReason, TurnDelta, TurnEnded
from ossia.agent.loop import AgentLoop
from ossia.agent.turns import RunningTurn
from ossia.core.errors import OssiaError
from ossia.engine.output_event import TokenLogprob
from ossia.engine.request import FinishReason
from ossia.engine.turn import Usage
from ossia.harmony.events import Event
from ossia.harmony.message import Conversation, Message
from ossia.tools.registry import ToolSet

logger = logging.getLogger(__name__)

SERVER_ERROR = "server_error"


class Outcome(NamedTuple):
    """How a response ended.

    Attributes:
        status: completed, incomplete, failed or cancelled.
        message: why it failed.
        reason: why it is incomplete.
    """

    status: str
    message: str | None = None
    reason: str | None = None


class Said(NamedTuple):
    """More of what the model says.

    Attributes:
        messages: gives those of the turn that are complete; fewer where they are not known yet.
        is_cut: the turn ends with these events because it may not be longer.
    """

    events: Sequence[Event]
    logprobs: Sequence[TokenLogprob] | None
    messages: Callable[[], Sequence[Message]]
    is_cut: bool = False


Step: TypeAlias = Said | TurnEnded | CallEnded


class Work(Protocol):
    """What a run needs of either."""

    def steps(self) -> AsyncGenerator[Step, None]: ...
    def cancel(self) -> None: ...
    def outcome(self, *, is_cancelled: bool) -> Outcome: ...
    @property
    def usage(self) -> Usage: ...


class TurnWork:
    """One turn of the model; the client runs the tools."""

    def __init__(self, turn: RunningTurn) -> None:
        self._turn = turn
        self._reader = turn.readers[0]

    async def steps(self) -> AsyncGenerator[Step, None]:
        async with self._turn:
            async for news in self._turn:
                is_cut = news.is_last and self._reader.engine_finish is FinishReason.LENGTH
                yield Said(news.events, news.logprobs, self._messages, is_cut)

    def _messages(self) -> Sequence[Message]:
        return self._reader.messages

    def cancel(self) -> None:
        self._turn.cancel()

    @property
    def usage(self) -> Usage:
        return self._reader.usage

    def outcome(self, *, is_cancelled: bool) -> Outcome:
        match self._reader.engine_finish:
            case FinishReason.STOP:
                return Outcome("completed")
            case FinishReason.LENGTH:
                return Outcome("incomplete", reason="max_output_tokens")
            case FinishReason.CANCELLED if is_cancelled:
                return Outcome("cancelled")
            case FinishReason.CANCELLED:
                return Outcome("failed", "the server stopped before it was done")
            case FinishReason.DEADLINE:
                return Outcome("failed", "the response took too long")
            case _:
                logger.error("a request failed in the engine: %s", self._reader.error)
                return Outcome("failed", "the model failed on this request")


class AgentWork:
    """An agent's run. It goes on in a task of its own, so that it can be cancelled while a tool works."""

    def __init__(
        self, loop: AgentLoop, conversation: Conversation, *, tools: ToolSet, calls: Sequence[Message] = ()
    ) -> None:
        """Args:
        calls: those that waited for leave; they are made first.
        """
        self.tools = tools
        self._calls = calls
        self._loop = loop
        self._conversation = conversation
        self._news: asyncio.Queue[AgentEvent | BaseException | None] = asyncio.Queue(maxsize=256)
        self._first: AgentEvent | None = None
        self._end: RunEnded | None = None
        self._usage = Usage(0, 0, 0, 0)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, and wait until the engine has taken the first turn, or the first call is being made.

        Raises:
            ContextLengthError, EngineOverloadedError, EngineDeadError, InvalidInputError: it did not.
        """
        self._task = asyncio.create_task(self._pump(), name="ossia-agent")
        first = await self._news.get()
        if isinstance(first, BaseException):
            raise first
        self._first = first

    async def _pump(self) -> None:
        try:
            async with contextlib.aclosing(self._loop.run(self._conversation, calls=self._calls)) as events:
                async for event in events:
                    await self._news.put(event)
        except OssiaError as error:
            await self._news.put(error)
        except Exception as error:
            logger.exception("an agent's run broke off")
            await self._news.put(error)
        finally:
            await self.tools.close()
            with contextlib.suppress(asyncio.QueueFull):
                self._news.put_nowait(None)

    async def steps(self) -> AsyncGenerator[Step, None]:
        assert self._task is not None
        event: AgentEvent | BaseException | None = self._first
        try:
            while event is not None:
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, TurnDelta):
                    yield Said(event.events, event.logprobs, tuple, event.is_cut)
                elif isinstance(event, TurnEnded):
                    self._usage = Usage(*(a + b for a, b in zip(self._usage, event.turn.usage, strict=True)))
                    yield event
                elif isinstance(event, CallEnded):
                    yield event
                elif isinstance(event, RunEnded):
                    self._end = event
                event = await self._next()
        finally:
            self.cancel()

    async def _next(self) -> AgentEvent | BaseException | None:
        """The next news; None at the end, also where a cancelled pump could not say so."""
        assert self._task is not None
        if self._news.empty() and self._task.done():
            return None
        getter = asyncio.ensure_future(self._news.get())
        try:
            await asyncio.wait({getter, self._task}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
            return None if self._news.empty() else self._news.get_nowait()
        finally:
            getter.cancel()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @property
    def usage(self) -> Usage:
        return self._usage

    def outcome(self, *, is_cancelled: bool) -> Outcome:
        if is_cancelled:
            return Outcome("cancelled")
        if self._end is None:
            return Outcome("failed", "the server stopped before it was done")
        match self._end.reason:
            case StopReason.ANSWERED | StopReason.CALLS_PENDING:
                return Outcome("completed")
            case StopReason.MAX_TOKENS | StopReason.MAX_TURNS | StopReason.MAX_CALLS:
                return Outcome("incomplete", reason="max_output_tokens")
            case _:
                logger.error("an agent's run failed: %s", self._end.error)
                return Outcome("failed", "the model failed on this request")
