"""What system and developer messages hold: identity, effort, channels, instructions, tools and response formats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import TypeVar

from ossia.core.errors import InvalidInputError
from ossia.harmony.json_text import JsonValue, compact_json
from ossia.harmony.schema import schema_to_typescript

DEFAULT_IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
DEFAULT_KNOWLEDGE_CUTOFF = "2024-06"
FUNCTIONS = "functions"
"""The namespace of the tools that a developer defines; calls to them go to the commentary channel."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_E = TypeVar("_E", bound=StrEnum)


class Channel(StrEnum):
    """Where an assistant speaks: chain of thought, calls and preambles, the answer."""

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    FINAL = "final"


class Effort(StrEnum):
    """How much the model reasons before it answers."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"

    @classmethod
    def parse(cls, value: object) -> Effort:
        """Raises InvalidInputError, naming the three values, for anything else."""
        return parse_enum(cls, value, what="reasoning effort", param="reasoning_effort")


def parse_enum(cls: type[_E], value: object, *, what: str, param: str) -> _E:
    """The member of that value; raises InvalidInputError, naming all of them, if there is none."""
    if isinstance(value, str):
        try:
            return cls(value)
        except ValueError:
            pass
    names = [repr(member.value) for member in cls]
    raise InvalidInputError(f"unknown {what} {value!r}; use {', '.join(names[:-1])} or {names[-1]}", param=param)


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call.

    Attributes:
        name: as in `functions.<name>`; one line, not empty.
        description: shown above the declaration; may have several lines or none.
        parameters: JSON Schema of the arguments, None for a function without any. It is read once, here: do not
            change it afterwards.
        declaration: the TypeScript that the model sees.

    Raises:
        InvalidInputError: an unusable name, or a schema that has no TypeScript (see `schema_to_typescript`).
    """

    name: str
    _: KW_ONLY
    description: str = ""
    parameters: Mapping[str, JsonValue] | bool | None = None
    declaration: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_line(self.name, what="the name of a tool", param="tools")
        if self.parameters is None:
            arguments = ""
        else:
            try:
                arguments = f"_: {schema_to_typescript(self.parameters)}"
            except InvalidInputError as error:
                raise InvalidInputError(f"parameters of the tool {self.name!r}: {error}", param="tools") from error
        object.__setattr__(self, "declaration", f"type {self.name} = ({arguments}) => any;")


@dataclass(frozen=True, slots=True)
class ToolNamespace:
    """Tools under one name. Without tools the namespace is itself one tool, told about in prose (`python`).

    Raises:
        InvalidInputError: an unusable name, or two tools of one name.
    """

    name: str
    _: KW_ONLY
    description: str | None = None
    tools: tuple[FunctionTool, ...] = ()

    def __post_init__(self) -> None:
        _check_line(self.name, what="the name of a tool namespace", param="tools")
        object.__setattr__(self, "tools", tuple(self.tools))
        _check_distinct([tool.name for tool in self.tools], what=f"tools in the namespace {self.name!r}")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A JSON Schema that the answer should follow, as the developer message announces it.

    Raises:
        InvalidInputError: an unusable name, or a schema that is not JSON.
    """

    name: str
    _: KW_ONLY
    schema: Mapping[str, JsonValue] | bool
    description: str | None = None
    schema_json: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_line(self.name, what="the name of a response format", param="response_format")
        object.__setattr__(self, "schema_json", compact_json(self.schema))


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemContent:
    """The system message: identity, dates, effort, built-in tools and channels. None leaves a line out.

    Attributes:
        date: the current date as YYYY-MM-DD. It is an input: nothing here reads the clock.
        channels: the channels that the model may use; None or empty leaves the line out.
        is_channel_required: whether the line asks for a channel in every message.
        tools: built-in namespaces, such as `builtin_tools.BROWSER`; rendered in order of their names.
    """

    model_identity: str | None = DEFAULT_IDENTITY
    effort: Effort | None = Effort.MEDIUM
    knowledge_cutoff: str | None = DEFAULT_KNOWLEDGE_CUTOFF
    date: str | None = None
    channels: tuple[str, ...] | None = (Channel.ANALYSIS, Channel.COMMENTARY, Channel.FINAL)
    is_channel_required: bool = True
    tools: tuple[ToolNamespace, ...] = ()

    def __post_init__(self) -> None:
        if self.effort is not None:
            object.__setattr__(self, "effort", Effort.parse(self.effort))
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "tools", tuple(self.tools))
        _check_distinct([space.name for space in self.tools], what="tool namespaces")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeveloperContent:
    """A developer message: instructions, function tools, and the formats asked of the answer."""

    instructions: str | None = None
    tools: tuple[ToolNamespace, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        object.__setattr__(self, "response_formats", tuple(self.response_formats))
        _check_distinct([space.name for space in self.tools], what="tool namespaces")

    @staticmethod
    def with_functions(
        tools: Sequence[FunctionTool],
        *,
        instructions: str | None = None,
        response_formats: Sequence[ResponseFormat] = (),
    ) -> DeveloperContent:
        """The usual case: the tools under the namespace `functions`."""
        spaces = (ToolNamespace(FUNCTIONS, tools=tuple(tools)),) if tools else ()
        return DeveloperContent(instructions=instructions, tools=spaces, response_formats=tuple(response_formats))


def _check_line(text: object, *, what: str, param: str) -> None:
    if not isinstance(text, str) or not text.strip() or _UNPRINTABLE.search(text):
        raise InvalidInputError(f"{text!r} cannot be {what}; use one line of printable text", param=param)


def _check_distinct(names: Sequence[str], *, what: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidInputError(f"two {what} are named {name!r}; names must differ", param="tools")


JSON_OBJECT = ResponseFormat("json_object", schema={"type": "object"})
"""What OpenAI's `{"type": "json_object"}` asks for: any object."""
