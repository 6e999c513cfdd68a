"""A conversation's messages from what clients of the stateless APIs send each time: all of it, but less than they got.

What the model itself said goes back in as it was sampled, wherever that is still known: calls are known by their ids,
answers by their text, and reasoning that a client dropped in front of a call is put back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ossia.agent.chat_history import Call, ChatHistory, Text, Thought
from ossia.harmony.content import Channel
from ossia.harmony.message import Message
from ossia.server.conversation.answer import TEXT_SEPARATOR, THOUGHT_SEPARATOR, call_key, text_key
from ossia.server.conversation.tools import bare_name
from ossia.server.replay import ReplayCache, Said


class History(ChatHistory):
    """Collects messages in order; those that the model said lately as they were sampled."""

    def __init__(self, replay: ReplayCache, *, owner: str) -> None:
        super().__init__()
        self._replay = replay
        self._owner = owner

    def _sampled_call(self, call: Call, pending: Sequence[Thought | Text]) -> Message | None:
        key = call.id or call_key(call.recipient, call.content)
        said = self._replay.find(self._owner, key)
        if said is None or not _is_same(said.message, call):
            return None
        if _agree(said, pending):
            self.messages += said.reasoning
        else:
            self._add_thoughts(pending)
        return said.message

    def _preamble(self, text: str) -> Message:
        said = self._replay.find(self._owner, text_key(text, is_final=False))
        return super()._preamble(text) if said is None else said.message

    def _answer(self, text: str) -> Sequence[Message]:
        said = self._replay.find(self._owner, text_key(text, is_final=True))
        return super()._answer(text) if said is None else (*said.reasoning, said.message)

    def _recipient(self, call_id: str) -> str | None:
        said = self._replay.find(self._owner, call_id)
        return None if said is None else said.message.recipient


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
