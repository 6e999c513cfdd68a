"""A short account of a chain of thought, for readers who shall not see the thing itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ossia.agent.turns import Sampling
from ossia.core.errors import OssiaError
from ossia.harmony.content import Effort
from ossia.harmony.message import Message, Role
from ossia.server.conversation.prompt import build_conversation

if TYPE_CHECKING:
    from ossia.server.context import ServerContext

logger = logging.getLogger(__name__)

_ASK = {
    "detailed": "Say in a short paragraph what the notes below consider and conclude.",
    "concise": "Say in one or two sentences what the notes below consider and conclude.",
}
_RULE = "Write for the person who asked, in the language of the notes. Do not quote them. Do not answer the question."
_MAX_TOKENS = 512
_MAX_NOTES = 40_000
"""Characters; of a longer chain of thought the end, where it concludes, is what counts."""


async def summarise(context: ServerContext, reasoning: str, *, detail: str | None, owner: str) -> str:
    """A summary by the model itself, in a turn of its own; empty if it could not be made."""
    ask = _ASK["detailed" if detail == "detailed" else "concise"]
    conversation = build_conversation(
        [Message(Role.USER, content=reasoning[-_MAX_NOTES:])],
        model=context.model,
        date=context.today(),
        instructions=f"{ask} {_RULE}",
        effort=Effort.LOW,
    )
    try:
        prompt = await context.turns.encode(conversation)
        sampling = Sampling(temperature=0.0, max_tokens=_MAX_TOKENS)
        request = context.turns.request(prompt, sampling=sampling, owner=owner, request_id=context.new_id("sum"))
        async with await context.turns.start(request) as turn:
            async for _ in turn:
                pass
            return turn.result().text.strip()
    except OssiaError as error:
        logger.warning("no summary of a chain of thought could be made: %s", error)
        return ""
