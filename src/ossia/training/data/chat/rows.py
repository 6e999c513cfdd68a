"""Rows of OpenAI-style JSON as conversations to learn from.

    {"messages": [...], "tools": [...], "response_format": {...}, "reasoning_effort": "low"}
    {"prompt": "...", "completion": "..."}      or lists of messages, of which the completion's are learned
    {"question": "...", "answer": "..."}        either pair also with "system" and "reasoning"

Messages are read by what reads them for the server (`agent.chat_messages`), once `normalise` has set right the
liberties that data sets take.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from ossia.agent.chat_history import CUSTOM, Block, ChatHistory
from ossia.agent.chat_messages import read_chat_messages
from ossia.agent.opening import compose_conversation
from ossia.core.errors import InvalidInputError
from ossia.harmony.content import (
    FUNCTIONS,
    JSON_OBJECT,
    Effort,
    FunctionTool,
    ResponseFormat,
    SystemContent,
    ToolNamespace,
)
from ossia.harmony.message import Conversation, Message
from ossia.model.loading import Identity
from ossia.training.data.chat.normalise import REASONING, JsonObject, normalise_messages, require_text, without_nulls

_PAIRS = (("prompt", "completion"), ("question", "answer"))
_FORMS = "a row is an object with messages, with prompt and completion, or with question and answer"


class LearnedConversation(NamedTuple):
    """A conversation, and the places of its messages that are to be learned."""

    conversation: Conversation
    learned: frozenset[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    """A conversation as a file has it, but for the system message, which depends on the model and the day.

    Attributes:
        messages: in order; those of system and developer roles hold plain text.
        learned: places of the assistant's messages to learn.
        tools: what the developer declares.
        response_formats: what the answers must look like.
        effort: reasoning effort, where the row says one.
    """

    messages: tuple[Message, ...]
    learned: frozenset[int]
    tools: tuple[ToolNamespace, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()
    effort: Effort | None = None

    @property
    def has_reasoning(self) -> bool:
        """Whether the assistant thinks in it."""
        return any(message.channel == "analysis" for message in self.messages)

    def conversation(self, identity: Identity, *, effort: Effort, date: str | None) -> LearnedConversation:
        """The conversation as a model of that identity meets it.

        Args:
            identity: what the system message says of the model.
            effort: used where the row says none.
            date: as YYYY-MM-DD.
        """
        system = SystemContent(
            model_identity=identity.model_identity,
            knowledge_cutoff=identity.knowledge_cutoff,
            effort=self.effort or effort,
            date=date,
        )
        conversation = compose_conversation(
            self.messages, system=system, tools=self.tools, response_formats=self.response_formats
        )
        moved_by = len(conversation) - len(self.messages)
        return LearnedConversation(conversation, frozenset(i + moved_by for i in self.learned))


class _Spans(ChatHistory):
    """Also notes which messages each of the assistant's became."""

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[range] = []

    def add_assistant(self, blocks: Sequence[Block]) -> None:
        start = len(self.messages)
        super().add_assistant(blocks)
        self.spans.append(range(start, len(self.messages)))


def read_row(data: object) -> ChatRow:
    """Read one row.

    Raises:
        InvalidInputError: it is no conversation, or nothing in it is to be learned; the message says where.
    """
    if not isinstance(data, dict):
        raise InvalidInputError(f"{type(data).__name__} in place of an object; {_FORMS}", param="data")
    row = without_nulls(cast("JsonObject", data))
    found, num_given = _find_messages(row)
    messages = normalise_messages(found)
    history = _Spans()
    read_chat_messages(messages, history=history)
    learned: set[int] = set()
    said = ((i, message) for i, message in enumerate(messages) if message.get("role") == "assistant")
    for (i, message), span in zip(said, history.spans, strict=True):
        if i >= num_given and _is_learned(message, at=f"messages[{i}]"):
            learned.update(span)
    chat = ChatRow(
        messages=tuple(history.messages),
        learned=frozenset(learned),
        tools=read_tools(row),
        response_formats=_read_format(row.get("response_format")),
        effort=_read_effort(row),
    )
    _check(chat)
    return chat


# ---- which messages ----


def _find_messages(row: JsonObject) -> tuple[list[JsonObject], int]:
    """The messages, and how many of them are only given, not learned."""
    if "messages" in row:
        return _objects(row["messages"], at="messages"), 0
    for given, wanted in _PAIRS:
        if given in row and wanted in row:
            break
    else:
        raise InvalidInputError(f"the keys {', '.join(sorted(map(repr, row))) or 'none'}; {_FORMS}", param="data")
    first = [{"role": "system", "content": row["system"]}] if "system" in row else []
    prompt, completion = row[given], row[wanted]
    if isinstance(prompt, list):
        first += _objects(prompt, at=given)
    else:
        first.append({"role": "user", "content": require_text(prompt, at=given)})
    if isinstance(completion, list):
        return [*first, *_objects(completion, at=wanted)], len(first)
    thoughts = {key: row[key] for key in REASONING if isinstance(row.get(key), str)}
    return [*first, {"role": "assistant", "content": require_text(completion, at=wanted), **thoughts}], len(first)


