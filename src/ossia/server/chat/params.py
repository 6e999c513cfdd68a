"""Reads a chat request's tools, choices, format and sampling: OpenAI's words to `TurnRules`, effort and `Sampling`.

Chat Completions wraps in an object what Responses has flat; unwrapped, both are read by the same functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from openai.types.shared import ResponseFormatJSONSchema

from ossia.agent.turns import Sampling
from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import TurnConstraint
from ossia.harmony.content import Effort
from ossia.harmony.json_text import JsonValue
from ossia.server.body import validate
from ossia.server.chat.schema import MAX_STOPS, ChatBody, SamplingBody, Stop
from ossia.server.conversation.tools import FormatSpec, FunctionSpec, ToolSpec, TurnRules
from ossia.server.errors import ApiError, unsupported
from ossia.server.responses.params import read_choice, read_tool
from ossia.server.responses.schema import JsonObject

_FORMATS = "use 'text', 'json_object' or 'json_schema'"


class ChatParams(NamedTuple):
    """What a chat request asks for beside its messages.

    Attributes:
        is_legacy: `functions` were given in place of `tools`; calls are told likewise.
    """

    rules: TurnRules
    effort: Effort
    is_legacy: bool


def read_params(body: ChatBody) -> ChatParams:
    """Raises ApiError or InvalidInputError for what is wrong or cannot be done; it names the parameter."""
    _refuse(body)
    is_legacy = bool(body.functions) and not body.tools
    if is_legacy:
        tools: tuple[ToolSpec, ...] = tuple(
            _read_legacy(function, at=f"functions[{i}]") for i, function in enumerate(body.functions or ())
        )
        choice, allowed = read_choice(_flat_legacy_choice(body.function_call), tools)
    else:
        tools = tuple(read_tool(_flat_tool(tool), at=_at_tool(tool, i)) for i, tool in enumerate(body.tools or ()))
        choice, allowed = read_choice(_flat_choice(body.tool_choice), tools)
    rules = TurnRules(
        tools=tools,
        choice=choice,
        allowed=allowed,
        parallel=body.parallel_tool_calls is not False and not is_legacy,
        format=read_format(body.response_format),
    )
    return ChatParams(rules, _read_effort(body), is_legacy)


def constraint_of(rules: TurnRules) -> TurnConstraint | None:
    """What the engine enforces. An answer of a given form has no preamble: clients have one text for both."""
    constraint = rules.constraint()
    if constraint is None or rules.format is None:
        return constraint
    return dataclasses.replace(constraint, has_preambles=False)


def read_sampling(body: SamplingBody, **more: Any) -> Sampling:
    """What both APIs have in common; `more` are fields of `Sampling`."""
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_read_bias(body.logit_bias),
        seed=body.seed,
        n=body.n or 1,
        **more,
    )


def num_logprobs(body: ChatBody) -> int | None:
    """How many likeliest tokens are wanted for each; None for no logprobs.

    Raises:
        ApiError: `top_logprobs` without `logprobs`.
    """
    if body.top_logprobs and not body.logprobs:
        raise ApiError(
            "top_logprobs is given without logprobs; set logprobs to true", code="invalid_value", param="top_logprobs"
        )
    return (body.top_logprobs or 0) if body.logprobs else None


def read_stop(stop: Stop | None) -> tuple[str, ...]:
    """Texts that end an answer; empty ones are passed over, as OpenAI does.

    Raises:
        ApiError: there are too many.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > MAX_STOPS:
        raise ApiError(
            f"stop has {len(texts)} texts; at most {MAX_STOPS} are taken", code="invalid_value", param="stop"
        )
    return tuple(dict.fromkeys(text for text in texts if text))


def read_format(form: Mapping[str, Any] | None) -> FormatSpec | None:
    """`response_format`; None for free text.

    Raises:
        ApiError: an unknown or malformed one.
    """
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return FormatSpec()
    if form.get("type") != "json_schema":
        raise unsupported(
            f"response_format.type is {str(form.get('type'))[:50]!r}; {_FORMATS}", param="response_format.type"
        )
    wanted = validate(ResponseFormatJSONSchema, form, at="response_format").json_schema
    if wanted.schema_ is None:
        raise ApiError(
            "response_format.json_schema has no schema",
            code="missing_required_parameter",
            param="response_format.json_schema.schema",
        )
    return FormatSpec(
        name=wanted.name, schema=cast("Mapping[str, JsonValue]", wanted.schema_), description=wanted.description
    )


