"""How a conversation with tools begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ossia.harmony.content import DeveloperContent, Effort, SystemContent
from ossia.harmony.message import Message, Role

if TYPE_CHECKING:
    from ossia.model.loading import Identity
    from ossia.tools.registry import ToolSet


def open_conversation(
    identity: Identity,
    *,
    tools: ToolSet,
    effort: Effort = Effort.MEDIUM,
    date: str | None = None,
    instructions: str | None = None,
) -> tuple[Message, ...]:
    """The system message, and with instructions or functions a developer message.

    Built-in tools are declared in the former and all others in the latter, as the models were trained to see them.
    """
    system = SystemContent(
        model_identity=identity.model_identity,
        knowledge_cutoff=identity.knowledge_cutoff,
        effort=effort,
        date=date,
        tools=tools.system_namespaces(),
    )
    messages = [Message(Role.SYSTEM, content=system)]
    declared = tools.developer_namespaces()
    if instructions or declared:
        messages.append(Message(Role.DEVELOPER, content=DeveloperContent(instructions=instructions, tools=declared)))
    return tuple(messages)
