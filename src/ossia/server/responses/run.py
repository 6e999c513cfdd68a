"""One response from its first event to its last."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ossia.agent.events import CallEnded, TurnEnded
from ossia.core.errors import OssiaError
from ossia.harmony.events import MessageEnd
from ossia.harmony.message import Channel, Message, Role
from ossia.server.auth import Caller
from ossia.server.errors import error_info
from ossia.server.replay import Said as SaidBefore
from ossia.server.responses.builder import OutputBuilder, StreamEvent
from ossia.server.responses.envelope import TERMINAL, close_envelope
from ossia.server.responses.hosted import Approved
from ossia.server.responses.items import Item
from ossia.server.responses.schema import JsonObject
from ossia.server.responses.summary import summarise
from ossia.server.responses.work import SERVER_ERROR, Outcome
from ossia.server.store.rows import StoredResponse

if TYPE_CHECKING:
    from ossia.server.responses.service import ResponseService
    from ossia.server.responses.work import Step, Work


class Plan(NamedTuple):
    """What a run starts from.

    Attributes:
        envelope: the response as it begins.
        is_parallel: several calls may follow one another.
        is_stored: it is kept.
        is_open: a row for it lies in the database already.
    """

    caller: Caller
    envelope: JsonObject
    inputs: list[Item]
    builder: OutputBuilder
    is_parallel: bool
    is_stored: bool
    is_open: bool
    date: str
    summary: str | None


class Run:
    """See the module.

    Attributes:
        envelope: the response so far; as it ended once the events are over.
        log: its events, if they are to be stored; without the terminal one.
    """

    def __init__(
        self,
        service: ResponseService,
        plan: Plan,
        work: Work,
        *,
        lists: Sequence[JsonObject] = (),
        approved: Sequence[Approved] = (),
    ) -> None:
        """Args:
        lists: the `mcp_list_tools` items that stand before all others.
        approved: the calls that the work makes first.
        """
        self.plan = plan
        self.envelope: JsonObject = plan.envelope
        self._service = service
        self._context = service.context
        self._work = work
        self._lists = lists
        self._approved = approved
        self.log: list[StreamEvent] | None = None
        self._if_left = Outcome("cancelled")
        self._is_cancelled = False
        self._is_over = False

    @property
    def id(self) -> str:
        return str(self.envelope["id"])

    @property
    def snapshot(self) -> JsonObject:
        """The response with the items that are complete."""
        return (
            self.envelope if self._is_over else {**self.envelope, "output": [i.body for i in self.plan.builder.items]}
        )

    def cancel(self) -> None:
        """End it as cancelled."""
        self._is_cancelled = True
        self._work.cancel()

    def leave(self, *, message: str | None = None) -> None:
        """Give up, if it is not over: nobody iterates the events any more.

        Args:
            message: why it then counts as failed; None: as cancelled, for its client went away.
        """
        if message is not None:
            self._if_left = Outcome("failed", message)
        if not self._is_over:
            self._is_over = True
            self._work.cancel()
            events = self.plan.builder.end_waiting()
            if self.log is not None:
                self.log += events
            self._close(self._if_left)
            self._charge()
            self._service.spawn(self._service.keep(self, self._terminal()))

    async def events(self) -> AsyncGenerator[list[StreamEvent], None]:
        """The events, in order and bunches; the last is the one terminal event. Iterate once.

        What is to be stored is stored before the terminal event is given. Closing the generator early cancels the
        engine's work, and the response is stored as cancelled.
        """
        builder = self.plan.builder
        try:
            yield self._begin()
            try:
                outcome = None
                async with contextlib.aclosing(self._work.steps()) as steps:
                    async for step in steps:
                        yield await self._take(step)
                        if not self.plan.is_parallel and builder.num_calls:
                            outcome = Outcome("completed")
                            break
                outcome = outcome or self._work.outcome(is_cancelled=self._is_cancelled)
            except Exception as error:  # noqa: BLE001 logged there; the stream must end as it should all the same
                outcome = Outcome("failed", error_info(error).message)
            yield builder.end_waiting()
            yield [await self._end(outcome)]
        finally:
            self.leave()

    def _begin(self) -> list[StreamEvent]:
        builder = self.plan.builder
        events = [builder.event("response.created", response=self.envelope)]
        if self.envelope["status"] == "queued":
            events.append(builder.event("response.queued", response=self.envelope))
        self.envelope = {**self.envelope, "status": "in_progress"}
        events.append(builder.event("response.in_progress", response=self.envelope))
        for body in self._lists:
            events += builder.list_tools(body)
        for approved in self._approved:
            events += builder.open_approved(approved)
        return events

    async def _take(self, step: Step) -> list[StreamEvent]:
        builder = self.plan.builder
        if isinstance(step, TurnEnded):
            builder.settle(step.turn.messages)
            return []
        if isinstance(step, CallEnded):
            return builder.end_hosted(step.number, step.call, step.result)
        events: list[StreamEvent] = []
        for event in step.events:
            messages = step.messages() if isinstance(event, MessageEnd) else ()
            if not self.plan.is_parallel and builder.num_calls:
                break
            events += builder.push(event, messages=messages, logprobs=step.logprobs, is_cut=step.is_cut)
            if builder.wants_summary is not None:
                text = await summarise(
                    self._context, builder.wants_summary, detail=self.plan.summary, owner=self.plan.caller.key_id
                )
                events += builder.end_reasoning(text)
        return events

    async def _end(self, outcome: Outcome) -> StreamEvent:
        """Store the response, and give its terminal event."""
        self._close(outcome)
        self._remember()
        terminal = self._terminal()
        try:
            await self._service.keep(self, terminal)
        except OssiaError as error:
            self._close(Outcome("failed", error_info(error).message))
            terminal = self._terminal()
        self._is_over = True
        return terminal

    def _terminal(self) -> StreamEvent:
        # OpenAI has no event for a cancelled response; this one ends a stream without an exception in its clients.
        kind = TERMINAL.get(self.envelope["status"], "response.incomplete")
        return self.plan.builder.last_event(kind, response=self.envelope)

    def _close(self, outcome: Outcome) -> None:
        self.envelope = close_envelope(
            self.envelope,
            status=outcome.status,
            items=self.plan.builder.items,
            now=self._context.clock(),
            usage=self._work.usage,
            error=None if outcome.message is None else {"code": SERVER_ERROR, "message": outcome.message},
            reason=outcome.reason,
        )

    def _remember(self) -> None:
        """Keep what was said, for clients that send less of it back; and take the tokens from the key's account."""
        owner = self.plan.caller.key_id
        reasoning: list[Message] = []
        for item in self.plan.builder.items:
            if not item.messages:
                continue
            message, *results = item.messages
            if message.is_call and item.call_id is not None:
                self._context.replay.keep(owner, item.call_id, SaidBefore(tuple(reasoning), message))
                reasoning = []
            elif message.is_call or message.role is Role.TOOL:
                reasoning = []  # a tool of the server answered: what led to it lies behind
            elif message.channel == Channel.ANALYSIS:
                reasoning.append(message)
            if item.id != item.call_id:
                self._context.replay.keep(owner, item.id, SaidBefore((), message, tuple(results)))
        self._charge()

    def _charge(self) -> None:
        usage = self._work.usage
        self._context.limiter.charge(self.plan.caller, usage.num_prompt + usage.num_output)

    def stored(self) -> StoredResponse:
        """The response for the database."""
        envelope = self.envelope
        conversation: JsonObject | None = envelope["conversation"]
        return StoredResponse(
            id=self.id,
            owner=self.plan.caller.key_id,
            status=envelope["status"],
            is_background=envelope["background"],
            previous_id=envelope["previous_response_id"],
            conversation_id=conversation["id"] if conversation else None,
            body=envelope,
            state={"date": self.plan.date},
            created_at=envelope["created_at"],
        )


async def drain(run: Run) -> JsonObject:
    """The response as it ends, for those who want no events."""
    events = run.events()
    try:
        async for _ in events:
            pass
    finally:
        await events.aclose()
    return run.envelope