def _refuse(body: ChatBody) -> None:
    if body.modalities and set(body.modalities) != {"text"}:
        raise unsupported("modalities names more than 'text'; this model writes text only", param="modalities")
    if body.audio is not None:
        raise unsupported("this model neither hears nor speaks; leave audio out", param="audio")
    if body.web_search_options is not None:
        raise unsupported(
            "web search is not available in Chat Completions here; leave web_search_options out",
            param="web_search_options",
        )
    if body.tools and body.functions:
        raise ApiError(
            "tools and functions are both given; use tools", code="mutually_exclusive_parameters", param="functions"
        )
    if body.function_call is not None and not body.functions:
        raise ApiError("function_call is given without functions", code="invalid_value", param="function_call")


def _read_effort(body: ChatBody) -> Effort:
    given, param = body.reasoning_effort, "reasoning_effort"
    if given is None and body.reasoning is not None:
        given, param = body.reasoning.get("effort"), "reasoning.effort"
    if given is None:
        return Effort.MEDIUM
    try:
        return Effort.parse(given)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), param=param) from error


def _read_bias(bias: Mapping[str, float] | None) -> Mapping[int, float] | None:
    if not bias:
        return None
    found: dict[int, float] = {}
    for name, value in bias.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise ApiError(f"logit_bias names {name[:30]!r}, no token id", code="invalid_value", param="logit_bias")
        found[int(name)] = value
    return found


# ---- from nested to flat ----


def _at_tool(tool: Mapping[str, Any], i: int) -> str:
    kind = tool.get("type")
    return f"tools[{i}].{kind}" if kind in ("function", "custom") else f"tools[{i}]"


def _flat_tool(tool: Mapping[str, Any]) -> JsonObject:
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        return {"type": kind}
    flat = {**_object(tool, kind, at="tools"), "type": kind}
    form = flat.get("format")
    if isinstance(form, dict) and isinstance(grammar := cast("JsonObject", form).get("grammar"), dict):
        flat["format"] = {**cast("JsonObject", grammar), "type": cast("JsonObject", form).get("type")}
    return flat


def _flat_choice(choice: str | Mapping[str, Any] | None) -> str | JsonObject | None:
    if choice is None or isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "allowed_tools":
        allowed = _object(choice, "allowed_tools", at="tool_choice")
        tools = allowed.get("tools")
        if not isinstance(tools, list):
            raise ApiError("tool_choice.allowed_tools.tools is no array", code="invalid_type", param="tool_choice")
        given = cast("list[object]", tools)
        return {**allowed, "type": kind, "tools": [_flat_choice(tool) for tool in _objects(given)]}
    if kind in ("function", "custom"):
        return {"type": kind, "name": _object(choice, kind, at="tool_choice").get("name")}
    return {"type": kind}


def _objects(values: Sequence[object]) -> list[JsonObject]:
    if not all(isinstance(value, dict) for value in values):
        raise ApiError("tool_choice.allowed_tools.tools holds no objects", code="invalid_type", param="tool_choice")
    return cast("list[JsonObject]", list(values))


def _object(owner: Mapping[str, Any], name: str, *, at: str) -> JsonObject:
    value = owner.get(name)
    if not isinstance(value, dict):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise ApiError(f"{at}: the object {name!r} is missing or no object", code=code, param=f"{at}.{name}")
    return cast("JsonObject", value)


def _read_legacy(function: Mapping[str, Any], *, at: str) -> ToolSpec:
    tool = read_tool({**function, "type": "function"}, at=at)
    assert isinstance(tool, FunctionSpec), "the type says so"
    return tool


def _flat_legacy_choice(choice: str | Mapping[str, Any] | None) -> str | JsonObject | None:
    if choice is None or isinstance(choice, str):
        return choice
    return {"type": "function", "name": choice.get("name")}
