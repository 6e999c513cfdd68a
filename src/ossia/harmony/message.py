"""Messages and conversations: the values that the renderer turns into tokens and the parser makes of them.

A conversation is a sequence of messages. Most hold text; a system message may hold a `SystemContent`, a developer
message a `DeveloperContent`, whose texts the renderer lays out. All are frozen, so one value may serve many requests.
`conversation_from_dict` and `conversation_to_dict` read and write them in openai-harmony's JSON form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import Any, TypeAlias, cast

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import (
    Channel,
    DeveloperContent,
    Effort,
    FunctionTool,
    ResponseFormat,
    SystemContent,
    ToolNamespace,
    parse_enum,
)

__all__ = [
    "Channel",
    "Conversation",
    "DeveloperContent",
    "Effort",
    "FunctionTool",
    "Message",
    "ResponseFormat",
    "Role",
    "SystemContent",
    "ToolNamespace",
    "conversation_from_dict",
    "conversation_to_dict",
]

_SPACE = re.compile(r"\s")


class Role(StrEnum):
    """Who wrote a message, in order of authority."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"

    @classmethod
    def parse(cls, value: object) -> Role:
        """Raises InvalidInputError, naming the roles, for anything that is not one."""
        return parse_enum(cls, value, what="role", param="role")


Part: TypeAlias = str | SystemContent | DeveloperContent
Content: TypeAlias = Part | tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: who wrote it.
        content: text, the content of a system or developer message, or several such parts laid end to end.
        name: the full name of the tool (`functions.f`) for a tool's message, which must have one; else optional.
        channel: analysis, commentary, final, or whatever the model wrote.
        recipient: whom it addresses: the tool of a call, `assistant` for a tool's result.
        content_type: what stands behind the channel, as `json`, `code` or `<|constrain|>json`; only that marker at
            its very start becomes a control token.
        token_ids: for an assistant's message, the ids that the model sampled, from behind `<|start|>assistant` (or
            from `<|start|>` itself, where the model sampled that too) to its stop token. The renderer replays them
            and looks at nothing else but the role and the channel. They may hold control tokens, so take them from
            the engine, never from a user.

    Raises:
        InvalidInputError: parts that do not belong together.
    """

    role: Role
    _: KW_ONLY
    content: Content = ""
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if type(self.role) is not Role:
            object.__setattr__(self, "role", Role.parse(self.role))
        if self.role is Role.TOOL:
            if not self.name:
                raise InvalidInputError(
                    "a tool's message has no name; give the tool's, as in 'functions.f'", param="name"
                )
        elif self.name is not None and (not self.name or _SPACE.search(self.name)):
            raise InvalidInputError(
                f"{self.name!r} cannot name the author of a message; use a name without white space", param="name"
            )
        if not isinstance(self.content, str):
            self._check_parts()
        if self.token_ids is not None:
            if self.role is not Role.ASSISTANT:
                raise InvalidInputError(
                    f"a message of the role {self.role.value!r} has token_ids; only an assistant's are sampled",
                    param="token_ids",
                )
            object.__setattr__(self, "token_ids", tuple(self.token_ids))

    def _check_parts(self) -> None:
        if isinstance(self.content, Sequence):
            object.__setattr__(self, "content", tuple(self.content))
        for part in self.parts:
            if isinstance(part, SystemContent):
                wanted = Role.SYSTEM
            elif isinstance(part, DeveloperContent):
                wanted = Role.DEVELOPER
            else:
                _check_text(part)
                continue
            if self.role is not wanted:
                raise InvalidInputError(
                    f"a message of the role {self.role.value!r} holds a {type(part).__name__}, "
                    f"which only the role {wanted.value!r} may",
                    param="content",
                )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts."""
        return self.content if isinstance(self.content, tuple) else (self.content,)

    @property
    def text(self) -> str:
        """The text parts, joined; what system and developer contents hold is not among them."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def is_call(self) -> bool:
        """Whether the assistant calls a tool with this message."""
        return self.role is Role.ASSISTANT and self.recipient is not None and self.recipient != "all"


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order."""

    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if type(self.messages) is not tuple:
            object.__setattr__(self, "messages", tuple(self.messages))

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def append(self, *messages: Message) -> Conversation:
        """A new conversation with these messages behind the others."""
        return Conversation((*self.messages, *messages))


