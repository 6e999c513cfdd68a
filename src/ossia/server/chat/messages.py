"""Chat messages to harmony messages."""

from __future__ import annotations

from collections.abc import Sequence

from ossia.agent.chat_messages import read_chat_messages
from ossia.harmony.message import Message
from ossia.server.conversation.history import History
from ossia.server.replay import ReplayCache
from ossia.server.responses.schema import JsonObject
from ossia.server.settings import ReasoningPolicy


def read_messages(
    messages: Sequence[JsonObject], *, replay: ReplayCache, owner: str, policy: ReasoningPolicy
) -> list[Message]:
    """The conversation.

    Args:
        policy: with summaries shown, what comes back as reasoning is not what the model said, and is left out.

    Raises:
        InvalidInputError: one is malformed, or holds what the model cannot read; `param` says where.
    """
    return read_chat_messages(
        messages, history=History(replay, owner=owner), with_reasoning=policy is not ReasoningPolicy.SUMMARY
    )
