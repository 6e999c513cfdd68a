"""Harmony events to the items and events of a response. One builder makes both, so that a streamed response and one
given at once are the same object.

    MessageStart -> response.output_item.added (+ content_part.added)
    ContentDelta -> response.output_text.delta, reasoning_text.delta, function_call_arguments.delta, ...
    MessageEnd   -> the matching done events, response.output_item.done
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ossia.harmony.content import FUNCTIONS
from ossia.harmony.events import ContentDelta, MessageEnd, MessageStart
from ossia.harmony.message import Channel, Message
from ossia.server.conversation.tools import CustomSpec, TurnRules, bare_name
from ossia.server.makers import MCP
from ossia.server.responses.hosted import (
    APPROVAL_REQUEST,
    Approved,
    Shown,
    close_call,
    open_call,
    open_request,
    written,
)
from ossia.server.responses.hosted_calls import HostedCalls
from ossia.server.responses.items import Item
from ossia.server.responses.schema import JsonObject
from ossia.server.settings import ReasoningPolicy
from ossia.tools.browser.citations import annotate

if TYPE_CHECKING:
    from ossia.engine.output_event import TokenLogprob
    from ossia.harmony.events import Event
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.tools.base import ToolResult


class StreamEvent(NamedTuple):
    """An event of a response's stream. `data` is its JSON, on one line."""

    sequence: int
    type: str
    data: str


class Choices(NamedTuple):
    """How a response's items are shown.

    Attributes:
        has_logprobs: output texts come with the logprobs of their tokens.
        seals: makes `encrypted_content` of a reasoning message; None if it was not asked for.
        summarises: reasoning comes with a summary; see `OutputBuilder.wants_summary`.
        hosted: namespaces of the server's own tools, and their kinds. With any, a call of something that does not
            exist is the server's to answer.
        guarded: names of the server's own tools whose calls need the client's leave.
        include: what else is shown of their calls.
    """

    rules: TurnRules
    policy: ReasoningPolicy
    has_logprobs: bool = False
    seals: Callable[[Message], str] | None = None
    summarises: bool = False
    hosted: Mapping[str, str] = MappingProxyType({})
    guarded: Collection[str] = ()
    include: Sequence[str] = ()


class _Open:
    """The item in the making."""

    __slots__ = ("body", "delta", "final", "header", "hosted", "kind", "logprobs", "pieces", "start")

    def __init__(self, kind: str, body: JsonObject, header: MessageStart) -> None:
        self.kind = kind
        self.body = body
        self.header = header
        self.hosted: Shown | None = None
        self.pieces: list[str] = []
        self.logprobs: list[JsonObject] = []
        self.start = ""  # what all deltas have in common
        self.delta: str | None = None  # the type of the deltas; None: what is said is not shown
        self.final = ""


def _open_hosted(shown: Shown, header: MessageStart) -> _Open:
    item = _Open(shown.body["type"], shown.body, header)
    item.hosted, item.delta, item.final = shown, shown.delta, shown.final
    return item


