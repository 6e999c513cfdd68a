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
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace

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
from ossia.core.errors import InvalidInputError, OssiaError
from ossia.engine.constraint import ToolChoice, ToolGrammar, TurnConstraint
from ossia.engine.declared import builtin_grammars, declared_grammars
from ossia.engine.request import FinishReason as EngineFinish
from ossia.engine.turn import Turn, Usage
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
        max_turns: turns of the model. In the last one it may call none of the loop's tools, so that there is an answer.
        max_calls: calls of the loop's tools in all; None for no limit.
        max_tokens: tokens that the model may write in all; None for no limit.
        max_seconds: from the start of the run; a turn is then cut off, and a call answered so. None for no limit.
        max_parallel: calls that run at once.
    """

    max_turns: int = 32
    max_calls: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    max_parallel: int = 8

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_calls", "max_tokens", "max_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} is {value}; allowed: at least 1", param=name)
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise InvalidInputError(f"max_seconds is {self.max_seconds}; allowed: above 0", param="max_seconds")


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run's books."""

    messages: list[Message]
    deadline: float | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0, 0, 0))
    num_turns: int = 0
    num_calls: int = 0
    pending: tuple[Message, ...] = ()

    def ended(self, reason: StopReason, *, error: str | None = None) -> RunEnded:
        return RunEnded(
            reason=reason,
            conversation=Conversation(tuple(self.messages)),
            usage=self.usage,
            num_turns=self.num_turns,
            num_calls=self.num_calls,
            pending=self.pending,
            error=error,
        )


