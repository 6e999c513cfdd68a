"""Messages as OpenAI's Chat Completions has them, to harmony messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

from ossia.agent.chat_history import Block, Call, ChatHistory, Text, Thought, recipient_of
from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Message, Role

MAX_NAME = 200
_ROLES = {"system": Role.SYSTEM, "developer": Role.DEVELOPER, "user": Role.USER}
_ALL = "'developer', 'system', 'user', 'assistant', 'tool' or 'function'"
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "summary_text", "refusal", "reasoning_text"})


def read_chat_messages(
    messages: Sequence[Mapping[str, Any]], *, history: ChatHistory | None = None, with_reasoning: bool = True
) -> list[Message]:
    """The conversation.

    Args:
        messages: decoded JSON.
        history: builds the messages; one that knows what was sampled puts that back in.
        with_reasoning: False leaves out what comes back as reasoning.

    Raises:
        InvalidInputError: one is malformed, or holds what the model cannot read; `param` says where.
    """
    history = ChatHistory() if history is None else history
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        role = message.get("role")
        content = message.get("content")
        if isinstance(role, str) and role in _ROLES:
            history.add_text(_ROLES[role], read_text(content, at=f"{at}.content"))
        elif role == "assistant":
            history.add_assistant(_read_assistant(message, at=at, with_reasoning=with_reasoning))
        elif role == "tool":
            call_id = message.get("tool_call_id")
            if not is_name(call_id):
                raise _fault(call_id, "is missing or no id", at=f"{at}.tool_call_id")
            history.add_result(call_id, read_text(content, at=f"{at}.content"), param=f"{at}.tool_call_id")
        elif role == "function":
            name = _read_name(message, at=at)
            history.add_result_of(recipient_of(name), read_text(content, at=f"{at}.content"))
        else:
            code = "missing_required_parameter" if role is None else "invalid_value"
            raise InvalidInputError(f"{at}.role is {str(role)[:30]!r}; use {_ALL}", code=code, param=f"{at}.role")
    return history.messages


def _read_assistant(message: Mapping[str, Any], *, at: str, with_reasoning: bool) -> list[Block]:
    blocks: list[Block] = []
    thought = _read_thought(message, at=at)
    if thought and with_reasoning:
        blocks.append(Thought.of(thought))
    calls = _read_calls(message, at=at)
    content = message.get("content")
    if content is None and isinstance(refusal := message.get("refusal"), str):
        content = refusal
    if message.get("audio") is not None:
        raise InvalidInputError(
            f"{at} refers to audio; this model reads text only", code="unsupported_value", param=f"{at}.audio"
        )
    if content is None and not calls and not thought:
        raise InvalidInputError(
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
            raise InvalidInputError(f"{at}.{name} is no text", code="invalid_type", param=f"{at}.{name}")
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
        raise InvalidInputError(f"{at}.tool_calls is no array", code="invalid_type", param=f"{at}.tool_calls")
    return [_read_call(call, at=f"{at}.tool_calls[{i}]") for i, call in enumerate(cast("list[object]", given))]


def _read_call(data: object, *, at: str) -> Call:
    call = _read_object(data, at=at)
    kind = call.get("type") or "function"
    call_id = call.get("id")
    if not is_name(call_id):
        raise _fault(call_id, "is missing or no id", at=f"{at}.id")
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
    raise InvalidInputError(
        f"{at}.type is {str(kind)[:30]!r}; use 'function' or 'custom'", code="invalid_value", param=f"{at}.type"
    )


def _read_object(value: object, *, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _fault(value, "is missing or no object", at=at, code="invalid_type")
    return cast("Mapping[str, Any]", value)


def _read_field(owner: Mapping[str, Any], name: str, *, at: str) -> str:
    value = owner.get(name)
    if not isinstance(value, str):
        raise _fault(value, "is missing or no text", at=f"{at}.{name}", code="invalid_type")
    return value


def _read_name(owner: Mapping[str, Any], *, at: str) -> str:
    name = _read_field(owner, "name", at=at)
    if not name or any(letter.isspace() or not letter.isprintable() for letter in name):
        raise InvalidInputError(
            f"{at}.name is {name[:50]!r}, which names no tool", code="invalid_value", param=f"{at}.name"
        )
    return name


def _fault(value: object, what: str, *, at: str, code: str = "invalid_value") -> InvalidInputError:
    return InvalidInputError(f"{at} {what}", code="missing_required_parameter" if value is None else code, param=at)


def read_text(content: object, *, at: str) -> str:
    """The text of a content that is text or a list of text parts.

    Raises:
        InvalidInputError: it is something else, or holds an image, a file or a sound.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _fault(content, "is neither text nor a list of parts", at=at, code="invalid_type")
    texts: list[str] = []
    for i, part in enumerate(cast("list[object]", content)):
        where = f"{at}[{i}]"
        fields = cast("dict[str, object]", part) if isinstance(part, dict) else {}
        kind = fields.get("type")
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            raise InvalidInputError(
                f"{where} is of the type {str(kind)[:60]!r}; this model reads text only",
                code="unsupported_value",
                param=f"{where}.type",
            )
        text = fields.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidInputError(f"{where} has no text", code="invalid_type", param=f"{where}.text")
        texts.append(text)
    return "".join(texts)


def is_name(value: object) -> TypeGuard[str]:
    """Whether a client's value can name a call or an item; databases take no control characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()
