"""The whole conversation that a model sees, from what clients of any API give: one rule, so that the same
conversation is the same token ids through Responses, Chat Completions and Messages.

    system message     identity, date, effort: the server's
    developer message  instructions and the leading system and developer messages, joined; tools; answer format
    the rest           as it comes; later system and developer messages as developer messages of their own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ossia.agent.opening import compose_conversation
from ossia.harmony.content import Effort, SystemContent, ToolNamespace
from ossia.harmony.message import Conversation, Message, Role
from ossia.server.conversation.tools import TurnRules

if TYPE_CHECKING:
    from ossia.agent.turns import ServedModel


def build_conversation(
    messages: Sequence[Message],
    *,
    model: ServedModel,
    date: str,
    rules: TurnRules | None = None,
    instructions: str | None = None,
    effort: Effort = Effort.MEDIUM,
    system_tools: Sequence[ToolNamespace] = (),
    developer_tools: Sequence[ToolNamespace] = (),
) -> Conversation:
    """Put the server's messages in front of the client's.

    Args:
        messages: the client's, in order. Those of system and developer roles hold plain text.
        date: as YYYY-MM-DD.
        rules: tools and answer format.
        instructions: stand before all else that the developer says.
        system_tools, developer_tools: those that the server runs itself, declared where the models expect them.

    Raises:
        InvalidInputError: a tool or a format that cannot be declared.
    """
    rules = rules or TurnRules()
    system = SystemContent(
        model_identity=model.identity.model_identity,
        knowledge_cutoff=model.identity.knowledge_cutoff,
        effort=effort,
        date=date,
        tools=tuple(system_tools),
    )
    return compose_conversation(
        messages,
        system=system,
        instructions=instructions,
        tools=(*rules.namespaces(), *developer_tools),
        response_formats=() if rules.format is None else (rules.format.declare(),),
    )


def drop_oldest_turn(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The messages without their oldest turn (from a user's message to the next one's); None if only one is left.

    Leading system and developer messages stay.
    """
    start = 0
    while start < len(messages) and messages[start].role in (Role.SYSTEM, Role.DEVELOPER):
        start += 1
    for i in range(start + 1, len(messages)):
        if messages[i].role is Role.USER:
            return (*messages[:start], *messages[i:])
    return None