class AgentLoop:
    """Runs conversations with tools over any engine.

    Args:
        turns: takes the model's turns.
        tools: those that the loop runs itself. The conversation must declare them (`opening.open_conversation` does).
        rules: what a turn may look like, with the grammars of all tools that the conversation declares: `grammars_of`
            the loop's own, and those of tools that the caller runs. A required call is required of the first turn only.
            None: the loop's own tools, as the model likes.
        sampling: for every turn; its constraint is the loop's affair.
        limits: what a run may spend.
        approve: asked before each call with the tool's full name and its arguments; False denies the call, and the
            model is told.
        held: names of the loop's own tools whose calls end the run as the caller's do, for a caller that must ask
            somebody who is away. It gives those that were allowed to the next `run`.
        owner: whose prefixes may be shared; see `Request.cache_salt`.
        is_constrained: hold the model to the rules while it writes. If not, they only name the tools.
    """

    def __init__(
        self,
        turns: Turns,
        *,
        tools: ToolSet,
        rules: TurnConstraint | None = None,
        sampling: Sampling | None = None,
        limits: Limits | None = None,
        approve: ApprovalHook | None = None,
        held: Collection[str] = (),
        owner: str = "",
        is_constrained: bool = True,
    ) -> None:
        self._turns, self._tools = turns, tools
        self._rules = TurnConstraint(tools=grammars_of(tools)) if rules is None else rules
        own = set(tools.recipients())
        theirs = (tool.recipient for tool in self._rules.tools if tool.recipient not in own)
        self._external = frozenset((*theirs, *held))
        self._recipients = tuple(own | self._external)
        self._sampling = sampling or Sampling()
        self._limits = limits or Limits()
        self._approve = approve
        self._owner = owner
        self._is_constrained = is_constrained

    async def run(
        self, conversation: Conversation, *, calls: Sequence[Message] = ()
    ) -> AsyncGenerator[AgentEvent, None]:
        """Go on with a conversation until the model answers. Closing the iterator cancels turn and tools.

        Args:
            calls: those of the conversation that were held and are made now, before the first turn.

        Raises:
            ContextLengthError, InvalidInputError, EngineOverloadedError, EngineDeadError: the first turn cannot be
                taken. What befalls a later one ends the run with ERROR.
        """
        seconds = self._limits.max_seconds
        run = _Run(
            messages=list(conversation.messages), deadline=None if seconds is None else time.monotonic() + seconds
        )
        async with contextlib.aclosing(self._call_tools(run, calls)) as events:
            async for event in events:
                yield event
        while True:
            turn = None
            try:
                async with contextlib.aclosing(self._take_turn(run)) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, TurnEnded):
                            turn = event.turn
            except OssiaError as error:
                if run.num_turns == 0:
                    raise
                yield run.ended(StopReason.ERROR, error=str(error))
                return
            assert turn is not None
            ended = self._judge(run, turn)
            if ended is not None:
                yield ended
                return
            run.pending = tuple(call for call in turn.calls if call.recipient in self._external)
            own = [call for call in turn.calls if call.recipient not in self._external]
            async with contextlib.aclosing(self._call_tools(run, own)) as events:
                async for event in events:
                    yield event
            if run.pending:
                yield run.ended(StopReason.CALLS_PENDING)
                return

    async def _take_turn(self, run: _Run) -> AsyncGenerator[AgentEvent, None]:
        prompt = await self._turns.encode(Conversation(tuple(run.messages)))
        sampling = replace(self._sampling, constraint=self._constraint(run))
        if self._limits.max_tokens is not None:
            left = self._limits.max_tokens - run.usage.num_output
            sampling = replace(sampling, max_tokens=min(left, sampling.max_tokens or left))
        request = self._turns.request(
            prompt,
            sampling=sampling,
            owner=self._owner,
            request_id=f"agent-{secrets.token_hex(8)}",
            deadline=run.deadline,
        )
        index = run.num_turns
        async with await self._turns.start(request, tools=self._recipients) as turn:
            yield TurnStarted(index=index, num_prompt_tokens=len(prompt))
            async for news in turn:
                usage = turn.readers[0].usage
                is_cut = news.is_last and turn.readers[0].engine_finish is EngineFinish.LENGTH
                yield TurnDelta(
                    index=index, events=tuple(news.events), usage=usage, logprobs=news.logprobs, is_cut=is_cut
                )
            result = turn.result()
        run.num_turns += 1
        run.usage = Usage(*(a + b for a, b in zip(run.usage, result.usage, strict=True)))
        run.messages += result.messages
        yield TurnEnded(index=index, turn=result)

    def _judge(self, run: _Run, turn: Turn) -> RunEnded | None:
        """How the run ends behind this turn; None if there are calls to make. A call that was cut off is none."""
        reason = _ENGINE_REASONS.get(turn.engine_finish) if turn.engine_finish is not None else None
        if reason is not None:
            return run.ended(reason, error=turn.error)
        if turn.finish_reason is not FinishReason.TOOL_CALL:
            is_cut = turn.finish_reason is FinishReason.LENGTH and turn.engine_finish is EngineFinish.LENGTH
            return run.ended(StopReason.MAX_TOKENS if is_cut else StopReason.ANSWERED)
        if all(call.recipient in self._external for call in turn.calls):
            return None
        limits = self._limits
        if limits.max_tokens is not None and run.usage.num_output >= limits.max_tokens:
            return run.ended(StopReason.MAX_TOKENS)
        if run.num_turns >= limits.max_turns:
            return run.ended(StopReason.MAX_TURNS)
        if limits.max_calls is not None and run.num_calls >= limits.max_calls:
            return run.ended(StopReason.MAX_CALLS)
        return None

    async def _call_tools(self, run: _Run, calls: Sequence[Message]) -> AsyncGenerator[AgentEvent, None]:
        """Run calls side by side; append their results in the order of the calls."""
        own = list(enumerate(calls, run.num_calls))
        run.num_calls += len(own)
        # All are told before any begins, so that whoever is asked for approval has seen what it is about.
        for number, call in own:
            yield CallStarted(number=number, call=call)
        news: asyncio.Queue[AgentEvent] = asyncio.Queue()
        room = asyncio.Semaphore(self._limits.max_parallel)
        tasks = [
            asyncio.create_task(self._call(call, number=number, run=run, room=room, news=news)) for number, call in own
        ]
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
        self, call: Message, *, number: int, run: _Run, room: asyncio.Semaphore, news: asyncio.Queue[AgentEvent]
    ) -> ToolResult:
        def report(progress: ToolProgress) -> None:
            news.put_nowait(CallProgressed(number=number, progress=progress))

        left = None if run.deadline is None else max(0.0, run.deadline - time.monotonic())
        try:
            async with asyncio.timeout(left), room:
                result = await self._answer(call, number=number, context=ToolContext(report=report))
        except TimeoutError:
            result = failure(call, "The time of this run is up.", kind=FailureKind.TIMEOUT)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            result = failure(call, f"{call.recipient} gave up.", kind=FailureKind.FAILED)  # it cancelled itself
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

    def _constraint(self, run: _Run) -> TurnConstraint | None:
        """What the next turn may write. The last turn that the limits allow may call none of the loop's tools."""
        rules, limits = self._rules, self._limits
        if not self._is_constrained or rules == TurnConstraint():
            return None
        is_last = run.num_turns + 1 >= limits.max_turns
        is_spent = limits.max_calls is not None and run.num_calls >= limits.max_calls
        if is_last or is_spent:
            left = tuple(tool.recipient for tool in rules.callable_tools if tool.recipient in self._external)
            choice = rules.tool_choice if left else ToolChoice.NONE
            rules = replace(rules, allowed_tools=left or rules.allowed_tools, tool_choice=choice)
        if run.num_turns > 0 and rules.tool_choice is ToolChoice.REQUIRED:
            rules = replace(rules, tool_choice=ToolChoice.AUTO)
        return rules


def grammars_of(tools: ToolSet) -> tuple[ToolGrammar, ...]:
    """How the tools of a set are called. A schema that cannot be enforced is enforced as far as it can be."""
    grammars: list[ToolGrammar] = []
    for tool in tools:
        grammars += (builtin_grammars if tool.is_builtin else declared_grammars)([tool.declaration()])
    return tuple(grammars)


def _arguments(call: Message) -> dict[str, object]:
    """A call's arguments for whoever approves it; text that is no JSON object stands under `input`."""
    try:
        value = json.loads(call.text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"input": call.text}


async def collect(events: AsyncIterator[AgentEvent]) -> tuple[list[AgentEvent], RunEnded]:
    """All events of a run, and its end."""
    seen = [event async for event in events]
    last = seen[-1]
    assert isinstance(last, RunEnded)
    return seen, last
