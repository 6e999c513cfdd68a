"""What an output must look like, as plain data: a grammar for bare text, or the rules of one harmony turn. No torch.

`engine/grammar` compiles these. They are hashable by what they say, so that compiled ones can be kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import FUNCTIONS, parse_enum
from ossia.harmony.json_text import JsonValue, compact_json
from ossia.harmony.message import Channel
from ossia.harmony.vocab import ControlToken

MAX_TOOLS = 512
MAX_CALLS = 128
MAX_CHOICES = 4096
CONSTRAINED_JSON = f"{ControlToken.CONSTRAIN}json"
"""The content type that the models were trained to write in front of JSON."""

_BARE_TYPES = frozenset({"json", "code", "text", CONSTRAINED_JSON})


@dataclasses.dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that follows a schema. Properties come in the schema's order.

    Attributes:
        schema: JSON Schema, draft 2020-12 unless it names another. Read once, here: do not change it afterwards.
        text: it, as compact JSON.

    Raises:
        InvalidInputError: the schema is not JSON, or nested too deep.
    """

    schema: Mapping[str, JsonValue] | bool = dataclasses.field(compare=False)
    text: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.schema, Mapping | bool):
            raise InvalidInputError(
                f"a JSON Schema is an object or a boolean, not a {type(self.schema).__name__}", param="schema"
            )
        object.__setattr__(self, "text", compact_json(self.schema))


@dataclasses.dataclass(frozen=True, slots=True)
class JsonObject:
    """Any JSON object."""


@dataclasses.dataclass(frozen=True, slots=True)
class Regex:
    """Text that a regular expression matches from its start to its end.

    Attributes:
        pattern: in the syntax of Rust's regex crate: no look-around, no back-references, no lazy repetition.
    """

    pattern: str

    def __post_init__(self) -> None:
        _check_text(self.pattern, what="a regular expression", param="regex")


@dataclasses.dataclass(frozen=True, slots=True)
class Lark:
    """Text that a context-free grammar derives.

    Attributes:
        grammar: Lark as llguidance reads it, with a rule `start`. It cannot name special tokens.
    """

    grammar: str

    def __post_init__(self) -> None:
        _check_text(self.grammar, what="a Lark grammar", param="lark")


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """One of several texts."""

    options: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.options, str) or not 1 <= len(self.options) <= MAX_CHOICES:
            raise InvalidInputError(f"choice takes 1 to {MAX_CHOICES} texts in a list", param="choice")
        for option in self.options:
            _check_text(option, what="a choice", param="choice")
        object.__setattr__(self, "options", tuple(self.options))


@dataclasses.dataclass(frozen=True, slots=True)
class FreeText:
    """Any text, without control tokens."""


OutputGrammar: TypeAlias = JsonSchema | JsonObject | Regex | Lark | Choice | FreeText


