"""Sampled ids to messages: a state machine that takes any ids, one at a time, and never raises.

    BETWEEN --<|start|>--> HEADER --<|message|>--> BODY --stop token--> BETWEEN or DONE

A completion (role "assistant") begins in HEADER, behind the `<|start|>assistant` that the prompt ended with, and is
DONE at `<|return|>`, `<|endoftext|>`, or where the model goes on in another's role. A conversation (role None) begins
in BETWEEN and is read to its end, whoever speaks. `header.py` says what a header means; `RepairKind` lists all that
can be wrong.
"""

from __future__ import annotations

import codecs
import json
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal, NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.harmony.events import (
    ContentDelta,
    Event,
    FinishReason,
    MessageEnd,
    MessageStart,
    Repair,
    RepairKind,
    repair,
)
from ossia.harmony.header import Header, Opening, interpret_header, read_role
from ossia.harmony.message import Channel, Message, Role
from ossia.harmony.token_reader import HEADER_MARKS, STOPS, token_reader
from ossia.harmony.tool_match import ToolNames
from ossia.harmony.vocab import ControlToken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ossia.harmony.tokenizer import Tokenizer

__all__ = [
    "ContentDelta",
    "Event",
    "FinishReason",
    "HarmonyParser",
    "MessageEnd",
    "MessageStart",
    "ParseResult",
    "Repair",
    "RepairKind",
    "parse",
]

_LAST_STOPS = frozenset({ControlToken.RETURN, ControlToken.ENDOFTEXT})


class _State(Enum):
    BETWEEN = auto()
    HEADER = auto()
    BODY = auto()
    DONE = auto()


class ParseResult(NamedTuple):
    """All that a parser made of some ids."""

    messages: tuple[Message, ...]
    repairs: tuple[Repair, ...]
    finish: FinishReason


def parse(
    ids: Sequence[int],
    *,
    tokenizer: Tokenizer,
    role: Literal["assistant"] | None = "assistant",
    tools: Sequence[str] = (),
) -> ParseResult:
    """Parses ids at once: the same messages, repairs and finish as a `HarmonyParser` gives, several times faster."""
    parser = HarmonyParser(tokenizer, role=role, tools=tools)
    parser.feed(ids)
    parser.finish()
    finish = parser.finish_reason
    assert finish is not None
    return ParseResult(tuple(parser.messages), tuple(parser.repairs), finish)


