"""The loop: the model's turn, its calls, their results, and the model's turn again, until it answers.

The loop appends messages and changes none. What the model sampled goes back in as sampled; its reasoning stays while it
calls tools, and the renderer leaves it out once a final answer stands behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ossia.agent.events import (
    AgentEvent,
    CallEnded,
    CallProgressed,
    CallStarted,
    RunEnded,
    StopReason,
    TurnDelta,
    TurnEnded,
    TurnStarted,
)
from ossia.agent.turns import Sampling, Turns
from ossia.core.errors import ContextLengthError, InvalidInputError
from ossia.engine.constraint import OutputGrammar, ToolChoice, ToolGrammar, TurnConstraint
from ossia.engine.request import FinishReason as EngineFinish
from ossia.engine.turn import Turn, Usage
from ossia.harmony.content import FUNCTIONS, ToolNamespace
from ossia.harmony.events import FinishReason
from ossia.harmony.message import Conversation, Message
from ossia.tools.base import ApprovalHook, FailureKind, ToolContext, ToolProgress, ToolResult, failure
from ossia.tools.registry import ToolSet

logger = logging.getLogger(__name__)

_ENGINE_REASONS = {
    EngineFinish.CANCELLED: StopReason.CANCELLED,
    EngineFinish.DEADLINE: StopReason.DEADLINE,
    EngineFinish.ERROR: StopReason.ERROR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may spend.

    Attributes:
        max_turns: turns of the model. In the last one no tool may be called, so that there is an answer.
        max_calls: calls of tools in all; None for no limit.
        max_tokens: tokens that the model may write in all; None for no limit.
        max_parallel: calls that run at once.
    """

    max_turns: int = 32
    max_calls: int | None = None
    max_tokens: int | None = None
    max_parallel: int = 8

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_calls", "max_tokens", "max_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} is {value}; allowed: at least 1", param=name)


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run's books."""

    messages: list[Message]
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0, 0))
    num_turns: int = 0
    num_calls: int = 0
    pending: list[Message] = field(default_factory=list[Message])

    def ended(self, reason: StopReason, *, error: str | None = None) -> RunEnded:
        return RunEnded(
            reason=reason,
            conversation=Conversation(tuple(self.messages)),
            usage=self.usage,
            num_turns=self.num_turns,
            num_calls=self.num_calls,
            pending=tuple(self.pending),
            error=error,
        )


