"""Reads a request's tools, choice, thinking and format: Anthropic's words to `TurnRules` and effort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import ToolChoice
from ossia.harmony.content import Effort
from ossia.harmony.json_text import JsonValue
from ossia.server.conversation.tools import FormatSpec, FunctionSpec, TurnRules
from ossia.server.errors import ApiError, unsupported
from ossia.server.messages_api.schema import CountBody
from ossia.server.responses.params import read_tool
from ossia.server.settings import ReasoningPolicy

LOW_BUDGET = 4096
"""Thinking budgets below this many tokens mean low effort."""
HIGH_BUDGET = 16_384
"""Thinking budgets from this many tokens on mean high effort."""

_CHOICES = {"auto": ToolChoice.AUTO, "any": ToolChoice.REQUIRED, "tool": ToolChoice.REQUIRED, "none": ToolChoice.NONE}
_EFFORTS = {"xhigh": "high", "max": "high"}


class MessagesParams(NamedTuple):
    """What a request asks for beside its messages.

    Attributes:
        policy: what is shown of thoughts: the server's choice, or less where the client asks for less.
        shows_thinking: thoughts are told at all.
    """

    rules: TurnRules
    effort: Effort
    policy: ReasoningPolicy
    shows_thinking: bool


def read_params(body: CountBody, *, policy: ReasoningPolicy) -> MessagesParams:
    """Raises ApiError or InvalidInputError for what is wrong or cannot be done; it names the parameter."""
    if body.mcp_servers:
        raise unsupported("MCP servers are not available in Messages here; leave mcp_servers out", param="mcp_servers")
    tools = tuple(_read_tool(tool, at=f"tools[{i}]") for i, tool in enumerate(body.tools or ()))
    choice = body.tool_choice or {"type": "auto"}
    kind = choice.get("type")
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise ApiError(
            f"tool_choice.type is {str(kind)[:30]!r}; use 'auto', 'any', 'tool' or 'none'",
            code="invalid_value",
            param="tool_choice.type",
        )
    allowed = None
    if kind == "tool":
        name = choice.get("name")
        if not isinstance(name, str):
            raise ApiError("tool_choice.name is missing", code="missing_required_parameter", param="tool_choice.name")
        allowed = (name,)
    rules = TurnRules(
        tools=tools,
        choice=_CHOICES[kind],
        allowed=allowed,
        parallel=choice.get("disable_parallel_tool_use") is not True,
        format=_read_format(body),
    )
    thinking = body.thinking or {}
    shows = _shows_thinking(thinking)
    is_shown = shows and thinking.get("display") != "omitted"
    return MessagesParams(rules, _read_effort(body, thinking), policy if is_shown else ReasoningPolicy.HIDDEN, shows)


def _read_tool(tool: Mapping[str, Any], *, at: str) -> FunctionSpec:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise unsupported(
            f"the tool {str(kind)[:60]!r} is not available on this server; declare tools with input_schema",
            param=f"{at}.type",
        )
    if not isinstance(tool.get("input_schema"), dict):
        code = "missing_required_parameter" if tool.get("input_schema") is None else "invalid_type"
        raise ApiError(f"{at}.input_schema is missing or no object", code=code, param=f"{at}.input_schema")
    spec = read_tool(
        {
            "type": "function",
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": tool["input_schema"],
            "strict": True if tool.get("strict") is True else None,
        },
        at=at,
    )
    assert isinstance(spec, FunctionSpec), "the type says so"
    return spec


def _read_format(body: CountBody) -> FormatSpec | None:
    form, at = body.output_format, "output_format"
    if body.output_config is not None and body.output_config.format is not None:
        form, at = body.output_config.format, "output_config.format"
    if form is None:
        return None
    if form.get("type") != "json_schema":
        raise unsupported(f"{at}.type is {str(form.get('type'))[:30]!r}; use 'json_schema'", param=f"{at}.type")
    schema = form.get("schema")
    if not isinstance(schema, dict):
        code = "missing_required_parameter" if schema is None else "invalid_type"
        raise ApiError(f"{at}.schema is missing or no object", code=code, param=f"{at}.schema")
    return FormatSpec(name="answer", schema=cast("Mapping[str, JsonValue]", schema))


def _shows_thinking(thinking: Mapping[str, Any]) -> bool:
    kind = thinking.get("type", "disabled")
    if kind not in ("enabled", "adaptive", "between_tools", "disabled"):
        raise ApiError(
            f"thinking.type is {str(kind)[:30]!r}; use 'enabled', 'adaptive' or 'disabled'",
            code="invalid_value",
            param="thinking.type",
        )
    return kind in ("enabled", "adaptive")


def _read_effort(body: CountBody, thinking: Mapping[str, Any]) -> Effort:
    """`output_config.effort`, else by the thinking budget; a model that shall not think thinks little."""
    given = body.output_config.effort if body.output_config is not None else None
    if given is not None:
        try:
            return Effort.parse(_EFFORTS.get(given, given))
        except InvalidInputError as error:
            raise InvalidInputError(str(error), param="output_config.effort") from error
    kind = thinking.get("type")
    if kind == "disabled":
        return Effort.LOW
    if kind != "enabled":
        return Effort.MEDIUM
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        code = "missing_required_parameter" if budget is None else "invalid_value"
        raise ApiError(
            "thinking.budget_tokens must be a whole number of at least 1", code=code, param="thinking.budget_tokens"
        )
    if budget < LOW_BUDGET:
        return Effort.LOW
    return Effort.MEDIUM if budget < HIGH_BUDGET else Effort.HIGH