def _check_text(part: object) -> None:
    if not isinstance(part, str):
        raise InvalidInputError(
            f"the content of a message holds {type(part).__name__}; use text, a SystemContent or a DeveloperContent",
            param="content",
        )


# ---- JSON: what openai-harmony's Conversation.to_json writes, and `response_formats` and `token_ids` besides ----


def conversation_from_dict(data: object, *, trust_token_ids: bool = False) -> Conversation:
    """Reads `{"messages": [...]}`. Fields that are absent take their defaults; null leaves a line of the prompt out.

    Args:
        data: decoded JSON.
        trust_token_ids: keep the token ids as sampled. They can hold control tokens, so keep them only in data that
            nobody but Ossia has written; otherwise messages are rendered anew from their text.

    Raises:
        InvalidInputError: another shape, an unknown field, role or kind of content; says where.
    """
    fields = _fields(data, known={"messages"}, where="the conversation")
    messages: list[Message] = []
    for i, item in enumerate(_items(fields.get("messages"), where="messages")):
        where = f"messages[{i}]"
        try:
            messages.append(_message_from_dict(item, where=where, trust_token_ids=trust_token_ids))
        except InvalidInputError as error:
            text = str(error)
            raise InvalidInputError(text if text.startswith(where) else f"{where}: {text}", param="messages") from error
    return Conversation(tuple(messages))


def conversation_to_dict(conversation: Conversation) -> dict[str, Any]:
    """Writes what `conversation_from_dict` reads; equal conversations come back."""
    return {"messages": [_message_to_dict(message) for message in conversation]}


def _message_from_dict(data: object, *, where: str, trust_token_ids: bool) -> Message:
    known = {"role", "name", "content", "channel", "recipient", "content_type", "token_ids"}
    fields = _fields(data, known=known, where=where)
    content = fields.get("content")
    if not isinstance(content, str):
        parts = _items(content, where=f"{where}.content")
        content = tuple(_part_from_dict(part, where=f"{where}.content[{i}]") for i, part in enumerate(parts))
        content = content[0] if len(content) == 1 else content
    token_ids: tuple[int, ...] | None = None
    if trust_token_ids and fields.get("token_ids") is not None:
        ids = _items(fields["token_ids"], where=f"{where}.token_ids")
        token_ids = tuple(i for i in ids if type(i) is int)
        if len(token_ids) != len(ids):
            raise InvalidInputError(f"{where}.token_ids holds something else than integers", param="messages")
    return Message(
        role=Role.parse(fields.get("role")),
        content=content,
        **{key: _text_or_none(fields, key, where) for key in ("name", "channel", "recipient", "content_type")},
        token_ids=token_ids,
    )


def _part_from_dict(data: object, *, where: str) -> Part:
    kind = _fields(data, known=None, where=where).get("type")
    if kind == "text":
        text = _fields(data, known={"type", "text"}, where=where).get("text")
        if not isinstance(text, str):
            raise InvalidInputError(f"{where}.text is {text!r}; give text", param="messages")
        return text
    if kind == "system_content":
        return _system_from_dict(data, where=where)
    if kind == "developer_content":
        return _developer_from_dict(data, where=where)
    raise InvalidInputError(
        f"{where} is of the kind {kind!r}; use 'text', 'system_content' or 'developer_content' as its type",
        param="messages",
    )


def _system_from_dict(data: object, *, where: str) -> SystemContent:
    texts = {
        "model_identity": "model_identity",
        "knowledge_cutoff": "knowledge_cutoff",
        "conversation_start_date": "date",
    }
    fields = _fields(data, known={"type", "reasoning_effort", "channel_config", "tools", *texts}, where=where)
    found: dict[str, Any] = {ours: _text_or_none(fields, key, where) for key, ours in texts.items() if key in fields}
    if "reasoning_effort" in fields:
        effort = fields["reasoning_effort"]
        # openai-harmony capitalises it in JSON.
        found["effort"] = (
            None if effort is None else Effort.parse(effort.lower() if isinstance(effort, str) else effort)
        )
    if "channel_config" in fields:
        found["channels"] = None
        if fields["channel_config"] is not None:
            config = _fields(
                fields["channel_config"], known={"valid_channels", "channel_required"}, where=f"{where}.channel_config"
            )
            channels = _items(config.get("valid_channels"), where=f"{where}.channel_config.valid_channels")
            found["channels"] = tuple(str(channel) for channel in channels)
            found["is_channel_required"] = bool(config.get("channel_required", True))
    return SystemContent(**found, tools=_namespaces_from_dict(fields.get("tools"), where=f"{where}.tools"))


