"""The parts of an answer in the words of Messages: content blocks, and the events of a stream that tell of them.

PartStart -> content_block_start      PartDelta -> content_block_delta      PartEnd -> content_block_stop
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json

from ossia.server.conversation.answer import Kind, Part, PartDelta, PartEnd, PartStart
from ossia.server.conversation.tools import TurnRules, bare_name

if TYPE_CHECKING:
    from ossia.harmony.message import Message

JsonObject = dict[str, Any]


def event(kind: str, **fields: Any) -> str:
    """One event as it goes over the wire."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, separators=(',', ':'))}\n\n"


class BlockWriter:
    """Writes the content of one answer.

    Args:
        rules: name the declared tools, whose arguments the engine holds to JSON.
        shows_thinking: thoughts are told at all.
        redacts: they are told as `redacted_thinking`, without their text.
        seals: makes what a client can carry, but not read, of a thought.

    Attributes:
        blocks: the content so far.
    """

    def __init__(
        self, *, rules: TurnRules, shows_thinking: bool, redacts: bool, seals: Callable[[Message], str]
    ) -> None:
        self.blocks: list[JsonObject] = []
        self._rules = rules
        self._shows_thinking = shows_thinking
        self._redacts = redacts
        self._seals = seals
        self._start_of: PartStart | None = None
        self._pieces: list[str] = []
        self._open: str | None = None  # what all deltas of the open block have in common
        self._delta = ""
        self._streams_call = False

    def push(self, parts: Sequence[Part]) -> list[str]:
        """The events for some parts."""
        events: list[str] = []
        for part in parts:
            if isinstance(part, PartDelta):
                self._add(part.text, events)
            elif isinstance(part, PartStart):
                self._start_of = part
                self._pieces = []
                if part.kind is Kind.CALL:
                    self._start_call(part, events)
            else:
                self._end(part, events)
        return events

    def finish(self) -> list[str]:
        """The events that end a block in the middle, as where a stop sequence cut it."""
        events: list[str] = []
        if self._open is not None:
            self._close("".join(self._pieces), events)
        return events

    def _add(self, text: str, events: list[str]) -> None:
        start = self._start_of
        assert start is not None, "a delta follows a start"
        if start.kind is Kind.THOUGHT and not self._shows_thinking:
            return
        self._pieces.append(text)
        if start.kind is Kind.CALL and not self._streams_call:
            return
        if self._open is None:
            if start.kind is Kind.TEXT:
                self._begin({"type": "text", "text": "", "citations": None}, "text_delta", "text", events)
            else:
                self._begin({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", "thinking", events)
        events.append(f"{self._open}{quote(text)}}}}}\n\n")

    def _begin(self, block: JsonObject, delta: str, field: str, events: list[str]) -> None:
        index = len(self.blocks)
        self.blocks.append(block)
        events.append(event("content_block_start", index=index, content_block=dict(block)))
        head = f'"type":"content_block_delta","index":{index},"delta":{{"type":"{delta}","{field}":'
        self._open = f"event: content_block_delta\ndata: {{{head}"

    def _start_call(self, start: PartStart, events: list[str]) -> None:
        name = bare_name(start.recipient)
        # What is no JSON breaks clients in mid-stream, so the arguments of other tools are told when they are known.
        self._streams_call = self._rules.find(name) is not None
        block: JsonObject = {"type": "tool_use", "id": start.call_id, "name": name, "input": {}}
        self._begin(block, "input_json_delta", "partial_json", events)

    def _end(self, end: PartEnd, events: list[str]) -> None:
        start = self._start_of
        assert start is not None, "an end follows a start"
        if start.kind is Kind.THOUGHT:
            self._end_thought(end, events)
        elif start.kind is Kind.CALL:
            self._end_call(end, events)
        elif self._open is not None:
            self._close("".join(self._pieces), events)
        self._start_of = None

    def _end_thought(self, end: PartEnd, events: list[str]) -> None:
        if not self._shows_thinking:
            return
        sealed = self._seals(end.message)
        if self._redacts:
            self._begin({"type": "redacted_thinking", "data": sealed}, "", "", events)
            self._close("", events)
            return
        if self._open is None:
            self._begin({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", "thinking", events)
        signature = {"type": "signature_delta", "signature": sealed}
        events.append(event("content_block_delta", index=len(self.blocks) - 1, delta=signature))
        self.blocks[-1]["signature"] = sealed
        self._close("".join(self._pieces), events)

    def _end_call(self, end: PartEnd, events: list[str]) -> None:
        text = "".join(self._pieces)
        value = read_input(text, is_whole=end.is_whole)
        if not self._streams_call and value:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            events.append(f"{self._open}{quote(text)}}}}}\n\n")
        self.blocks[-1]["input"] = value
        self._close("", events)

    def _close(self, text: str, events: list[str]) -> None:
        block = self.blocks[-1]
        for field in ("text", "thinking"):
            if field in block:
                block[field] = text
        events.append(event("content_block_stop", index=len(self.blocks) - 1))
        self._open = None
        self._pieces = []


def read_input(text: str, *, is_whole: bool) -> JsonObject:
    """A call's arguments as an object: of cut ones, what is there of them; of what is none, the text under `raw`."""
    try:
        value = from_json(text or "{}", allow_partial=not is_whole)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return cast("JsonObject", value)
    return {"raw": text} if is_whole else {}