class HarmonyParser:
    """Parses ids as they are sampled. Total: no ids make it raise.

    Attributes:
        messages: those complete so far. An assistant's message keeps as `token_ids` what was sampled, from
            `<|start|>` if the model wrote it, else from behind the prompt's `<|start|>assistant`, up to and including
            its stop token if it has one: what the renderer puts back in. It is None where putting the ids back would
            not give one whole message again (no `<|message|>`, text skipped in front, ids outside the vocabulary).
        repairs: what was read though malformed, so far.
        finish_reason: None before `finish()`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        role: Literal["assistant"] | None = "assistant",
        tools: Sequence[str] = (),
    ) -> None:
        """Starts a parser.

        Args:
            tokenizer: whose ids these are.
            role: "assistant" for a completion behind `<|start|>assistant`; None for a whole, trusted conversation
                that begins with `<|start|>`.
            tools: the declared tools, as recipients (`functions.f`) or functions' bare names.

        Raises:
            InvalidInputError: another role.
        """
        if role not in ("assistant", None):
            raise InvalidInputError(
                f"role is {role!r}; use 'assistant' for a completion or None for a whole conversation", param="role"
            )
        self.messages: list[Message] = []
        self.repairs: list[Repair] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._reader = token_reader(tokenizer)
        self._texts = self._reader.texts
        self._tools = ToolNames(tools)
        self._is_conversation = role is None
        self._state = _State.HEADER if role else _State.BETWEEN
        self._opening = Opening.IMPLIED
        self._ended = False  # the model itself ended its turn
        self._tail_noted = False
        self._events: list[Event] = []
        # Of the message in progress: its ids, how many of them were skipped text, whether its role is known to be the
        # model's own, the header, the body's pieces, the bytes of an unfinished character, and whether the ids can
        # be replayed.
        self._ids: list[int] = []
        self._num_skipped = 0
        self._role_is_read = False
        self._header: Header | None = None
        self._pieces: list[str] = []
        self._pending = b""
        self._replayable = True

    @property
    def is_done(self) -> bool:
        """Whether nothing more can come of this completion, so that sampling may stop."""
        return self._state is _State.DONE

    def push(self, token_id: int) -> list[Event]:
        """Takes one id; what it brought about."""
        if self._state is _State.BODY and not self._pending:
            text = self._texts.get(token_id)
            if text is not None:
                self._ids.append(token_id)
                self._pieces.append(text)
                return [ContentDelta(text)]
        self._step(token_id)
        events, self._events = self._events, []
        return events

    def feed(self, ids: Sequence[int]) -> list[Event]:
        """Takes many ids: as pushing each, but with the deltas between two control tokens joined."""
        num_plain = self._reader.num_plain
        start = 0
        for i in [i for i, token_id in enumerate(ids) if not 0 <= token_id < num_plain]:
            if start < i:
                self._step_plain(ids[start:i])
            self._step(ids[i])
            start = i + 1
        if start < len(ids):
            self._step_plain(ids[start:])
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """Ends the ids; what was still held back. Sets `finish_reason`; ids pushed afterwards are dropped."""
        if self.finish_reason is not None:
            return []
        is_cut = self._state is _State.BODY or (self._state is _State.HEADER and bool(self._ids))
        if self._state is _State.HEADER and self._ids:
            self._close_header(None, is_cut=True)
        elif self._state is _State.BODY:
            self._close_body(None, is_cut=True)
        elif self._state is _State.BETWEEN:
            self._skip_between()
        self._state = _State.DONE
        self.finish_reason = self._reason(is_cut=is_cut)
        events, self._events = self._events, []
        return events

    def _reason(self, *, is_cut: bool) -> FinishReason:
        if is_cut:
            return FinishReason.LENGTH
        last = self.messages[-1:]
        if any(message.is_call for message in (last if self._is_conversation else self.messages)):
            return FinishReason.TOOL_CALL
        if self._is_conversation or self._ended or any(message.channel == Channel.FINAL for message in last):
            return FinishReason.STOP
        return FinishReason.LENGTH

    # ---- one id, or a run of ordinary ones ----

    def _step(self, token_id: int) -> None:
        control = self._reader.controls.get(token_id)
        if not self._reader.knows(token_id) and self._state is not _State.DONE:
            self._add_repair(RepairKind.UNKNOWN_TOKEN, f"id {token_id}")
            self._replayable = False
        match self._state:
            case _State.BODY:
                self._step_body(token_id, control)
            case _State.HEADER:
                self._step_header(token_id, control)
            case _State.BETWEEN:
                self._step_between(token_id, control)
            case _State.DONE:
                self._note_tail()

    def _step_plain(self, ids: Sequence[int]) -> None:
        if self._state is _State.BODY:
            self._ids += ids
            self._add_bytes(self._tokenizer.decode_bytes(ids))
        elif self._state is _State.DONE:
            self._note_tail()
        else:
            self._ids += ids

    def _step_between(self, token_id: int, control: ControlToken | None) -> None:
        if control is None:
            self._ids.append(token_id)
        elif control is ControlToken.START:
            self._skip_between()
            self._open_header(Opening.STARTED, token_id)
        elif control in HEADER_MARKS:
            # Text in front may be part of the header (`assistant to=functions.f`) or filler; the header's reader knows.
            self._add_repair(RepairKind.MISSING_START, f"before {control}")
            skipped = self._ids
            self._open_header(Opening.MISSING, *skipped)
            self._num_skipped = len(skipped)
            self._step_header(token_id, control)
        else:
            self._skip_between()
            self._add_repair(RepairKind.STRAY_TOKEN, control)
            self._after_stop(control)

    def _step_header(self, token_id: int, control: ControlToken | None) -> None:
        if control is None:
            self._ids.append(token_id)
        elif control is ControlToken.START:
            if not self._ids or self._ids == [token_id]:
                self._add_repair(RepairKind.REPEATED_START, ControlToken.START)
            else:
                self._close_header(None)
            if self._state is not _State.DONE:
                self._open_header(Opening.STARTED, token_id)
        elif control in STOPS:
            self._ids.append(token_id)
            self._close_header(control)
            self._after_stop(control)
        elif not self._role_is_read and self._is_made_up():
            self._stop_at_made_up_turn()
        else:
            self._ids.append(token_id)
            if control is ControlToken.MESSAGE:
                self._open_body()

    def _step_body(self, token_id: int, control: ControlToken | None) -> None:
        if control is not None and control in STOPS:
            self._ids.append(token_id)
            self._close_body(control)
            self._after_stop(control)
        elif control is ControlToken.START:
            self._add_repair(RepairKind.MISSING_END, ControlToken.START)
            self._close_body(None)
            self._open_header(Opening.STARTED, token_id)
        else:
            self._ids.append(token_id)
            data = self._reader.bytes_of(token_id)
            if self._reader.is_special(token_id):
                self._add_repair(RepairKind.CONTROL_IN_BODY, data.decode())
            elif not self._pending and 0 <= token_id < self._reader.num_plain:
                self._reader.remember(token_id)
            self._add_bytes(data)

    # ---- headers ----

    def _open_header(self, opening: Opening, *ids: int) -> None:
        self._state = _State.HEADER
        self._opening = opening
        self._ids = list(ids)
        self._num_skipped = 0
        self._role_is_read = self._is_conversation or opening is not Opening.STARTED
        self._replayable = True

    def _interpret(self) -> Header:
        return interpret_header(
            self._reader.sections(self._ids),
            opening=self._opening,
            tools=self._tools,
            is_conversation=self._is_conversation,
        )

    def _open_body(self) -> None:
        header = self._interpret()
        if header.role is not Role.ASSISTANT and not self._is_conversation:
            self._stop_at_made_up_turn()
            return
        self._add_repairs(header.repairs)
        if header.text:
            self._add_repair(RepairKind.HEADER_TEXT, header.text)
        self._start_message(header)
        self._state = _State.BODY

    def _close_header(self, stop: ControlToken | None, *, is_cut: bool = False) -> None:
        """Ends a header that has no `<|message|>`: what it says beyond itself is the content."""
        header = self._interpret()
        self._state = _State.BETWEEN
        if header.role is not Role.ASSISTANT and not self._is_conversation:
            self._stop_at_made_up_turn()
            return
        kind = RepairKind.TRUNCATED_HEADER if is_cut else RepairKind.MISSING_MESSAGE
        self._add_repair(kind, header.text or stop or "nothing follows")
        is_call = (
            header.recipient is not None
            and not is_cut
            and (stop is ControlToken.CALL or not header.text or header.text.startswith("{"))
        )
        if is_cut and (header.recipient is not None or self._is_fragment(header)):
            is_message = False
        else:
            is_message = is_call or bool(header.text) or (header.names_channel and not is_cut)
        if is_message:
            self._add_repairs(r for r in header.repairs if r.kind is not RepairKind.MISSING_CHANNEL)
            if header.role is Role.ASSISTANT and not is_call:
                # Shown, as a refusal should be, unless it says that it is reasoning.
                is_private = header.names_channel and header.channel is Channel.ANALYSIS
                channel = Channel.ANALYSIS if is_private else Channel.FINAL
                header = header._replace(channel=channel, recipient=None)
            self._replayable = False
            self._start_message(header)
            self._add_bytes(header.text.encode())
            self._close_body(stop, is_cut=is_cut)
        self._ids = []

    def _is_fragment(self, header: Header) -> bool:
        """Whether the text of a header cut short is only the beginning of a role or a recipient."""
        is_role = self._opening is Opening.STARTED and not header.names_channel and " " not in header.text
        return is_role or "to=".startswith(header.text)

    def _is_made_up(self) -> bool:
        """Whether the header so far, which its first control token follows, opens a turn that is not the model's."""
        self._role_is_read = True
        text = self._reader.sections(self._ids)[0].text
        words, _, _ = text.partition(" to=")
        reading = read_role(words, opening=self._opening, tools=self._tools, to_assistant=" to=assistant" in text)
        return reading.role is not Role.ASSISTANT

    def _stop_at_made_up_turn(self) -> None:
        self._add_repair(RepairKind.MADE_UP_TURN, self._reader.sections(self._ids)[0].text.strip())
        self._ids = []
        self._ended = True
        self._state = _State.DONE

    # ---- bodies ----

    def _start_message(self, header: Header) -> None:
        self._header = header
        self._pieces = []
        self._events.append(
            MessageStart(header.role, header.channel, header.recipient, header.content_type, header.name)
        )

    def _add_bytes(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        self._add_text(text)

    def _add_text(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._events.append(ContentDelta(text))

    def _close_body(self, stop: ControlToken | None, *, is_cut: bool = False) -> None:
        header = self._header
        assert header is not None
        if self._pending:
            self._add_text(self._pending.decode("utf-8", "replace"))
            self._pending = b""
        if not is_cut and header.role is Role.ASSISTANT:
            self._check_call(header, stop)
        if stop is ControlToken.ENDOFTEXT:
            self._add_repair(RepairKind.ENDOFTEXT, "in place of a stop token")
        keeps_ids = header.role is Role.ASSISTANT and self._replayable and not self._num_skipped
        self.messages.append(
            Message(
                header.role,
                content="".join(self._pieces),
                name=header.name,
                channel=header.channel,
                recipient=header.recipient,
                content_type=header.content_type,
                token_ids=tuple(self._ids) if keeps_ids else None,
            )
        )
        self._events.append(MessageEnd(stop))
        self._header = None
        self._pieces = []
        self._ids = []
        self._state = _State.BETWEEN

    def _check_call(self, header: Header, stop: ControlToken | None) -> None:
        if header.recipient is None:
            if stop is ControlToken.CALL:
                self._add_repair(RepairKind.CALL_WITHOUT_RECIPIENT, f"on {header.channel}")
            return
        if stop is not ControlToken.CALL:
            self._add_repair(RepairKind.CALL_NOT_CLOSED, f"{header.recipient} ended by {stop or ControlToken.START}")
        if not header.recipient.startswith("functions."):
            return  # what a built-in tool takes is its own affair
        text = "".join(self._pieces)
        if not text.strip():
            self._add_repair(RepairKind.EMPTY_ARGUMENTS, header.recipient)
            self._add_text("{}")
        elif not _is_json(text):
            self._add_repair(RepairKind.INVALID_ARGUMENTS, f"{header.recipient}: {text}")

    def _after_stop(self, stop: ControlToken) -> None:
        if stop in _LAST_STOPS and not self._is_conversation:
            self._ended = True
            self._state = _State.DONE
        elif stop is ControlToken.CALL:
            self._ended = True

    # ---- what is dropped, and notes ----

    def _skip_between(self) -> None:
        if self._ids:
            self._add_repair(RepairKind.TEXT_BETWEEN_MESSAGES, self._reader.decode_plain(self._ids))
            self._ids = []

    def _note_tail(self) -> None:
        if not self._tail_noted and self.finish_reason is None:
            self._tail_noted = True
            self._add_repair(RepairKind.TAIL_DROPPED, "ids behind the end of the completion")

    def _add_repair(self, kind: RepairKind, detail: str) -> None:
        self._add_repairs((repair(kind, detail),))

    def _add_repairs(self, repairs: Iterator[Repair] | Sequence[Repair]) -> None:
        for item in repairs:
            self.repairs.append(item)
            self._events.append(item)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_int=str, parse_constant=_reject_constant)  # int() has a limit, JSON has none
    except (ValueError, RecursionError):
        return False
    return True


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