def _developer_from_dict(data: object, *, where: str) -> DeveloperContent:
    fields = _fields(data, known={"type", "instructions", "tools", "response_formats"}, where=where)
    formats: list[ResponseFormat] = []
    for i, item in enumerate(_items(fields.get("response_formats") or [], where=f"{where}.response_formats")):
        at = f"{where}.response_formats[{i}]"
        entry = _fields(item, known={"name", "description", "schema"}, where=at)
        formats.append(
            ResponseFormat(
                cast("str", entry.get("name")),
                schema=cast("Any", entry.get("schema")),
                description=_text_or_none(entry, "description", at),
            )
        )
    return DeveloperContent(
        instructions=_text_or_none(fields, "instructions", where),
        tools=_namespaces_from_dict(fields.get("tools"), where=f"{where}.tools"),
        response_formats=tuple(formats),
    )


def _namespaces_from_dict(data: object, *, where: str) -> tuple[ToolNamespace, ...]:
    if data is None:
        return ()
    if not isinstance(data, dict):
        raise InvalidInputError(
            f"{where} is {type(data).__name__}; give an object, one key a namespace", param="messages"
        )
    spaces: list[ToolNamespace] = []
    for key, value in cast("dict[str, object]", data).items():
        at = f"{where}.{key}"
        space = _fields(value, known={"name", "description", "tools"}, where=at)
        if space.get("name") != key:
            raise InvalidInputError(f"{at} is named {space.get('name')!r}; key and name must agree", param="messages")
        tools: list[FunctionTool] = []
        for i, item in enumerate(_items(space.get("tools") or [], where=f"{at}.tools")):
            tool = _fields(item, known={"name", "description", "parameters"}, where=f"{at}.tools[{i}]")
            description = _text_or_none(tool, "description", f"{at}.tools[{i}]") or ""
            parameters = cast("Any", tool.get("parameters"))
            tools.append(FunctionTool(cast("str", tool.get("name")), description=description, parameters=parameters))
        spaces.append(ToolNamespace(key, description=_text_or_none(space, "description", at), tools=tuple(tools)))
    return tuple(spaces)


def _fields(data: object, *, known: set[str] | None, where: str) -> dict[str, object]:
    if not isinstance(data, dict):
        raise InvalidInputError(f"{where} is {type(data).__name__}; give an object", param="messages")
    fields = cast("dict[str, object]", data)
    if known is not None and (unknown := [repr(key) for key in fields if key not in known]):
        raise InvalidInputError(
            f"{where} has an unknown field {', '.join(unknown)}; it may have {', '.join(sorted(known))}",
            param="messages",
        )
    return fields


def _items(data: object, *, where: str) -> list[object]:
    if not isinstance(data, list):
        raise InvalidInputError(f"{where} is {type(data).__name__}; give an array", param="messages")
    return cast("list[object]", data)


def _text_or_none(fields: dict[str, object], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is None or isinstance(value, str):
        return value
    raise InvalidInputError(f"{where}.{key} is {type(value).__name__}; give text or null", param="messages")


def _message_to_dict(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role.value, "content": [_part_to_dict(part) for part in message.parts]}
    for key in ("name", "channel", "recipient", "content_type"):
        if (value := getattr(message, key)) is not None:
            data[key] = str(value)
    if message.token_ids is not None:
        data["token_ids"] = list(message.token_ids)
    return data


def _part_to_dict(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    tools = {
        space.name: {
            "name": space.name,
            "description": space.description,
            "tools": [
                {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
                for tool in space.tools
            ],
        }
        for space in part.tools
    }
    if isinstance(part, DeveloperContent):
        formats = [{"name": f.name, "description": f.description, "schema": f.schema} for f in part.response_formats]
        developer = {"type": "developer_content", "instructions": part.instructions, "tools": tools or None}
        return {**developer, "response_formats": formats} if formats else developer
    config = None
    if part.channels is not None:
        channels = [str(channel) for channel in part.channels]
        config = {"valid_channels": channels, "channel_required": part.is_channel_required}
    return {
        "type": "system_content",
        "model_identity": part.model_identity,
        "reasoning_effort": part.effort and part.effort.value.capitalize(),
        "conversation_start_date": part.date,
        "knowledge_cutoff": part.knowledge_cutoff,
        "channel_config": config,
        "tools": tools or None,
    }
