"""How a conversation begins: with tools that run here, or around messages of a client's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ossia.harmony.content import DeveloperContent, Effort, ResponseFormat, SystemContent, ToolNamespace
from ossia.harmony.message import Conversation, Message, Role

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


def compose_conversation(
    messages: Sequence[Message],
    *,
    system: SystemContent,
    instructions: str | None = None,
    tools: Sequence[ToolNamespace] = (),
    response_formats: Sequence[ResponseFormat] = (),
) -> Conversation:
    """Put the system and developer messages in front of what a client gave.

    Args:
        messages: the client's, in order. Those of system and developer roles hold plain text: the leading ones are
            joined to the developer message, later ones are developer messages of their own.
        system: the system message, which is not the client's to write.
        instructions: stand before all else that the developer says.
        tools: those that the developer declares.
        response_formats: what the answer must look like.
    """
    texts = [instructions] if instructions else []
    start = 0
    while start < len(messages) and messages[start].role in (Role.SYSTEM, Role.DEVELOPER):
        texts += [messages[start].text] if messages[start].text else []
        start += 1
    developer = DeveloperContent(
        instructions="\n\n".join(texts) if texts else None,
        tools=tuple(tools),
        response_formats=tuple(response_formats),
    )
    opening = [Message(Role.SYSTEM, content=system)]
    if developer != DeveloperContent():
        opening.append(Message(Role.DEVELOPER, content=developer))
    return Conversation((*opening, *map(_as_developer, messages[start:])))


def _as_developer(message: Message) -> Message:
    if message.role in (Role.SYSTEM, Role.DEVELOPER):
        return Message(Role.DEVELOPER, content=DeveloperContent(instructions=message.text))
    return message