class OutputBuilder:
    """Builds the output of one response.

    Attributes:
        items: finished items, in order.
        wants_summary: the reasoning whose summary is waited for: give it to `end_reasoning` before more events.
    """

    def __init__(
        self, choices: Choices, *, tokenizer: Tokenizer, new_id: Callable[[str], str], first_sequence: int = 0
    ) -> None:
        self.items: list[Item] = []
        self.wants_summary: str | None = None
        self._choices = choices
        self._tokenizer = tokenizer
        self._new_id = new_id
        self._sequence = first_sequence
        self._open: _Open | None = None
        self._ending: Message | None = None
        self._turn_start = 0  # items before those of the turn in progress
        self._hosted = HostedCalls(self.items)

    @property
    def num_calls(self) -> int:
        """Calls that are complete."""
        return sum(item.body["type"] in ("function_call", "custom_tool_call") for item in self.items)

    def event(self, kind: str, **fields: Any) -> StreamEvent:
        """An event with the next sequence number."""
        self._sequence += 1
        return _event(self._sequence - 1, kind, **fields)

    def last_event(self, kind: str, **fields: Any) -> StreamEvent:
        """The event that ends the stream; it may be made again."""
        return _event(self._sequence, kind, **fields)

    def push(
        self,
        event: Event,
        *,
        messages: Sequence[Message],
        logprobs: Sequence[TokenLogprob] | None = None,
        is_cut: bool = False,
    ) -> list[StreamEvent]:
        """Takes one event of the turn.

        Args:
            messages: those of the turn that are complete; where the one that ends with this event is not among
                them, it is made of what was said, until `settle`.
            logprobs: of the tokens behind this event.
            is_cut: the turn ends here because it may not be longer.
        """
        if isinstance(event, ContentDelta):
            return [] if self._open is None else self._delta(self._open, event.text, logprobs)
        if isinstance(event, MessageStart):
            return self._start(event)
        if isinstance(event, MessageEnd) and self._open is not None:
            place = len(self.items) - self._turn_start
            message = messages[place] if place < len(messages) else _message_of(self._open)
            return self._end(self._open, message, is_incomplete=is_cut and event.stop is None)
        return []

    # ---- beginnings ----

    def _start(self, start: MessageStart) -> list[StreamEvent]:
        if start.recipient is not None and start.recipient != "all":
            self._open = self._start_call(start, start.recipient)
        elif start.channel == Channel.ANALYSIS:
            body: JsonObject = {"id": self._new_id("rs"), "type": "reasoning", "summary": [], "status": "in_progress"}
            self._open = _Open("reasoning", body, start)
            if self._choices.policy is ReasoningPolicy.RAW:
                body["content"] = []
                self._open.delta, self._open.final = "response.reasoning_text.delta", "response.reasoning_text.done"
        else:
            phase = "commentary" if start.channel == Channel.COMMENTARY else "final_answer"
            body = {"id": self._new_id("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
            self._open = _Open("message", {**body, "content": [], "phase": phase}, start)
            self._open.delta, self._open.final = "response.output_text.delta", "response.output_text.done"
        # A request for leave is told as a whole.
        return [] if self._open.kind == APPROVAL_REQUEST else self._announce(self._open)

    def _announce(self, item: _Open) -> list[StreamEvent]:
        index = len(self.items)
        events = [self.event("response.output_item.added", output_index=index, item=item.body)]
        place: JsonObject = {"item_id": item.body["id"], "output_index": index}
        if item.kind in ("message", "reasoning") and item.delta is not None:
            place["content_index"] = 0
            events.append(self.event("response.content_part.added", **place, part=self._part(item, "")))
        if item.hosted is not None:
            events.append(self.event(f"{item.hosted.prefix}.in_progress", **place))
        item.start = json.dumps({"type": item.delta, **place}, separators=(",", ":"))[:-1]
        return events

    def _start_call(self, start: MessageStart, recipient: str) -> _Open:
        kind = self._kind_of(recipient)
        if recipient in self._choices.guarded:
            return _Open(APPROVAL_REQUEST, open_request(recipient, new_id=self._new_id), start)
        if kind is not None:
            return _open_hosted(open_call(kind, recipient, new_id=self._new_id), start)
        name = bare_name(recipient)
        call_id = self._new_id("call")
        spec = self._choices.rules.find(name)
        if isinstance(spec, CustomSpec):
            body: JsonObject = {"id": self._new_id("ctc"), "type": "custom_tool_call", "call_id": call_id}
            item = _Open("custom_tool_call", {**body, "name": name, "input": ""}, start)
            item.delta = "response.custom_tool_call_input.delta"
            item.final = "response.custom_tool_call_input.done"
        else:
            body = {"id": self._new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": call_id}
            if spec is not None and spec.namespace != FUNCTIONS:
                body["namespace"], name = spec.namespace, spec.name
            item = _Open("function_call", {**body, "name": name, "arguments": ""}, start)
            item.delta = "response.function_call_arguments.delta"
            item.final = "response.function_call_arguments.done"
        return item

    def _kind_of(self, recipient: str) -> str | None:
        """Which kind of the server's own tools a call goes to; None for a client's."""
        hosted = self._choices.hosted
        if not hosted or recipient in self._choices.rules.recipients:
            return None
        return hosted.get(recipient.partition(".")[0], MCP)

    # ---- what is said ----

    def _delta(self, item: _Open, text: str, logprobs: Sequence[TokenLogprob] | None) -> list[StreamEvent]:
        item.pieces.append(text)
        if item.delta is None:
            return []
        rest = ""
        if item.kind == "message":
            new = [self._logprob(entry) for entry in logprobs or ()] if self._choices.has_logprobs else []
            item.logprobs += new
            rest = f',"logprobs":{json.dumps([_short(entry) for entry in new])}'
        number = self._sequence
        self._sequence += 1
        # By hand: this is done for every token.
        data = f'{item.start},"sequence_number":{number},"delta":{json.dumps(text)}{rest}}}'
        return [StreamEvent(number, item.delta, data)]

    def _logprob(self, entry: TokenLogprob) -> JsonObject:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> JsonObject:
        data = self._tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": max(logprob, -9999.0)}

    # ---- endings ----

    def _end(self, item: _Open, message: Message, *, is_incomplete: bool) -> list[StreamEvent]:
        status = "incomplete" if is_incomplete else "completed"
        self._ending = message
        if item.kind == APPROVAL_REQUEST:
            return self._end_request(item, message, is_incomplete=is_incomplete)
        if item.hosted is not None:
            return self._end_hosted_text(item, item.hosted, message)
        if item.kind == "reasoning":
            item.body["status"] = status
            if self._choices.summarises and message.text.strip() and not is_incomplete:
                self.wants_summary = message.text
                return []
            return self._end_item(item, message, self._end_text(item))
        events = self._end_text(item)
        if item.kind != "custom_tool_call":
            item.body["status"] = status
        return self._end_item(item, message, events)

    def end_reasoning(self, summary: str) -> list[StreamEvent]:
        """Ends the reasoning whose summary was waited for; an empty summary is left out."""
        item, message = self._open, self._ending
        assert item is not None
        assert message is not None
        self.wants_summary = None
        events = self._end_text(item)
        if summary:
            place: JsonObject = {"item_id": item.body["id"], "output_index": len(self.items), "summary_index": 0}
            empty = {"type": "summary_text", "text": ""}
            part = {"type": "summary_text", "text": summary}
            events += [
                self.event("response.reasoning_summary_part.added", **place, part=empty),
                self.event("response.reasoning_summary_text.delta", **place, delta=summary),
                self.event("response.reasoning_summary_text.done", **place, text=summary),
                self.event("response.reasoning_summary_part.done", **place, part=part),
            ]
            item.body["summary"] = [part]
        return self._end_item(item, message, events)

    def _end_text(self, item: _Open) -> list[StreamEvent]:
        if item.delta is None:
            return []
        text = "".join(item.pieces)
        place: JsonObject = {"item_id": item.body["id"], "output_index": len(self.items)}
        if item.kind == "function_call":
            item.body["arguments"] = text
            return [self.event(item.final, **place, arguments=text, name=item.body["name"])]
        if item.kind == "custom_tool_call":
            item.body["input"] = text
            return [self.event(item.final, **place, input=text)]
        part = self._part(item, text)
        item.body["content"] = [part]
        place["content_index"] = 0
        events: list[StreamEvent] = []
        for i, annotation in enumerate(part.get("annotations", ())):
            kind = "response.output_text.annotation.added"
            events.append(self.event(kind, **place, annotation_index=i, annotation=annotation))
        extra = {"logprobs": [_short(entry) for entry in item.logprobs]} if item.kind == "message" else {}
        return [
            *events,
            self.event(item.final, **place, text=text, **extra),
            self.event("response.content_part.done", **place, part=part),
        ]

    def _end_item(self, item: _Open, message: Message, events: list[StreamEvent]) -> list[StreamEvent]:
        if item.kind == "reasoning" and self._choices.seals is not None:
            item.body["encrypted_content"] = self._choices.seals(message)
        events.append(self.event("response.output_item.done", output_index=len(self.items), item=item.body))
        self.items.append(Item(item.body, (message,)))
        self._open = None
        return events

    def _part(self, item: _Open, text: str) -> JsonObject:
        if item.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        pages = self._hosted.pages
        found = annotate(text, pages).annotations if pages else ()
        annotations = [annotation.to_dict() for annotation in found]
        return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": item.logprobs}

    # ---- tools of the server ----

    def list_tools(self, body: JsonObject) -> list[StreamEvent]:
        """Tell of the tools that an MCP server has."""
        place: JsonObject = {"output_index": len(self.items)}
        begun: JsonObject = {**body, "tools": []}
        self.items.append(Item(body, ()))
        self._turn_start = len(self.items)
        return [
            self.event("response.output_item.added", **place, item=begun),
            self.event("response.mcp_list_tools.in_progress", **place, item_id=body["id"]),
            self.event("response.mcp_list_tools.completed", **place, item_id=body["id"]),
            self.event("response.output_item.done", **place, item=body),
        ]

    def open_approved(self, approved: Approved) -> list[StreamEvent]:
        """Begin a call that waited for leave. Its message stands in the conversation already."""
        call = approved.call
        shown = open_call(MCP, call.recipient or "", new_id=self._new_id)
        shown.body["approval_request_id"] = approved.request_id
        item = _open_hosted(shown, MessageStart(call.role, Channel.COMMENTARY, call.recipient, None))
        events = self._announce(item) + self._delta(item, call.text, None)
        events += self._end_hosted_text(item, shown, call)
        self.items[-1] = Item(item.body, ())
        self._turn_start = len(self.items)
        return events

    def _end_request(self, item: _Open, message: Message, *, is_incomplete: bool) -> list[StreamEvent]:
        """A call that needs leave is written. One that was cut off is no request."""
        if is_incomplete:
            item.body = open_call(MCP, item.header.recipient or "", new_id=self._new_id).body | {"status": "incomplete"}
        item.body["arguments"] = "".join(item.pieces)
        added = self.event("response.output_item.added", output_index=len(self.items), item=item.body)
        return self._end_item(item, message, [added])

    def settle(self, messages: Sequence[Message]) -> None:
        """A turn is over: its items get the messages as sampled."""
        for place, message in enumerate(messages, start=self._turn_start):
            if place < len(self.items):
                self.items[place] = self.items[place]._replace(messages=(message,))
        self._turn_start = len(self.items)

    def _end_hosted_text(self, item: _Open, shown: Shown, message: Message) -> list[StreamEvent]:
        """The call is written; now the tool works. Its item keeps its place."""
        place = {"item_id": item.body["id"], "output_index": len(self.items)}
        fields = written(item.body, "".join(item.pieces), item.header.recipient or "")
        events = [self.event(shown.final, **place, **fields)] if shown.delta is not None else []
        if shown.working is not None:
            events.append(self.event(shown.working, **place))
        self._hosted.begin(Item(item.body, (message,)))
        self._open = None
        return events

    def end_hosted(self, number: int, call: Message, result: ToolResult) -> list[StreamEvent]:
        """A tool has answered.

        Args:
            number: which call of the server's own tools it was, from 0.
        """
        place = self._hosted.place(number)
        body = self.items[place].body
        ending = close_call(body, result, call=call, include=self._choices.include)
        self._hosted.end(number, result)
        prefix = {"web_search_call": "response.web_search_call", "mcp_call": "response.mcp_call"}
        kind = prefix.get(body["type"], "response.code_interpreter_call")
        return [
            self.event(f"{kind}.{ending}", item_id=body["id"], output_index=place),
            self.event("response.output_item.done", output_index=place, item=body),
        ]

    def end_waiting(self) -> list[StreamEvent]:
        """End the calls whose results will not come."""
        events: list[StreamEvent] = []
        for place in self._hosted.give_up():
            body = self.items[place].body
            body["status"] = "incomplete"
            events.append(self.event("response.output_item.done", output_index=place, item=body))
        return events


def _message_of(item: _Open) -> Message:
    """What was said, without its ids."""
    header = item.header
    return Message(
        header.role,
        content="".join(item.pieces),
        channel=header.channel,
        recipient=header.recipient,
        content_type=header.content_type,
    )


def _event(sequence: int, kind: str, **fields: Any) -> StreamEvent:
    data = json.dumps({"type": kind, "sequence_number": sequence, **fields}, separators=(",", ":"))
    return StreamEvent(sequence, kind, data)


def _short(entry: JsonObject) -> JsonObject:
    """A logprob as the events of a text have it: without bytes."""
    top = [{"token": other["token"], "logprob": other["logprob"]} for other in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}
