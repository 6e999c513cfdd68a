"""Reads a request's tools, tool_choice, text format and reasoning: OpenAI's words to `TurnRules` and effort."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from openai.types.responses import (
    CustomTool,
    FunctionTool,
    NamespaceTool,
    ResponseFormatTextJSONSchemaConfig,
    ResponseTextConfig,
    ToolChoiceAllowed,
)
from openai.types.shared import Reasoning
from openai.types.shared.custom_tool_input_format import Grammar
from pydantic import BaseModel

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import Lark, Regex, ToolChoice
from ossia.harmony.content import FUNCTIONS, Effort
from ossia.harmony.json_text import JsonValue
from ossia.server.body import validate
from ossia.server.conversation.tools import CUSTOM, CustomSpec, FormatSpec, FunctionSpec, ToolSpec, TurnRules
from ossia.server.errors import ApiError, unsupported
from ossia.server.makers import HostedTool
from ossia.server.responses.hosted import HOSTED_TYPES, read_hosted, without_secrets
from ossia.server.responses.schema import PromptBody

_M = TypeVar("_M", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TAKEN = frozenset({FUNCTIONS, CUSTOM, "assistant", "browser", "container", "python", "mcp", "all", "user"})
"""Recipients that mean something else."""
_CHOICES = {choice.value: choice for choice in ToolChoice}


class Chosen(NamedTuple):
    """What `tool_choice` says.

    Attributes:
        names: of the client's tools that may be called; None if `tool_choice` names none at all: all may.
        hosted: those of the server's tools that may be called, where `names` is set.
    """

    choice: ToolChoice
    names: tuple[str, ...] | None = None
    hosted: tuple[HostedTool, ...] = ()


class PromptParams(NamedTuple):
    """What the prompt needs beside messages, and how it was said, to be told again in the response.

    Attributes:
        hosted: the tools that the server is to run itself. With any, `rules` leaves the choice among tools open.
        chosen: what `tool_choice` says.
        echo: the fields `tools`, `tool_choice`, `parallel_tool_calls`, `text` and `reasoning` of the response.
    """

    rules: TurnRules
    effort: Effort
    summary: str | None
    hosted: tuple[HostedTool, ...]
    chosen: Chosen
    echo: dict[str, Any]


def read_params(body: PromptBody, *, enabled: Sequence[str] = ()) -> PromptParams:
    """What a request says beside its items.

    Args:
        enabled: kinds of tools that the server runs itself.

    Raises ApiError or InvalidInputError for what is wrong or cannot be done; it names the parameter."""
    tools: list[ToolSpec] = []
    hosted: list[HostedTool] = []
    for i, tool in enumerate(body.tools or ()):
        own = read_hosted(tool, at=f"tools[{i}]", enabled=enabled)
        if own is None:
            tools += read_tools(tool, at=f"tools[{i}]")
        else:
            hosted.append(own)
    _check_labels(hosted, tools)
    chosen = read_chosen(body.tool_choice, hosted=hosted)
    wanted = body.text or {}
    text = validate(ResponseTextConfig, {"verbosity": wanted.get("verbosity")}, at="text")
    reasoning = validate(Reasoning, body.reasoning or {}, at="reasoning")
    parallel = body.parallel_tool_calls is not False
    try:
        effort = Effort.MEDIUM if reasoning.effort is None else Effort.parse(reasoning.effort)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), param="reasoning.effort") from error
    is_open = bool(hosted) and chosen.choice is not ToolChoice.NONE
    rules = TurnRules(
        tools=tuple(tools),
        choice=ToolChoice.AUTO if is_open else chosen.choice,
        allowed=None if is_open else chosen.names,
        parallel=parallel,
        format=read_format(body.text),
    )
    summary = reasoning.summary or reasoning.generate_summary
    echo: dict[str, Any] = {
        "tools": [without_secrets(tool) for tool in body.tools or ()],
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "parallel_tool_calls": parallel,
        "text": {
            "format": wanted.get("format") or {"type": "text"},
            "verbosity": text.verbosity or "medium",
        },
        "reasoning": {"effort": effort.value, "summary": summary},
    }
    return PromptParams(rules, effort, summary, tuple(hosted), chosen, echo)


def _check_labels(hosted: Sequence[HostedTool], tools: Sequence[ToolSpec]) -> None:
    """Refuse MCP servers whose label names something else to the model."""
    taken = {*_TAKEN, *(tool.namespace for tool in tools if isinstance(tool, FunctionSpec))}
    for wanted in hosted:
        label = wanted.wire.get("server_label")
        if not isinstance(label, str):
            continue
        if label in taken:
            raise ApiError(
                f"{label[:60]!r} cannot label an MCP server here; it names other tools",
                code="invalid_value",
                param=f"{wanted.at}.server_label",
            )
        taken.add(label)


def read_tools(tool: Mapping[str, Any], *, at: str) -> list[ToolSpec]:
    """One of `tools`, or all functions of a namespace, as Codex declares those for its sub-agents."""
    if tool.get("type") != "namespace":
        return [read_tool(tool, at=at)]
    space = validate(NamespaceTool, tool, at=at)
    if space.name in _TAKEN or not _SPACE.fullmatch(space.name):
        raise ApiError(
            f"{space.name[:60]!r} cannot name a namespace here; use letters, digits, '_' and '-', and none of "
            f"{', '.join(sorted(_TAKEN))}",
            code="invalid_value",
            param=f"{at}.name",
        )
    found: list[ToolSpec] = []
    for i, data in enumerate(cast("list[Mapping[str, Any]]", tool["tools"])):
        spec = read_tool(data, at=f"{at}.tools[{i}]")
        if not isinstance(spec, FunctionSpec):
            raise unsupported("a namespace holds functions only on this server", param=f"{at}.tools[{i}].type")
        found.append(dataclasses.replace(spec, namespace=space.name, namespace_description=space.description))
    return found


def read_tool(tool: Mapping[str, Any], *, at: str) -> ToolSpec:
    """One of `tools`."""
    kind = tool.get("type")
    if kind == "function":
        function = validate(FunctionTool, tool, at=at)
        return FunctionSpec(
            name=_check_name(function.name, at=at),
            description=function.description or "",
            parameters=cast("Mapping[str, JsonValue] | None", function.parameters),
            is_strict=function.strict,
        )
    if kind == "custom":
        custom = validate(CustomTool, tool, at=at)
        form = None
        if isinstance(custom.format, Grammar):
            kinds = {"lark": Lark, "regex": Regex}
            if custom.format.syntax not in kinds:
                raise ApiError("the syntax is 'lark' or 'regex'", code="invalid_value", param=f"{at}.format.syntax")
            form = kinds[custom.format.syntax](custom.format.definition)
        return CustomSpec(name=_check_name(custom.name, at=at), description=custom.description or "", format=form)
    if not isinstance(kind, str):
        raise ApiError(
            f"{at}.type is missing; it is 'function' or 'custom'", code="missing_required_parameter", param=f"{at}.type"
        )
    raise unsupported(
        f"the tool {kind!r} is not available on this server; declare 'function' or 'custom' tools", param=f"{at}.type"
    )


def read_choice(
    choice: str | Mapping[str, Any] | None, _tools: Sequence[ToolSpec] = ()
) -> tuple[ToolChoice, tuple[str, ...] | None]:
    """`tool_choice` where all tools are the client's: what may be done, and which of them may be called (None: all).

    Raises:
        ApiError: a form or a tool that is not known here.
    """
    chosen = read_chosen(choice, hosted=())
    return chosen.choice, chosen.names


def read_chosen(choice: str | Mapping[str, Any] | None, *, hosted: Sequence[HostedTool]) -> Chosen:
    """`tool_choice` in any of its forms.

    Raises:
        ApiError: a form or a tool that is not known here.
    """
    if choice is None:
        return Chosen(ToolChoice.AUTO)
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise ApiError(
                f"tool_choice is {choice[:50]!r}; use 'none', 'auto', 'required' or an object",
                code="invalid_value",
                param="tool_choice",
            )
        return Chosen(_CHOICES[choice])
    if choice.get("type") == "allowed_tools":
        allowed = validate(ToolChoiceAllowed, choice, at="tool_choice")
        if not allowed.tools:
            raise ApiError(
                "tool_choice allows no tool; use 'none' for that", code="invalid_value", param="tool_choice.tools"
            )
        names: list[str] = []
        own: list[HostedTool] = []
        for i, tool in enumerate(allowed.tools):
            name, found = _choose(tool, at=f"tool_choice.tools[{i}]", hosted=hosted)
            names += [] if name is None else [name]
            own += found
        return Chosen(_CHOICES[allowed.mode], tuple(dict.fromkeys(names)), tuple(own))
    name, found = _choose(choice, at="tool_choice", hosted=hosted)
    return Chosen(ToolChoice.REQUIRED, () if name is None else (name,), tuple(found))


def _choose(choice: Mapping[str, Any], *, at: str, hosted: Sequence[HostedTool]) -> tuple[str | None, list[HostedTool]]:
    """One tool that is chosen: the name of a client's, or some of the server's own."""
    kind = choice.get("type")
    if kind in ("function", "custom"):
        name = choice.get("name")
        if not isinstance(name, str):
            raise ApiError(f"{at}.name is missing", code="missing_required_parameter", param=f"{at}.name")
        return name, []
    label = choice.get("server_label")
    found = [
        tool
        for tool in hosted
        if isinstance(kind, str)
        and tool.kind == HOSTED_TYPES.get(kind)
        and (label is None or tool.wire.get("server_label") == label)
    ]
    if not found:
        raise unsupported(
            f"{at} asks for {str(kind)[:50]!r}, which is not among the tools of this request", param=f"{at}.type"
        )
    return None, found


def read_format(text: Mapping[str, Any] | None) -> FormatSpec | None:
    """`text.format`; None for free text."""
    form = (text or {}).get("format")
    if form is not None and not isinstance(form, dict):
        raise ApiError("text.format is no object", code="invalid_type", param="text.format")
    form = cast("Mapping[str, Any] | None", form)
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return FormatSpec()
    if form.get("type") == "json_schema":
        wanted = validate(ResponseFormatTextJSONSchemaConfig, form, at="text.format")
        return FormatSpec(
            name=_check_name(wanted.name, at="text.format"),
            schema=cast("Mapping[str, JsonValue]", wanted.schema_),
            description=wanted.description,
        )
    raise unsupported(
        f"text.format.type is {str(form.get('type'))[:50]!r}; use 'text', 'json_object' or 'json_schema'",
        param="text.format.type",
    )


def _check_name(name: str, *, at: str) -> str:
    if not _NAME.fullmatch(name):
        raise ApiError(
            f"{name[:60]!r} is no name; use up to 128 letters, digits, '_', '-' and '.'",
            code="invalid_value",
            param=f"{at}.name",
        )
    return name