def _objects(value: object, *, at: str) -> list[JsonObject]:
    if not isinstance(value, list) or not value:
        raise InvalidInputError(f"{at} is no array of messages, or empty", param=at)
    for i, item in enumerate(cast("list[object]", value)):
        if not isinstance(item, dict):
            raise InvalidInputError(f"{at}[{i}] is {type(item).__name__}; a message is an object", param=f"{at}[{i}]")
    return [without_nulls(item) for item in cast("list[JsonObject]", value)]


def _is_learned(message: JsonObject, *, at: str) -> bool:
    """OpenAI's `weight` of a message: 0 leaves it unlearned."""
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidInputError(f"{at}.weight is {weight!r}; use 0 or 1", param=f"{at}.weight")
    return weight == 1


def _check(row: ChatRow) -> None:
    if not row.learned:
        raise InvalidInputError("nothing to learn: no message of the assistant's with a weight of 1", param="messages")
    declared = {f"{space.name}.{tool.name}" for space in row.tools for tool in space.tools}
    for i in sorted(row.learned):
        message = row.messages[i]
        if message.is_call and message.recipient not in declared:
            raise InvalidInputError(
                f"a call of {message.recipient!r}, which is not declared; put it into the row's tools", param="tools"
            )
        if message.channel == "final" and not message.text.strip():
            raise InvalidInputError("an empty answer of the assistant's; leave the row out", param="messages")
    last = row.messages[max(row.learned)]
    if last.channel != "final" and not last.is_call:
        raise InvalidInputError("the assistant's last message says nothing but reasoning", param="messages")


# ---- what the developer declares ----


def read_tools(row: JsonObject) -> tuple[ToolNamespace, ...]:
    """`tools` (also as JSON text, and without the wrapper) or the older `functions`.

    Raises:
        InvalidInputError: one that cannot be declared.
    """
    key = "tools" if row.get("tools") else "functions"
    given = row.get(key) or []
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise InvalidInputError(f"{key} is text, but no JSON: {error}", param=key) from error
    if not isinstance(given, list):
        raise InvalidInputError(f"{key} is no array", param=key)
    spaces: dict[str, list[FunctionTool]] = {}
    for i, item in enumerate(cast("list[object]", given)):
        if not isinstance(item, dict):
            raise InvalidInputError(f"{key}[{i}] is {type(item).__name__}; a tool is an object", param=key)
        tool = without_nulls(cast("JsonObject", item))
        kind = tool.get("type", "function")
        if kind not in ("function", "custom"):
            raise InvalidInputError(f"{key}[{i}].type is {kind!r}; use 'function' or 'custom'", param=key)
        inner = tool.get(kind)
        tool = without_nulls(cast("JsonObject", inner)) if isinstance(inner, dict) else tool
        is_custom = kind == "custom"
        if "format" in tool and is_custom:
            raise InvalidInputError(f"{key}[{i}] has a grammar, which cannot be learned from rows; drop it", param=key)
        spaces.setdefault(CUSTOM if is_custom else FUNCTIONS, []).append(
            FunctionTool(
                cast("str", tool.get("name")),
                description=require_text(tool.get("description", ""), at=f"{key}[{i}].description"),
                parameters={"type": "string"} if is_custom else cast("Any", tool.get("parameters")),
            )
        )
    return tuple(ToolNamespace(name, tools=tuple(tools)) for name, tools in spaces.items())


def _read_format(form: object) -> tuple[ResponseFormat, ...]:
    if form is None:
        return ()
    data = cast("JsonObject", form) if isinstance(form, dict) else {}
    kind = data.get("type")
    if kind == "text":
        return ()
    if kind == "json_object":
        return (JSON_OBJECT,)
    wanted = data.get("json_schema")
    if kind != "json_schema" or not isinstance(wanted, dict):
        raise InvalidInputError(
            "response_format is none of {'type': 'text'}, {'type': 'json_object'} and {'type': 'json_schema', "
            "'json_schema': {...}}",
            param="response_format",
        )
    schema = without_nulls(cast("JsonObject", wanted))
    return (
        ResponseFormat(
            cast("str", schema.get("name")), schema=schema.get("schema", {}), description=schema.get("description")
        ),
    )


def _read_effort(row: JsonObject) -> Effort | None:
    value = row.get("reasoning_effort")
    reasoning = row.get("reasoning")
    if value is None and isinstance(reasoning, dict):
        value = cast("JsonObject", reasoning).get("effort")
    return None if value is None else Effort.parse(value)
