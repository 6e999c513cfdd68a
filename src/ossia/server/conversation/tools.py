"""Tools and answer formats, as all APIs mean them: what the prompt declares, and what the engine enforces."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ossia.agent.chat_history import CUSTOM
from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import (
    FreeText,
    JsonObject,
    JsonSchema,
    Lark,
    OutputGrammar,
    Regex,
    ToolChoice,
    ToolGrammar,
    TurnConstraint,
)
from ossia.harmony.content import FUNCTIONS, JSON_OBJECT, FunctionTool, ResponseFormat, ToolNamespace
from ossia.harmony.json_text import JsonValue


@dataclass(frozen=True, kw_only=True, slots=True)
class FunctionSpec:
    """A function of the client's.

    Attributes:
        parameters: JSON Schema; None for a function without arguments.
        is_strict: True: its calls follow the schema, or the schema is refused. None: as far as it can be enforced.
            False: not enforced for its own sake.
        namespace: the namespace that declares it; names of functions of different namespaces may be the same.
        namespace_description: what the namespace is about.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, JsonValue] | None = None
    is_strict: bool | None = None
    namespace: str = FUNCTIONS
    namespace_description: str | None = None

    @property
    def recipient(self) -> str:
        return f"{self.namespace}.{self.name}"

    @property
    def key(self) -> str:
        """Names it among all tools of a request, as `bare_name` does."""
        return bare_name(self.recipient)

    def declare(self) -> FunctionTool:
        return FunctionTool(self.name, description=self.description, parameters=self.parameters)

    def grammar(self) -> ToolGrammar:
        function = ToolGrammar.function(self.name, parameters=self.parameters, is_strict=self.is_strict is True)
        return dataclasses.replace(function, recipient=self.recipient)


@dataclass(frozen=True, kw_only=True, slots=True)
class CustomSpec:
    """A tool of the client's that takes text.

    Attributes:
        format: the grammar of that text; None for any.
    """

    name: str
    description: str = ""
    format: Lark | Regex | None = None

    @property
    def recipient(self) -> str:
        return f"{CUSTOM}.{self.name}"

    @property
    def key(self) -> str:
        return self.name

    def declare(self) -> FunctionTool:
        description = self.description
        match self.format:
            case Lark(grammar):
                description += f"\nThe input follows this Lark grammar:\n{grammar}"
            case Regex(pattern):
                description += f"\nThe input matches this regular expression: {pattern}"
            case None:
                pass
        return FunctionTool(self.name, description=description.strip("\n"), parameters={"type": "string"})

    def grammar(self) -> ToolGrammar:
        return ToolGrammar.custom(self.recipient, grammar=self.format)


ToolSpec: TypeAlias = FunctionSpec | CustomSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatSpec:
    """How the answer must look.

    Attributes:
        schema: JSON Schema; None for any JSON object.
    """

    name: str = "json_object"
    schema: Mapping[str, JsonValue] | None = None
    description: str | None = None

    def declare(self) -> ResponseFormat:
        if self.schema is None:
            return JSON_OBJECT
        return ResponseFormat(self.name, schema=self.schema, description=self.description)

    def grammar(self) -> OutputGrammar:
        return JsonObject() if self.schema is None else JsonSchema(self.schema)


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRules:
    """What a turn may and must do.

    Attributes:
        tools: those declared.
        choice: whether one may, must or must not be called.
        allowed: names of the tools that may be called; None for all.
        parallel: whether several calls may follow one another.
        format: how the answer must look; None for free text.
    """

    tools: tuple[ToolSpec, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    allowed: tuple[str, ...] | None = None
    parallel: bool = True
    format: FormatSpec | None = None
    _by_name: dict[str, ToolSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[str, ToolSpec] = {}
        for tool in self.tools:
            if tool.key in found:
                raise InvalidInputError(f"two tools are named {tool.key!r}; names must differ", param="tools")
            found[tool.key] = tool
        object.__setattr__(self, "_by_name", found)
        for name in self.allowed or ():
            if name not in found:
                raise InvalidInputError(
                    f"tool_choice names {name!r}, but the tools are: {', '.join(found) or 'none'}", param="tool_choice"
                )
        if self.choice is ToolChoice.REQUIRED and not self.tools:
            raise InvalidInputError(
                "tool_choice requires a call, but no tool is given; give tools or choose 'auto'", param="tool_choice"
            )

    @property
    def recipients(self) -> tuple[str, ...]:
        """As the model addresses the tools."""
        return tuple(tool.recipient for tool in self.tools)

    def find(self, name: str) -> ToolSpec | None:
        """The tool of that name, as `bare_name` gives it."""
        return self._by_name.get(name)

    def namespaces(self) -> tuple[ToolNamespace, ...]:
        """What the developer message declares.

        Raises:
            InvalidInputError: a name or a schema that cannot be declared.
        """
        groups: dict[str, list[FunctionTool]] = {}
        about: dict[str, str | None] = {}
        for tool in self.tools:
            space = tool.namespace if isinstance(tool, FunctionSpec) else CUSTOM
            groups.setdefault(space, []).append(tool.declare())
            about[space] = tool.namespace_description if isinstance(tool, FunctionSpec) else None
        return tuple(ToolNamespace(name, description=about[name], tools=tuple(tools)) for name, tools in groups.items())

    def constraint(self) -> TurnConstraint | None:
        """What the engine enforces; None if the model may write as it likes.

        Raises:
            InvalidInputError: a tool that cannot be constrained.
        """
        is_free = self.format is None and self.choice is ToolChoice.AUTO and self.allowed is None
        if is_free and not any(_binds(tool) for tool in self.tools):
            return None
        return TurnConstraint(
            tools=tuple(tool.grammar() for tool in self.tools),
            tool_choice=self.choice,
            allowed_tools=None if self.allowed is None else tuple(self._by_name[n].recipient for n in self.allowed),
            response_format=FreeText() if self.format is None else self.format.grammar(),
            has_preambles=self.choice is not ToolChoice.REQUIRED,  # or a weak model never comes to the call
            parallel_calls=self.parallel,
        )


def _binds(tool: ToolSpec) -> bool:
    """Whether the tool asks for its calls to be held to a form. Text tools do: models know only those with JSON."""
    return isinstance(tool, CustomSpec) or tool.is_strict is not False


def bare_name(recipient: str) -> str:
    """A tool's name without the namespaces of clients' tools."""
    space, _, name = recipient.partition(".")
    return name if name and space in (FUNCTIONS, CUSTOM) else recipient


def names(tools: Iterable[ToolSpec]) -> Sequence[str]:
    """Names, in order."""
    return [tool.name for tool in tools]
