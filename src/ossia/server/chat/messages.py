"""Chat messages to harmony messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ossia.harmony.message import Message, Role
from ossia.server.conversation.history import Block, Call, History, Text, Thought, recipient_of
from ossia.server.errors import ApiError, unsupported
from ossia.server.replay import ReplayCache
from ossia.server.responses.items import is_name, read_text
from ossia.server.responses.schema import JsonObject
from ossia.server.settings import ReasoningPolicy

_ROLES = {"system": Role.SYSTEM, "developer": Role.DEVELOPER, "user": Role.USER}
_ALL = "'developer', 'system', 'user', 'assistant', 'tool' or 'function'"


def read_messages(
    messages: Sequence[JsonObject], *, replay: ReplayCache, owner: str, policy: ReasoningPolicy
) -> list[Message]:
    """The conversation.

    Args:
        policy: with summaries shown, what comes back as reasoning is not what the model said, and is left out.

    Raises:
        ApiError: one is malformed, or holds what the model cannot read; `param` says where.
    """
    history = History(replay, owner=owner)
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        role = message.get("role")
        content = message.get("content")
        if role in _ROLES:
            history.add_text(_ROLES[role], read_text(content, at=f"{at}.content"))
        elif role == "assistant":
            history.add_assistant(_read_assistant(message, at=at, policy=policy))
        elif role == "tool":
            call_id = message.get("tool_call_id")
            if not is_name(call_id):
                code = "missing_required_parameter" if call_id is None else "invalid_value"
                raise ApiError(f"{at}.tool_call_id is missing or no id", code=code, param=f"{at}.tool_call_id")
            history.add_result(call_id, read_text(content, at=f"{at}.content"), param=f"{at}.tool_call_id")
        elif role == "function":
            name = _read_name(message, at=at)
            history.add_result_of(recipient_of(name), read_text(content, at=f"{at}.content"))
        else:
            code = "missing_required_parameter" if role is None else "invalid_value"
            raise ApiError(f"{at}.role is {str(role)[:30]!r}; use {_ALL}", code=code, param=f"{at}.role")
    return history.messages


def _read_assistant(message: Mapping[str, Any], *, at: str, policy: ReasoningPolicy) -> list[Block]:
    blocks: list[Block] = []
    thought = _read_thought(message, at=at)
    if thought and policy is not ReasoningPolicy.SUMMARY:
        blocks.append(Thought.of(thought))
    calls = _read_calls(message, at=at)
    content = message.get("content")
    if content is None and isinstance(refusal := message.get("refusal"), str):
        content = refusal
    if message.get("audio") is not None:
        raise unsupported(f"{at} refers to audio; this model reads text only", param=f"{at}.audio")
    if content is None and not calls and not thought:
        raise ApiError(
            f"{at} of the assistant has neither content nor tool_calls",
            code="missing_required_parameter",
            param=f"{at}.content",
        )
    text = "" if content is None else read_text(content, at=f"{at}.content")
    if text or (content is not None and not calls):
        blocks.append(Text(text))
    return [*blocks, *calls]


def _read_thought(message: Mapping[str, Any], *, at: str) -> str:
    """`reasoning`, or `reasoning_content`: servers differ in what they call it."""
    for name in ("reasoning", "reasoning_content"):
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise ApiError(f"{at}.{name} is no text", code="invalid_type", param=f"{at}.{name}")
        if value:
            return value
    return ""


def _read_calls(message: Mapping[str, Any], *, at: str) -> list[Call]:
    given = message.get("tool_calls")
    legacy = message.get("function_call")
    if given is None and legacy is None:
        return []
    if given is None:
        where = f"{at}.function_call"
        function = _read_object(legacy, at=where)
        name = _read_name(function, at=where)
        return [Call("", recipient_of(name), _read_field(function, "arguments", at=where))]
    if not isinstance(given, list):
        raise ApiError(f"{at}.tool_calls is no array", code="invalid_type", param=f"{at}.tool_calls")
    return [_read_call(call, at=f"{at}.tool_calls[{i}]") for i, call in enumerate(cast("list[object]", given))]


def _read_call(data: object, *, at: str) -> Call:
    call = _read_object(data, at=at)
    kind = call.get("type") or "function"
    call_id = call.get("id")
    if not is_name(call_id):
        code = "missing_required_parameter" if call_id is None else "invalid_value"
        raise ApiError(f"{at}.id is missing or no id", code=code, param=f"{at}.id")
    if kind == "function":
        where = f"{at}.function"
        function = _read_object(call.get("function"), at=where)
        name = _read_name(function, at=where)
        return Call(call_id, recipient_of(name), _read_field(function, "arguments", at=where))
    if kind == "custom":
        where = f"{at}.custom"
        custom = _read_object(call.get("custom"), at=where)
        name = _read_name(custom, at=where)
        return Call(call_id, recipient_of(name, is_custom=True), _read_field(custom, "input", at=where))
    raise ApiError(
        f"{at}.type is {str(kind)[:30]!r}; use 'function' or 'custom'", code="invalid_value", param=f"{at}.type"
    )


def _read_object(value: object, *, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise ApiError(f"{at} is missing or no object", code=code, param=at)
    return cast("JsonObject", value)


def _read_field(owner: Mapping[str, Any], name: str, *, at: str) -> str:
    value = owner.get(name)
    if not isinstance(value, str):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise ApiError(f"{at}.{name} is missing or no text", code=code, param=f"{at}.{name}")
    return value


def _read_name(owner: Mapping[str, Any], *, at: str) -> str:
    name = _read_field(owner, "name", at=at)
    if not name or any(letter.isspace() or not letter.isprintable() for letter in name):
        raise ApiError(f"{at}.name is {name[:50]!r}, which names no tool", code="invalid_value", param=f"{at}.name")
    return name
