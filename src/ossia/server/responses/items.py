"""Input items to harmony messages: what clients say, and what they give back of what the model said.

What the model itself said goes back in as it was sampled, wherever that is still known: an item that comes back
unchanged is replaced by the messages kept for it, and reasoning that a client dropped in front of a call is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from openai.types.responses import (
    ResponseCustomToolCall,
    ResponseCustomToolCallOutput,
    ResponseFunctionToolCall,
    ResponseReasoningItem,
)
from openai.types.responses.response_input_item import FunctionCallOutput
from pydantic import BaseModel

from ossia.agent.chat_messages import MAX_NAME, is_name, read_text
from ossia.core.errors import InvalidInputError
from ossia.harmony.content import FUNCTIONS, Channel
from ossia.harmony.message import Message, Role
from ossia.server.body import validate
from ossia.server.conversation.tools import CUSTOM
from ossia.server.errors import ApiError, not_found, unsupported
from ossia.server.replay import Said, Sealer
from ossia.server.responses.hosted import APPROVAL_REQUEST, APPROVAL_RESPONSE
from ossia.server.responses.hosted_items import Approvals, read_hosted_call, read_request
from ossia.server.responses.schema import JsonObject

_ROLES = {"user": Role.USER, "system": Role.SYSTEM, "developer": Role.DEVELOPER, "assistant": Role.ASSISTANT}
_CALLS = frozenset({"function_call", "custom_tool_call"})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"})
_HOSTED = frozenset({"web_search_call", "code_interpreter_call", "mcp_call", "mcp_list_tools"})
_APPROVALS = frozenset({APPROVAL_REQUEST, APPROVAL_RESPONSE})
MAX_ITEMS = 10_000
MAX_ID = 80


class Item(NamedTuple):
    """An item as it is stored.

    Attributes:
        body: as clients see it, with its id.
        messages: what it is to the model; for what the model said, with the ids as sampled.
    """

    body: JsonObject
    messages: tuple[Message, ...]

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def call_id(self) -> str | None:
        """Set for calls and their outputs. A call that waits for leave is answered by the item's own id."""
        return self.id if self.body.get("type") == APPROVAL_REQUEST else cast("str | None", self.body.get("call_id"))


def normalise(given: str | Sequence[JsonObject] | None, *, at: str = "input") -> list[JsonObject]:
    """`input` as a list of items with their types.

    Raises:
        ApiError: there are too many, or one has no known type.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    if len(given) > MAX_ITEMS:
        raise ApiError(f"{at} has {len(given)} items; at most {MAX_ITEMS} are taken", code="invalid_value", param=at)
    return [_with_type(item, at=f"{at}[{i}]") for i, item in enumerate(given)]


def _with_type(item: JsonObject, *, at: str) -> JsonObject:
    kind = item.get("type")
    if kind is None and "role" in item:
        return {**item, "type": "message"}
    if kind is None and set(item) == {"id"}:
        return {**item, "type": "item_reference"}
    if not isinstance(kind, str):
        raise ApiError(f"{at}.type is missing", code="missing_required_parameter", param=f"{at}.type")
    return item


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What is known of what the model said to this owner.

    Attributes:
        find: what was said under a call id or an item id.
        stored: items that a reference can mean, by id.
        sealer: opens `encrypted_content`.
        owner: for whom.
    """

    find: Callable[[str | None], Said | None]
    stored: Mapping[str, Item]
    sealer: Sealer
    owner: str