class ToolChoice(StrEnum):
    """Whether the turn may, must or must not call a tool. For a named tool: REQUIRED, and `allowed_tools`."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class Reasoning(StrEnum):
    """Whether the turn may, must or must not hold messages on the analysis channel."""

    ALLOWED = "allowed"
    REQUIRED = "required"
    NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ToolGrammar:
    """How a tool is called.

    Attributes:
        recipient: its name in a header: `functions.f`, `browser.search`, `python`.
        arguments: what the body of a call must look like. It must be JSON for tools under `functions.`.
        is_strict: False: where the schema cannot be enforced, its unknown parts are left out, and at worst any JSON
            object will do. True: that is an error.
        channels: those that a call may be written on.
        content_types: those that its header may name; None for none.
    """

    recipient: str
    arguments: OutputGrammar
    is_strict: bool = True
    channels: tuple[Channel, ...]
    content_types: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if not self.recipient or any(letter.isspace() or letter in "{<" for letter in self.recipient):
            raise InvalidInputError(
                f"{self.recipient!r} cannot name a tool in a header; use a name without spaces, '{{' and '<'",
                param="tools",
            )
        is_json = isinstance(self.arguments, JsonSchema | JsonObject)
        if self.recipient.startswith(f"{FUNCTIONS}.") and not is_json:
            raise InvalidInputError(
                f"the arguments of {self.recipient} are not JSON, but those of tools under '{FUNCTIONS}.' must be; "
                "give a JSON Schema, or name the tool otherwise (as in 'custom.f')",
                param="tools",
            )
        if not self.channels or Channel.FINAL in self.channels:
            raise InvalidInputError("a tool is called on the channels analysis or commentary", param="tools")
        if not self.content_types or any(t is not None and t not in _BARE_TYPES for t in self.content_types):
            raise InvalidInputError(
                f"content types of a call are None or one of {', '.join(sorted(_BARE_TYPES))}; got "
                f"{self.content_types!r}",
                param="tools",
            )

    @staticmethod
    def function(
        name: str, *, parameters: Mapping[str, JsonValue] | bool | None = None, is_strict: bool = True
    ) -> ToolGrammar:
        """A function that a developer declared: `functions.<name>`, JSON on the commentary channel.

        Args:
            name: bare, or with its namespace.
            parameters: JSON Schema of the arguments; None for a function that takes none: an empty object.
            is_strict: see the class.
        """
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        return ToolGrammar(
            recipient=name if name.startswith(f"{FUNCTIONS}.") else f"{FUNCTIONS}.{name}",
            arguments=JsonSchema(schema if parameters is None else parameters),
            is_strict=is_strict,
            channels=(Channel.COMMENTARY,),
            content_types=(CONSTRAINED_JSON, "json", None),
        )

    @staticmethod
    def builtin(
        recipient: str, *, parameters: Mapping[str, JsonValue] | bool | None = None, is_strict: bool = False
    ) -> ToolGrammar:
        """A tool of the system message: JSON for `browser.search` and the like, raw text (code) without parameters."""
        json_types = (CONSTRAINED_JSON, "json") if parameters is not None else ()
        return ToolGrammar(
            recipient=recipient,
            arguments=FreeText() if parameters is None else JsonSchema(parameters),
            is_strict=is_strict,
            channels=(Channel.ANALYSIS, Channel.COMMENTARY),
            content_types=("code", *json_types, None),
        )

    @staticmethod
    def custom(recipient: str, *, grammar: OutputGrammar | None = None) -> ToolGrammar:
        """A tool of a developer that takes text, by default any. It lies outside `functions.`, as in `custom.f`."""
        return ToolGrammar(
            recipient=recipient,
            arguments=FreeText() if grammar is None else grammar,
            channels=(Channel.COMMENTARY,),
            content_types=(None, "code", "text"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TurnConstraint:
    """What the model may write behind the prompt's `<|start|>assistant`, headers and all.

    Attributes:
        tools: those declared in the prompt.
        tool_choice: see ToolChoice. With NONE the tools may stay listed.
        allowed_tools: recipients that may be called; None for all.
        response_format: what the message on the final channel must look like.
        reasoning: see Reasoning.
        has_preambles: whether messages to the user may stand on the commentary channel before a call; without
            tools to call there are none.
        parallel_calls: whether several calls may follow one another in the turn.
        max_calls: at most so many; None for as many as `MAX_CALLS`. Without `parallel_calls` it is one.
    """

    tools: tuple[ToolGrammar, ...] = ()
    tool_choice: ToolChoice = ToolChoice.AUTO
    allowed_tools: tuple[str, ...] | None = None
    response_format: OutputGrammar = dataclasses.field(default_factory=FreeText)
    reasoning: Reasoning = Reasoning.ALLOWED
    has_preambles: bool = True
    parallel_calls: bool = False
    max_calls: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        choice = parse_enum(ToolChoice, self.tool_choice, what="tool_choice", param="tool_choice")
        object.__setattr__(self, "tool_choice", choice)
        reasoning = parse_enum(Reasoning, self.reasoning, what="reasoning", param="reasoning")
        object.__setattr__(self, "reasoning", reasoning)
        names = [tool.recipient for tool in self.tools]
        _check_names(names)
        if self.allowed_tools is not None:
            object.__setattr__(self, "allowed_tools", tuple(self.allowed_tools))
            for name in self.allowed_tools:
                if name not in names:
                    declared = ", ".join(names) or "none"
                    raise InvalidInputError(
                        f"tool_choice names {name!r}, but the tools are: {declared}", param="tool_choice"
                    )
        if self.tool_choice is ToolChoice.REQUIRED and not self.callable_tools:
            raise InvalidInputError(
                "tool_choice requires a call, but there is no tool to call; give tools or choose 'auto' or 'none'",
                param="tool_choice",
            )
        if self.max_calls is not None and not 1 <= self.max_calls <= MAX_CALLS:
            raise InvalidInputError(
                f"max_calls is {self.max_calls}; use 1 to {MAX_CALLS}, or tool_choice 'none'", param="max_calls"
            )

    @property
    def callable_tools(self) -> tuple[ToolGrammar, ...]:
        """The tools that this turn may call."""
        if self.tool_choice is ToolChoice.NONE:
            return ()
        allowed = self.allowed_tools
        return tuple(tool for tool in self.tools if allowed is None or tool.recipient in allowed)

    @property
    def num_calls(self) -> int:
        """How many calls the turn may make."""
        if not self.callable_tools:
            return 0
        return (self.max_calls or MAX_CALLS) if self.parallel_calls else 1


Constraint: TypeAlias = JsonSchema | JsonObject | Regex | Lark | Choice | FreeText | TurnConstraint


def _check_names(names: Sequence[str]) -> None:
    if len(names) > MAX_TOOLS:
        raise InvalidInputError(f"{len(names)} tools are given; at most {MAX_TOOLS} can be constrained", param="tools")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidInputError(f"two tools are named {name!r}; names must differ", param="tools")


def _check_text(text: object, *, what: str, param: str) -> None:
    if not isinstance(text, str) or not text:
        raise InvalidInputError(f"{text!r} is not {what}; give a text that is not empty", param=param)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{what} holds half a surrogate pair ({error}); give Unicode text", param=param
        ) from error
