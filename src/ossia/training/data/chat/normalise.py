"""Chat messages of data sets as OpenAI's API has them: reasoning by that name, arguments as text, ids for calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

from ossia.core.errors import InvalidInputError
from ossia.harmony.json_text import compact_json

JsonObject: TypeAlias = Mapping[str, Any]

REASONING = ("reasoning", "reasoning_content", "thinking")
"""What data sets call a message's chain of thought."""


def normalise_messages(messages: Sequence[JsonObject]) -> list[JsonObject]:
    """The messages as OpenAI's API has them: reasoning by that name, arguments as text, ids for calls and results.

    Raises:
        InvalidInputError: a call whose arguments are no JSON object, or a result without a call.
    """
    normal: list[JsonObject] = []
    open_calls: list[tuple[str, str]] = []  # id and name, in order
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        role = message.get("role")
        if role == "assistant":
            fixed = _normalise_assistant(message, at=at, number=i)
            calls = cast("list[JsonObject]", fixed.get("tool_calls", []))
            open_calls = [(str(call["id"]), str(_named(call).get("name"))) for call in calls]
        elif role == "tool":
            fixed = _normalise_result(message, at=at, open_calls=open_calls)
        else:
            fixed = message
        normal.append(fixed)
    return normal


def _normalise_assistant(message: JsonObject, *, at: str, number: int) -> JsonObject:
    fixed = {key: value for key, value in message.items() if key != "thinking"}
    if "thinking" in message and not any(message.get(key) for key in REASONING[:2]):
        fixed["reasoning"] = message["thinking"]
    if not message.get("tool_calls"):
        fixed.pop("tool_calls", None)
        return fixed
    given = message["tool_calls"]
    if not isinstance(given, list):
        raise InvalidInputError(f"{at}.tool_calls is no array", param=f"{at}.tool_calls")
    fixed["tool_calls"] = [
        _normalise_call(call, at=f"{at}.tool_calls[{j}]", default_id=f"call_{number}_{j}")
        for j, call in enumerate(cast("list[object]", given))
    ]
    return fixed


def _normalise_call(data: object, *, at: str, default_id: str) -> JsonObject:
    if not isinstance(data, dict):
        raise InvalidInputError(f"{at} is {type(data).__name__}; a call is an object", param=at)
    call = without_nulls(cast("JsonObject", data))
    if "function" not in call and "custom" not in call and "name" in call:
        call = {"id": call.get("id"), "function": {key: call[key] for key in ("name", "arguments") if key in call}}
    fixed = dict(call)
    fixed["id"] = call.get("id") or default_id
    function = call.get("function")
    if isinstance(function, dict):
        inner = cast("JsonObject", function)
        fixed["function"] = {**inner, "arguments": _arguments(inner.get("arguments"), at=f"{at}.function.arguments")}
    return fixed


def _arguments(value: object, *, at: str) -> str:
    """As text. The text of a row is kept as it is written: it is what the model is to write."""
    if value is None or value == "":
        return "{}"
    if isinstance(value, dict):
        return compact_json(cast("JsonObject", value))
    if isinstance(value, str):
        try:
            if isinstance(json.loads(value), dict):
                return value
        except ValueError:
            pass
    raise InvalidInputError(f"{at} is no JSON object: {str(value)[:60]!r}", param=at)


def _named(call: JsonObject) -> JsonObject:
    inner = call.get("function") or call.get("custom")
    return cast("JsonObject", inner) if isinstance(inner, dict) else {}


def _normalise_result(message: JsonObject, *, at: str, open_calls: list[tuple[str, str]]) -> JsonObject:
    fixed = dict(message)
    if isinstance(message.get("content"), dict):
        fixed["content"] = compact_json(message["content"])
    if message.get("tool_call_id"):
        open_calls[:] = [call for call in open_calls if call[0] != message["tool_call_id"]]
        return fixed
    name = message.get("name")
    for i, (call_id, called) in enumerate(open_calls):
        if name is None or name == called:
            del open_calls[i]
            return {**fixed, "tool_call_id": call_id}
    raise InvalidInputError(f"{at} is a tool's result, but no call before it waits for one", param=at)


def without_nulls(data: Mapping[str, Any]) -> JsonObject:
    """An object without its null fields: data sets fill in those that a row does not have."""
    return {key: value for key, value in data.items() if value is not None}


def require_text(value: object, *, at: str) -> str:
    """The value, if it is text.

    Raises:
        InvalidInputError: it is something else.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"{at} is {type(value).__name__}; give text or a list of messages", param=at)
    return value
