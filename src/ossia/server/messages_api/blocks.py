"""Anthropic's messages, which are lists of content blocks, to harmony messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ossia.agent.chat_history import Block, Call, Text, Thought, recipient_of
from ossia.agent.chat_messages import is_name
from ossia.core.errors import InvalidInputError
from ossia.harmony.json_text import compact_json
from ossia.harmony.message import Message, Role
from ossia.server.conversation.history import History
from ossia.server.errors import ApiError, unsupported
from ossia.server.replay import ReplayCache, Sealer
from ossia.server.responses.schema import JsonObject

BLOCK_SEPARATOR = "\n"
"""Between the texts of one message."""


class BlockReader:
    """Reads the messages of one request.

    Args:
        owner: whose they are: what was sealed for another key stays closed.
    """

    def __init__(self, *, replay: ReplayCache, sealer: Sealer, owner: str) -> None:
        self._replay = replay
        self._sealer = sealer
        self._owner = owner

    def read(self, messages: Sequence[JsonObject], *, system: str | Sequence[JsonObject] | None) -> list[Message]:
        """The conversation, `system` in front.

        Raises:
            ApiError: something is malformed, or the model cannot read it; `param` says where.
        """
        history = History(self._replay, owner=self._owner)
        if isinstance(system, str):
            history.add_text(Role.SYSTEM, system)
        else:
            for i, block in enumerate(system or ()):
                history.add_text(Role.SYSTEM, _read_text(block, at=f"system[{i}]"))
        role = None
        for i, message in enumerate(messages):
            at = f"messages[{i}]"
            role = message.get("role")
            blocks = _read_blocks(message.get("content"), at=f"{at}.content")
            if role == "user":
                self._add_user(history, blocks, at=f"{at}.content")
            elif role == "assistant":
                found = [self._read_assistant(block, at=f"{at}.content[{j}]") for j, block in enumerate(blocks)]
                history.add_assistant([block for block in found if block is not None])
            elif role == "system":
                texts = [_read_text(block, at=f"{at}.content[{j}]") for j, block in enumerate(blocks)]
                history.add_text(Role.SYSTEM, BLOCK_SEPARATOR.join(texts))
            else:
                code = "missing_required_parameter" if role is None else "invalid_value"
                raise ApiError(
                    f"{at}.role is {str(role)[:30]!r}; use 'user' or 'assistant'", code=code, param=f"{at}.role"
                )
        if role == "assistant":
            raise unsupported(
                "the last message is the assistant's; answers cannot be begun for this model, so end with the user's",
                param=f"messages[{len(messages) - 1}].role",
            )
        return history.messages

    def _add_user(self, history: History, blocks: Sequence[JsonObject], *, at: str) -> None:
        texts: list[str] = []
        for i, block in enumerate(blocks):
            where = f"{at}[{i}]"
            if block.get("type") == "tool_result":
                if texts:
                    history.add_text(Role.USER, BLOCK_SEPARATOR.join(texts))
                    texts = []
                call_id = block.get("tool_use_id")
                if not is_name(call_id):
                    code = "missing_required_parameter" if call_id is None else "invalid_value"
                    raise ApiError(f"{where}.tool_use_id is missing or no id", code=code, param=f"{where}.tool_use_id")
                history.add_result(call_id, _read_result(block, at=where), param=f"{where}.tool_use_id")
            else:
                texts.append(_read_text(block, at=where))
        if texts or not blocks:
            history.add_text(Role.USER, BLOCK_SEPARATOR.join(texts))

    def _read_assistant(self, block: JsonObject, *, at: str) -> Block | None:
        kind = block.get("type")
        if kind == "tool_use":
            return _read_call(block, at=at)
        if kind == "thinking":
            text = block.get("thinking")
            if not isinstance(text, str):
                raise ApiError(f"{at}.thinking is no text", code="invalid_type", param=f"{at}.thinking")
            sealed = self._open(block.get("signature"))
            if sealed is not None:
                return sealed
            return Thought.of(text) if text else None
        if kind == "redacted_thinking":
            return self._open(block.get("data"))
        return Text(_read_text(block, at=at))

    def _open(self, sealed: object) -> Thought | None:
        """What was sealed here; None for what another server or key sealed, which a client may bring along."""
        if not isinstance(sealed, str) or not sealed:
            return None
        try:
            return Thought(self._sealer.open(sealed, owner=self._owner))
        except InvalidInputError:
            return None


def _read_blocks(content: object, *, at: str) -> list[JsonObject]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    blocks = cast("list[object]", content) if isinstance(content, list) else None
    if blocks is None or not all(isinstance(block, dict) for block in blocks):
        code = "missing_required_parameter" if content is None else "invalid_type"
        raise ApiError(f"{at} is neither text nor a list of blocks", code=code, param=at)
    return cast("list[JsonObject]", blocks)


def _read_text(block: Mapping[str, Any], *, at: str) -> str:
    """The text of a text block, or of a document of plain text."""
    kind = block.get("type")
    text = block.get("text")
    if kind == "document" and isinstance(block.get("source"), dict):
        source = cast("JsonObject", block["source"])
        if source.get("type") == "text":
            title, data = block.get("title"), source.get("data")
            text = f"{title}\n\n{data}" if isinstance(title, str) and isinstance(data, str) else data
            kind = "text"
    if kind != "text":
        raise unsupported(f"{at} is of the type {str(kind)[:60]!r}; this model reads text only", param=f"{at}.type")
    if not isinstance(text, str):
        raise ApiError(f"{at} has no text", code="invalid_type", param=f"{at}.text")
    return text


def _read_result(block: Mapping[str, Any], *, at: str) -> str:
    content = block.get("content")
    blocks = [] if content is None else _read_blocks(content, at=f"{at}.content")
    texts = [_read_text(part, at=f"{at}.content[{i}]") for i, part in enumerate(blocks)]
    text = BLOCK_SEPARATOR.join(texts)
    return f"Error: {text}" if block.get("is_error") is True else text


def _read_call(block: Mapping[str, Any], *, at: str) -> Call:
    call_id, name, given = block.get("id"), block.get("name"), block.get("input")
    if not is_name(call_id):
        raise ApiError(f"{at}.id is missing or no id", code="invalid_value", param=f"{at}.id")
    if not isinstance(name, str) or not name or any(letter.isspace() or not letter.isprintable() for letter in name):
        raise ApiError(f"{at}.name is missing or names no tool", code="invalid_value", param=f"{at}.name")
    if not isinstance(given, dict):
        raise ApiError(f"{at}.input is no object", code="invalid_type", param=f"{at}.input")
    value = cast("JsonObject", given)
    try:
        return Call(call_id, recipient_of(name), compact_json(value), value)
    except InvalidInputError as error:
        raise InvalidInputError(str(error), param=f"{at}.input") from error