class ItemReader:
    """Reads items in order.

    Args:
        history: the items before, read already.

    Attributes:
        approvals: calls that were given leave, and the MCP servers whose tools were listed.
    """

    def __init__(self, memory: Memory, *, new_id: Callable[[str], str], history: Sequence[Item] = ()) -> None:
        self._memory = memory
        self._new_id = new_id
        self._recipients: dict[str, str] = {}  # by call id
        self._has_reasoning = False  # since the last call or its output
        self.approvals = Approvals()
        for item in history:
            self._note(item)

    def _note(self, item: Item) -> None:
        """Learn of a call, so that its output can follow."""
        if item.body.get("type") in _CALLS and item.call_id:
            recipient = next((m.recipient for m in item.messages if m.recipient), None)
            self._recipients[item.call_id] = recipient or _recipient_of(item.body)
        self.approvals.note(item.body, item.messages)
        self._follow(item)

    def read(self, data: JsonObject, *, at: str) -> Item:
        """One item.

        Raises:
            ApiError, InvalidInputError: it is malformed, or not to be had here; `param` says where.
        """
        kind = data["type"]
        if kind == "item_reference":
            return self._refer(data, at=at)
        if kind == "message":
            item = self._message(data, at=at)
        elif kind == "reasoning":
            item = self._reasoning(data, at=at)
        elif kind in _CALLS:
            item = self._call(data, at=at)
        elif kind in _OUTPUTS:
            item = self._output(data, at=at)
        elif kind in _HOSTED:
            item = self._hosted(data, at=at)
        elif kind in _APPROVALS:
            item = self._approval(data, at=at)
        else:
            raise unsupported(f"{at} is of the type {kind[:60]!r}, which this server does not take", param=f"{at}.type")
        self._follow(item)
        return item

    def _hosted(self, data: JsonObject, *, at: str) -> Item:
        """A call of a tool of the server's own: as it was, or as the item tells it."""
        stored = self._memory.stored.get(_id_of(data) or "")
        if stored is None:
            said = self._memory.find(_id_of(data))
            body = {**data, "id": _id_of(data) or self._new_id("item")}
            messages = read_hosted_call(body, approvals=self.approvals, at=at) if said is None else said.messages
            stored = Item(body, messages)
        self.approvals.note(stored.body, stored.messages)
        return stored

    def _approval(self, data: JsonObject, *, at: str) -> Item:
        body: JsonObject = {**data, "id": _id_of(data) or self._new_id("mcpr")}
        if data["type"] == APPROVAL_RESPONSE:
            return Item(body, self.approvals.answer(body, at=at))
        call = read_request(body, at=at)
        said = self._memory.find(_id_of(data))
        messages = (call,)
        if said is not None and said.message.text == call.text and said.message.recipient == call.recipient:
            messages = (*(() if self._has_reasoning else said.reasoning), said.message)
        self.approvals.note(body, messages)
        return Item(body, messages)

    def _follow(self, item: Item) -> None:
        for message in item.messages:
            if message.role is not Role.ASSISTANT or message.is_call:
                self._has_reasoning = False
            elif message.channel == Channel.ANALYSIS:
                self._has_reasoning = True

    def _refer(self, data: JsonObject, *, at: str) -> Item:
        item_id = data.get("id")
        item = self._memory.stored.get(item_id) if isinstance(item_id, str) else None
        if item is None:
            raise not_found(f"{at} refers to an item that is not stored here for this key", param=f"{at}.id")
        self._note(item)
        return item

    def _message(self, data: JsonObject, *, at: str) -> Item:
        role = _ROLES.get(str(data.get("role")))
        if role is None:
            raise ApiError(
                f"{at}.role is {str(data.get('role'))[:30]!r}; use user, assistant, system or developer",
                code="invalid_value",
                param=f"{at}.role",
            )
        text = read_text(data.get("content"), at=f"{at}.content")
        is_model = role is Role.ASSISTANT
        kind = "output_text" if is_model else "input_text"
        part: JsonObject = {"type": kind, "text": text}
        body: JsonObject = {
            "id": _id_of(data) or self._new_id("msg"),
            "type": "message",
            "role": role.value,
            "status": "completed",
            "content": [{**part, "annotations": [], "logprobs": []} if is_model else part],
        }
        if not is_model:
            return Item(body, (Message(role, content=text),))
        channel = Channel.COMMENTARY if data.get("phase") == "commentary" else Channel.FINAL
        body["phase"] = "commentary" if channel is Channel.COMMENTARY else "final_answer"
        said = self._memory.find(_id_of(data))
        if said is not None and said.message.text == text and not said.message.is_call:
            return Item(body, (said.message,))
        return Item(body, (Message(role, content=text, channel=channel),))

    def _reasoning(self, data: JsonObject, *, at: str) -> Item:
        item = validate(ResponseReasoningItem, {"id": "", "summary": [], **_without_nulls(data)}, at=at)
        body = {**_dump(item), "id": _id_of(data) or self._new_id("rs")}
        if item.encrypted_content:
            try:
                messages = self._memory.sealer.open(item.encrypted_content, owner=self._memory.owner)
            except InvalidInputError as error:
                raise InvalidInputError(str(error), param=f"{at}.encrypted_content") from error
            return Item(body, messages)
        text = "".join(part.text for part in item.content or ())
        said = self._memory.find(_id_of(data))
        if said is not None and (not text or said.message.text == text):
            return Item(body, (said.message,))
        stored = self._memory.stored.get(_id_of(data) or "")
        if not text and stored is not None:
            return Item(body, stored.messages)
        # Without content there is nothing that the model said: a summary is not its own words.
        return Item(body, (Message(Role.ASSISTANT, content=text, channel=Channel.ANALYSIS),) if text else ())

    def _call(self, data: JsonObject, *, at: str) -> Item:
        model: type[BaseModel] = ResponseFunctionToolCall if data["type"] == "function_call" else ResponseCustomToolCall
        body = {**_dump(validate(model, _without_nulls(data), at=at)), "status": "completed"}
        body["id"] = _id_of(data) or self._new_id("fc" if data["type"] == "function_call" else "ctc")
        call_id = _check_call_id(body.get("call_id"), at=at)
        recipient = _recipient_of(body)
        content = str(body["arguments"] if data["type"] == "function_call" else body["input"])
        said = self._memory.find(call_id)
        messages: list[Message] = []
        if said is not None and not self._has_reasoning:
            messages += said.reasoning
        if said is not None and said.message.text == content and said.message.is_call:
            messages.append(said.message)
            recipient = said.message.recipient or recipient
        else:
            form = "json" if data["type"] == "function_call" else None
            channel = Channel.COMMENTARY
            messages.append(
                Message(Role.ASSISTANT, content=content, channel=channel, recipient=recipient, content_type=form)
            )
        self._recipients[call_id] = recipient
        return Item(body, tuple(messages))

    def _output(self, data: JsonObject, *, at: str) -> Item:
        model: type[BaseModel] = (
            FunctionCallOutput if data["type"] == "function_call_output" else ResponseCustomToolCallOutput
        )
        body = {**_dump(validate(model, _without_nulls(data), at=at)), "status": "completed"}
        body["id"] = _id_of(data) or self._new_id("fco" if data["type"] == "function_call_output" else "ctco")
        call_id = _check_call_id(body.get("call_id"), at=at)
        said = self._memory.find(call_id)
        recipient = self._recipients.get(call_id) or (said.message.recipient if said is not None else None)
        if recipient is None:
            raise ApiError(
                f"no call with the id {call_id!r} stands before its output", code="invalid_value", param=f"{at}.call_id"
            )
        text = read_text(data.get("output"), at=f"{at}.output")
        message = Message(Role.TOOL, content=text, name=recipient, recipient="assistant", channel=Channel.COMMENTARY)
        return Item(body, (message,))


def _recipient_of(body: JsonObject) -> str:
    name = str(body["name"])
    if body["type"] != "function_call":
        return f"{CUSTOM}.{name}"
    return f"{body.get('namespace') or FUNCTIONS}.{name}"


def _check_call_id(call_id: object, *, at: str) -> str:
    if not is_name(call_id):
        raise ApiError(
            f"{at}.call_id must be text of 1 to {MAX_NAME} printable characters",
            code="missing_required_parameter" if call_id is None else "invalid_value",
            param=f"{at}.call_id",
        )
    return call_id


def _id_of(data: JsonObject) -> str | None:
    value = data.get("id")
    return value if is_name(value) and len(value) <= MAX_ID else None


def _without_nulls(data: JsonObject) -> JsonObject:
    return {key: value for key, value in data.items() if value is not None}


def _dump(model: BaseModel) -> JsonObject:
    return model.model_dump(mode="json", by_alias=True, exclude_unset=True)
