"""What the parser tells while it reads: events, the repairs it made, and how a completion ended."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from ossia.harmony.message import Channel, Role
    from ossia.harmony.vocab import ControlToken

_MAX_DETAIL = 200


class RepairKind(StrEnum):
    """What was wrong with the ids and how the parser read them nevertheless. The values name counters: keep them."""

    MISSING_START = "missing_start"
    """A header without `<|start|>` behind an ended message; read as if it were there."""
    REPEATED_START = "repeated_start"
    """`<|start|><|start|>`, or a `<|start|>` where the prompt had already written `<|start|>assistant`."""
    REPEATED_ROLE = "repeated_role"
    """`assistantassistant`; an assistant message."""
    ROLE_IS_CHANNEL = "role_is_channel"
    """`<|start|>final`; an assistant message on that channel."""
    MISSING_CHANNEL = "missing_channel"
    """No channel, or nothing behind `<|channel|>`; final, or commentary for a call."""
    REPEATED_CHANNEL = "repeated_channel"
    """Several channels in a header; the last known one counts."""
    UNKNOWN_CHANNEL = "unknown_channel"
    """A channel spelled unlike any of the three; the nearest one."""
    HEADER_TEXT = "header_text"
    """Text in a header that is neither role, channel, recipient nor content type; the detail keeps it."""
    RECIPIENT_MATCHED = "recipient_matched"
    """A recipient spelled oddly: bare, with spaces behind `to=` or in it, or with `json` glued to it."""
    REPEATED_RECIPIENT = "repeated_recipient"
    """Several recipients in a header; the first declared one, else the first, counts."""
    NO_TOOL_RECIPIENT = "no_tool_recipient"
    """`to=` with nothing behind it or with somebody who is no tool (assistant, user, all); no call."""
    MISSING_MESSAGE = "missing_message"
    """A stop token before any `<|message|>`; what the header says beyond itself became the content."""
    TRUNCATED_HEADER = "truncated_header"
    """The ids end within a header; text written in it became the content, an unfinished call is dropped."""
    MISSING_END = "missing_end"
    """`<|start|>` in a body; it ends the message before it."""
    CALL_NOT_CLOSED = "call_not_closed"
    """A call ended by another token than `<|call|>`; still a call."""
    CALL_WITHOUT_RECIPIENT = "call_without_recipient"
    """`<|call|>` behind a message to nobody; no call."""
    EMPTY_ARGUMENTS = "empty_arguments"
    """A function call without a body; its arguments are `{}`."""
    INVALID_ARGUMENTS = "invalid_arguments"
    """A function call whose body is not JSON; the call keeps the raw text."""
    TEXT_BETWEEN_MESSAGES = "text_between_messages"
    """Ordinary tokens between an ended message and the next; skipped."""
    STRAY_TOKEN = "stray_token"  # noqa: S105, no password
    """A control token where it means nothing, between messages or in a header; skipped."""
    CONTROL_IN_BODY = "control_in_body"
    """A control token in a body that does not end it; kept as the text of its name."""
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105, no password
    """An id outside the vocabulary; U+FFFD."""
    ENDOFTEXT = "endoftext"
    """`<|endoftext|>` in place of a stop token; the end."""
    MADE_UP_TURN = "made_up_turn"
    """The model went on as user, system, developer or a tool; dropped, with all behind it."""
    TAIL_DROPPED = "tail_dropped"
    """Ids behind the end of the completion; dropped."""


class FinishReason(StrEnum):
    """How a completion ended."""

    STOP = "stop"
    """The model ended its turn."""
    TOOL_CALL = "tool_call"
    """The model called at least one tool and waits for the results."""
    LENGTH = "length"
    """The ids ended before the model had: within a header or a body, or with no answer, call or stop token yet."""


class MessageStart(NamedTuple):
    """The header of a message is complete. `name` is a tool's, in conversations also a user's."""

    role: Role
    channel: Channel | None
    recipient: str | None
    content_type: str | None
    name: str | None = None


class ContentDelta(NamedTuple):
    """More text of the message; never empty, never part of a character. Joined, the deltas are its content."""

    text: str


class MessageEnd(NamedTuple):
    """The message is complete. `stop` is the control token that ended it; None: there was none."""

    stop: ControlToken | None


class Repair(NamedTuple):
    """Something malformed that was read nevertheless. `detail` is for people: often the text in question, cut short."""

    kind: RepairKind
    detail: str


Event: TypeAlias = MessageStart | ContentDelta | MessageEnd | Repair


def repair(kind: RepairKind, detail: str) -> Repair:
    """A Repair whose detail is short enough for a log line."""
    detail = str(detail)  # of a control token, its plain name
    return Repair(kind, detail if len(detail) <= _MAX_DETAIL else detail[: _MAX_DETAIL - 1] + "…")
