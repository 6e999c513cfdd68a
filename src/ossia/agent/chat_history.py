"""A conversation's messages from what clients tell of it: thoughts, texts and calls of the assistant, results of tools.

One rule for every API, and for conversations to learn from, so that the same conversation is the same token ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import FUNCTIONS, Channel
from ossia.harmony.json_text import JsonValue
from ossia.harmony.message import Message, Role

CUSTOM = "custom"
"""The namespace of tools that take text; those under `functions` take JSON."""


class Thought(NamedTuple):
    """Reasoning: its messages as sampled, or as given."""

    messages: tuple[Message, ...]

    @staticmethod
    def of(text: str) -> Thought:
        """Reasoning given as text."""
        return Thought((Message(Role.ASSISTANT, content=text, channel=Channel.ANALYSIS),))


class Text(NamedTuple):
    """What the assistant said to the user."""

    text: str


class Call(NamedTuple):
    """A call of a tool.

    Attributes:
        id: as the client names it; empty where its API has no ids.
        recipient: the tool, with its namespace.
        content: arguments as JSON text, or a custom tool's input.
        value: the arguments, where the client has them as a value: any text that says the same is then the same call.
    """

    id: str
    recipient: str
    content: str
    value: Mapping[str, JsonValue] | None = None


Block: TypeAlias = Thought | Text | Call


class ChatHistory:
    """Collects messages in order. What was sampled is not known here; who knows it overrides the last four methods.

    Attributes:
        messages: so far.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._recipients: dict[str, str] = {}  # by call id

    def add_text(self, role: Role, text: str) -> None:
        """A message of the user, the developer or the system."""
        self.messages.append(Message(role, content=text))

    def add_assistant(self, blocks: Sequence[Block]) -> None:
        """One message of the assistant: text before a call is a preamble, text behind the last call the answer."""
        last_call = max((i for i, block in enumerate(blocks) if isinstance(block, Call)), default=-1)
        pending: list[Thought | Text] = []
        for i, block in enumerate(blocks):
            if isinstance(block, Call):
                self._add_call(block, pending)
                pending = []
            elif i < last_call or isinstance(block, Thought):
                pending.append(block)
            else:
                self._add_thoughts(pending)
                pending = []
                self.messages += self._answer(block.text)
        self._add_thoughts(pending)

    def add_result(self, call_id: str, text: str, *, param: str) -> None:
        """A tool's answer.

        Raises:
            InvalidInputError: no call of that id stands before it.
        """
        recipient = self._recipients.get(call_id) or self._recipient(call_id)
        if recipient is None:
            raise InvalidInputError(
                f"no call with the id {call_id[:100]!r} stands before its result", code="invalid_value", param=param
            )
        self.add_result_of(recipient, text)

    def add_result_of(self, recipient: str, text: str) -> None:
        """A tool's answer, where the tool is known by its name."""
        self.messages.append(
            Message(Role.TOOL, content=text, name=recipient, recipient="assistant", channel=Channel.COMMENTARY)
        )

    def _add_call(self, call: Call, pending: Sequence[Thought | Text]) -> None:
        message = self._sampled_call(call, pending)
        if message is None:
            self._add_thoughts(pending)
            is_json = call.recipient.startswith(f"{FUNCTIONS}.")
            message = Message(
                Role.ASSISTANT,
                content=call.content,
                channel=Channel.COMMENTARY,
                recipient=call.recipient,
                content_type="json" if is_json else None,
            )
        self.messages.append(message)
        if call.id:
            self._recipients[call.id] = message.recipient or call.recipient

    def _add_thoughts(self, blocks: Sequence[Thought | Text]) -> None:
        for block in blocks:
            if isinstance(block, Thought):
                self.messages += block.messages
            elif block.text:
                self.messages.append(self._preamble(block.text))

    def _sampled_call(self, call: Call, pending: Sequence[Thought | Text]) -> Message | None:
        """The call as it was sampled, once what led to it (else `pending`) is among the messages; None: not known."""
        return None

    def _preamble(self, text: str) -> Message:
        return Message(Role.ASSISTANT, content=text, channel=Channel.COMMENTARY)

    def _answer(self, text: str) -> Sequence[Message]:
        """An answer, with the reasoning before it where that is known."""
        return (Message(Role.ASSISTANT, content=text, channel=Channel.FINAL),)

    def _recipient(self, call_id: str) -> str | None:
        """Whom a call addressed that is not among the messages."""
        return None


def recipient_of(name: str, *, is_custom: bool = False) -> str:
    """A client's tool as the model addresses it."""
    return f"{CUSTOM if is_custom else FUNCTIONS}.{name}"