class AgentLoop:
    """Runs conversations with tools over any engine.

    Args:
        turns: takes the model's turns.
        tools: those that the loop runs itself. The conversation must declare them (`opening` of `Agent` does).
        external: recipients of tools that the conversation declares and the caller runs.
        sampling: for every turn; its constraint is the loop's affair.
        limits: what a run may spend.
        approve: asked before each call with the tool's full name and its arguments; False denies the call, and the
            model is told.
        response_format: what the final answer must look like.
        owner: whose prefixes may be shared; see `Request.cache_salt`.
        is_constrained: hold headers and arguments to the tools' grammars while the model writes.
    """

    def __init__(
        self,
        turns: Turns,
        *,
        tools: ToolSet,
        external: Sequence[ToolGrammar] = (),
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        approve: ApprovalHook | None = None,
        response_format: OutputGrammar | None = None,
        owner: str = "",
        is_constrained: bool = True,
    ) -> None:
        self._turns, self._tools = turns, tools
        self._external = tuple(external)
        self._sampling = sampling or Sampling()
        self._limits = limits or Limits()
        self._approve = approve
        self._response_format = response_format
        self._owner = owner
        self._is_constrained = is_constrained

    async def run(self, conversation: Conversation) -> AsyncGenerator[AgentEvent, None]:
        """Go on with a conversation until the model answers. Closing the iterator cancels turn and tools.

        Raises:
            ContextLengthError: the first prompt does not fit; a later one ends the run with ERROR.
            EngineOverloadedError, EngineDeadError: the engine takes nothing.
        """
        run = _Run(messages=list(conversation.messages))
        while True:
            turn = None
            try:
                async with contextlib.aclosing(self._take_turn(run)) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, TurnEnded):
                            turn = event.turn
            except ContextLengthError as error:
                if run.num_turns == 0:
                    raise
                yield run.ended(StopReason.ERROR, error=str(error))
                return
            assert turn is not None
            ended = self._judge(run, turn)
            if ended is not None:
                yield ended
                return
            async with contextlib.aclosing(self._call_tools(run, turn.calls)) as events:
                async for event in events:
                    yield event
            if run.pending:
                yield run.ended(StopReason.CALLS_PENDING)
                return

    async def _take_turn(self, run: _Run) -> AsyncGenerator[AgentEvent, None]:
        prompt = await self._turns.encode(Conversation(tuple(run.messages)))
        sampling = replace(self._sampling, constraint=self._constraint(run))
        if self._limits.max_tokens is not None:
            left = max(1, self._limits.max_tokens - run.usage.num_output)
            sampling = replace(sampling, max_tokens=min(left, sampling.max_tokens or left))
        request = self._turns.request(
            prompt, sampling=sampling, owner=self._owner, request_id=f"agent-{secrets.token_hex(8)}"
        )
        index = run.num_turns
        async with await self._turns.start(request, tools=self._recipients()) as turn:
            yield TurnStarted(index=index, num_prompt_tokens=len(prompt))
            async for news in turn:
                if news.events:
                    yield TurnDelta(index=index, events=tuple(news.events), logprobs=news.logprobs)
            result = turn.result()
        run.num_turns += 1
        run.usage = Usage(*(a + b for a, b in zip(run.usage, result.usage, strict=True)))
        run.messages += result.messages
        yield TurnEnded(index=index, turn=result)

    def _judge(self, run: _Run, turn: Turn) -> RunEnded | None:
        """How the run ends behind this turn; None if there are calls to make."""
        reason = _ENGINE_REASONS.get(turn.engine_finish) if turn.engine_finish is not None else None
        if reason is not None:
            return run.ended(reason, error=turn.error)
        if not turn.calls:
            is_cut = turn.finish_reason is FinishReason.LENGTH
            return run.ended(StopReason.MAX_TOKENS if is_cut else StopReason.ANSWERED)
        limits = self._limits
        if limits.max_tokens is not None and run.usage.num_output >= limits.max_tokens:
            return run.ended(StopReason.MAX_TOKENS)
        if run.num_turns >= limits.max_turns:
            return run.ended(StopReason.MAX_TURNS)
        if limits.max_calls is not None and run.num_calls >= limits.max_calls:
            return run.ended(StopReason.MAX_CALLS)
        return None

    async def _call_tools(self, run: _Run, calls: Sequence[Message]) -> AsyncGenerator[AgentEvent, None]:
        """Run a turn's calls side by side; append their results in the order of the calls."""
        news: asyncio.Queue[AgentEvent] = asyncio.Queue()
        room = asyncio.Semaphore(self._limits.max_parallel)
        external = {grammar.recipient for grammar in self._external}
        tasks: list[asyncio.Task[ToolResult]] = []
        for call in calls:
            if call.recipient in external:
                run.pending.append(call)
                continue
            number, run.num_calls = run.num_calls, run.num_calls + 1
            tasks.append(asyncio.create_task(self._call(call, number=number, room=room, news=news)))
        try:
            num_open = len(tasks)
            while num_open:
                event = await news.get()
                num_open -= isinstance(event, CallEnded)
                yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            run.messages += task.result().messages

    async def _call(
        self, call: Message, *, number: int, room: asyncio.Semaphore, news: asyncio.Queue[AgentEvent]
    ) -> ToolResult:
        def report(progress: ToolProgress) -> None:
            news.put_nowait(CallProgressed(number=number, progress=progress))

        async with room:
            news.put_nowait(CallStarted(number=number, call=call))
            result = await self._answer(call, number=number, context=ToolContext(report=report))
        news.put_nowait(CallEnded(number=number, call=call, result=result))
        return result

    async def _answer(self, call: Message, *, number: int, context: ToolContext) -> ToolResult:
        limit = self._limits.max_calls
        if limit is not None and number >= limit:
            return failure(call, f"No more calls: this run may make {limit}.", kind=FailureKind.DENIED)
        if self._tools.find(call.recipient) is not None and not await self._is_approved(call):
            return failure(call, "The user did not allow this call.", kind=FailureKind.DENIED)
        return await self._tools.call(call, context=context)

    async def _is_approved(self, call: Message) -> bool:
        """Ask; whoever cannot be asked has not allowed it."""
        if self._approve is None:
            return True
        try:
            return await self._approve(call.recipient or "", _arguments(call))
        except Exception:
            logger.exception("asking for approval of %s failed", call.recipient)
            return False

    def _recipients(self) -> tuple[str, ...]:
        return (*self._tools.recipients(), *(grammar.recipient for grammar in self._external))

    def _constraint(self, run: _Run) -> TurnConstraint | None:
        """What the next turn may write. The last turn that the limits allow may not call."""
        if not self._is_constrained:
            return None
        grammars = (*grammars_of(self._tools), *self._external)
        if not grammars and self._response_format is None:
            return None
        limits = self._limits
        is_last = run.num_turns + 1 >= limits.max_turns and run.num_turns > 0
        is_spent = limits.max_calls is not None and run.num_calls >= limits.max_calls
        chosen: dict[str, Any] = {}
        if self._response_format is not None:
            chosen["response_format"] = self._response_format
        return TurnConstraint(
            tools=grammars, tool_choice=ToolChoice.NONE if is_last or is_spent else ToolChoice.AUTO, **chosen
        )


def grammars_of(tools: ToolSet) -> tuple[ToolGrammar, ...]:
    """How the tools of a set are called. A schema that cannot be enforced is enforced as far as it can be."""
    grammars: list[ToolGrammar] = []
    for tool in tools:
        space = tool.declaration()
        if tool.is_builtin:
            grammars += _builtin(space)
        else:
            grammars += [_declared(space.name, function.name, function.parameters) for function in space.tools]
    return tuple(grammars)


def _builtin(space: ToolNamespace) -> list[ToolGrammar]:
    if not space.tools:
        return [ToolGrammar.builtin(space.name)]
    # A function without arguments takes an empty object, as the others take objects.
    return [
        ToolGrammar.builtin(
            f"{space.name}.{tool.name}", parameters={"type": "object"} if tool.parameters is None else tool.parameters
        )
        for tool in space.tools
    ]


def _declared(space: str, name: str, parameters: Any) -> ToolGrammar:
    function = ToolGrammar.function(name, parameters=parameters, is_strict=False)
    return function if space == FUNCTIONS else replace(function, recipient=f"{space}.{name}")


def _arguments(call: Message) -> dict[str, object]:
    """A call's arguments for whoever approves it; text that is no JSON object stands under `input`."""
    try:
        value = json.loads(call.text)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"input": call.text}


async def collect(events: AsyncIterator[AgentEvent]) -> tuple[list[AgentEvent], RunEnded]:
    """All events of a run, and its end."""
    seen = [event async for event in events]
    last = seen[-1]
    assert isinstance(last, RunEnded)
    return seen, last
