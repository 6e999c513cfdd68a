"""From what a conversation declares, tools and answer formats, to what its next turn may write. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ossia.engine.constraint import FreeText, JsonSchema, OutputGrammar, ToolGrammar, TurnConstraint
from ossia.harmony.content import (
    FUNCTIONS,
    DeveloperContent,
    FunctionTool,
    ResponseFormat,
    SystemContent,
    ToolNamespace,
)
from ossia.harmony.json_text import JsonValue
from ossia.harmony.message import Conversation


def constraint_of(conversation: Conversation) -> TurnConstraint | None:
    """The rules of the next turn: calls of the declared tools only, with arguments by their schemas as far as those can
    be enforced, and the answer by the response format; None if nothing is declared.

    Of several response formats the model chooses one by itself: the answer stays free.
    """
    grammars: list[ToolGrammar] = []
    formats: list[ResponseFormat] = []
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, SystemContent):
                grammars += builtin_grammars(part.tools)
            elif isinstance(part, DeveloperContent):
                grammars += declared_grammars(part.tools)
                formats += part.response_formats
    if not grammars and not formats:
        return None
    answer: OutputGrammar = JsonSchema(formats[0].schema) if len(formats) == 1 else FreeText()
    return TurnConstraint(tools=tuple(grammars), response_format=answer)


def builtin_grammars(spaces: Iterable[ToolNamespace]) -> list[ToolGrammar]:
    """How the tools of a system message are called."""
    grammars: list[ToolGrammar] = []
    for space in spaces:
        if not space.tools:
            grammars.append(ToolGrammar.builtin(space.name))
        grammars += [ToolGrammar.builtin(f"{space.name}.{tool.name}", parameters=_schema(tool)) for tool in space.tools]
    return grammars


def declared_grammars(spaces: Iterable[ToolNamespace]) -> list[ToolGrammar]:
    """How the tools of a developer message are called."""
    grammars: list[ToolGrammar] = []
    for space in spaces:
        for tool in space.tools:
            grammar = ToolGrammar.function(tool.name, parameters=tool.parameters, is_strict=False)
            if space.name != FUNCTIONS:
                grammar = dataclasses.replace(grammar, recipient=f"{space.name}.{tool.name}")
            grammars.append(grammar)
    return grammars


def _schema(tool: FunctionTool) -> Mapping[str, JsonValue] | bool:
    """A function without arguments takes an empty object, as the others take objects."""
    return {"type": "object"} if tool.parameters is None else tool.parameters
