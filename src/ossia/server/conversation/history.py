"""A conversation's messages from what clients of the stateless APIs send each time: all of it, but less than they got.

What the model itself said goes back in as it was sampled, wherever that is still known: calls are known by their ids,
answers by their text, and reasoning that a client dropped in front of a call is put back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ossia.harmony.content import FUNCTIONS, Channel
from ossia.harmony.json_text import JsonValue
from ossia.harmony.message import Message, Role
from ossia.server.conversation.answer import TEXT_SEPARATOR, THOUGHT_SEPARATOR, call_key, text_key
from ossia.server.conversation.tools import CUSTOM, bare_name
from ossia.server.errors import ApiError
from ossia.server.replay import ReplayCache, Said


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


class History:
    """Collects messages in order.

    Attributes:
        messages: so far.
    """

    def __init__(self, replay: ReplayCache, *, owner: str) -> None:
        self.messages: list[Message] = []
        self._replay = replay
        self._owner = owner
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
                self._add_answer(block.text)
        self._add_thoughts(pending)

    def add_result(self, call_id: str, text: str, *, param: str) -> None:
        """A tool's answer.

        Raises:
            ApiError: no call of that id stands before it.
        """
        recipient = self._recipients.get(call_id)
        if recipient is None:
            said = self._replay.find(self._owner, call_id)
            recipient = said.message.recipient if said is not None else None
        if recipient is None:
            raise ApiError(
                f"no call with the id {call_id[:100]!r} stands before its result", code="invalid_value", param=param
            )
        self.add_result_of(recipient, text)

    def add_result_of(self, recipient: str, text: str) -> None:
        """A tool's answer, where the tool is known by its name."""
        self.messages.append(
            Message(Role.TOOL, content=text, name=recipient, recipient="assistant", channel=Channel.COMMENTARY)
        )

    def _add_call(self, call: Call, pending: Sequence[Thought | Text]) -> None:
        key = call.id or call_key(call.recipient, call.content)
        said = self._replay.find(self._owner, key)
        if said is not None and _is_same(said.message, call):
            if _agree(said, pending):
                self.messages += said.reasoning
            else:
                self._add_thoughts(pending)
            message = said.message
        else:
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
                said = self._replay.find(self._owner, text_key(block.text, is_final=False))
                preamble = Message(Role.ASSISTANT, content=block.text, channel=Channel.COMMENTARY)
                self.messages.append(preamble if said is None else said.message)

    def _add_answer(self, text: str) -> None:
        said = self._replay.find(self._owner, text_key(text, is_final=True))
        if said is None:
            self.messages.append(Message(Role.ASSISTANT, content=text, channel=Channel.FINAL))
        else:
            self.messages += [*said.reasoning, said.message]


def recipient_of(name: str, *, is_custom: bool = False) -> str:
    """A client's tool as the model addresses it."""
    return f"{CUSTOM if is_custom else FUNCTIONS}.{name}"


def _is_same(message: Message, call: Call) -> bool:
    if not message.is_call or bare_name(message.recipient or "") != bare_name(call.recipient):
        return False
    if message.text == call.content:
        return True
    if call.value is None:
        return False
    try:
        return json.loads(message.text) == call.value
    except ValueError:
        return False


def _agree(said: Said, pending: Sequence[Thought | Text]) -> bool:
    """Whether a client gave back what stood before a call, or nothing of it: then it is put back as it was sampled."""
    thoughts = [m.text for block in pending if isinstance(block, Thought) for m in block.messages]
    texts = [block.text for block in pending if isinstance(block, Text) and block.text]
    return _matches(said, thoughts, THOUGHT_SEPARATOR, is_thought=True) and _matches(
        said, texts, TEXT_SEPARATOR, is_thought=False
    )


def _matches(said: Said, given: Sequence[str], separator: str, *, is_thought: bool) -> bool:
    known = [m.text for m in said.reasoning if (m.channel == Channel.ANALYSIS) == is_thought]
    return not given or separator.join(given) == separator.join(known)
