"""Items of the server's own tools that come back: calls as the model saw them, and leave that the client gives.

mcp_approval_request   the model's call; nothing has answered it yet
mcp_approval_response  leave: the call is made before the model's next turn. Refused: the tool's message that says so
mcp_call, ...          the call and its result; where leave was asked, the result alone
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from openai.types.responses import ResponseCodeInterpreterToolCall
from openai.types.responses.mcp_tool_call_error import HTTPError, McpProtocolError, McpToolExecutionError
from openai.types.responses.response_input_item import McpApprovalRequest, McpApprovalResponse, McpCall

from ossia.harmony.content import Channel
from ossia.harmony.message import Message, Role
from ossia.server.body import validate
from ossia.server.errors import ApiError
from ossia.server.responses.hosted import APPROVAL_REQUEST, APPROVAL_RESPONSE, Approved
from ossia.server.responses.schema import JsonObject
from ossia.tools.base import reply

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_REASON = 1000


class Approvals:
    """Which calls wait for leave, and which were given it.

    Attributes:
        listed: labels of the MCP servers whose tools the conversation has listed already.
    """

    def __init__(self) -> None:
        self.listed: set[str] = set()
        self._requests: dict[str, Message] = {}
        self._refused: set[str] = set()
        self._approved: dict[str, Approved] = {}
        self._made: set[str] = set()

    @property
    def to_make(self) -> list[Approved]:
        """Calls that have leave and were not made yet, in order."""
        return [approved for name, approved in self._approved.items() if name not in self._made]

    def note(self, body: JsonObject, messages: Sequence[Message]) -> None:
        """Learn of an item that was read."""
        kind = body.get("type")
        if kind == APPROVAL_REQUEST:
            call = next((message for message in messages if message.is_call), None)
            if call is not None:
                self._requests[str(body["id"])] = call
        elif kind == APPROVAL_RESPONSE and body.get("approve") is False:
            self._refused.add(str(body["approval_request_id"]))
        elif kind == "mcp_call" and body.get("approval_request_id"):
            self._made.add(str(body["approval_request_id"]))
        elif kind == "mcp_list_tools":
            self.listed.add(str(body.get("server_label")))

    def find(self, request_id: str | None) -> Message | None:
        """The call that a request asks leave for."""
        return None if request_id is None else self._requests.get(request_id)

    def answer(self, data: JsonObject, *, at: str) -> tuple[Message, ...]:
        """Take a client's answer; what it is to the model.

        Raises:
            ApiError: nothing asked for it, or it was given already.
        """
        given = validate(McpApprovalResponse, data, at=at)
        name = given.approval_request_id
        call = self._requests.get(name)
        if call is None:
            raise ApiError(
                f"no request for approval with the id {name[:100]!r} stands before its answer; send the item back, or "
                "continue by previous_response_id",
                code="invalid_value",
                param=f"{at}.approval_request_id",
            )
        if name in self._made or name in self._refused or name in self._approved:
            raise ApiError(
                f"the request for approval {name[:100]!r} was answered already",
                code="invalid_value",
                param=f"{at}.approval_request_id",
            )
        if given.approve:
            self._approved[name] = Approved(name, call, at)
            return ()
        self._refused.add(name)
        reason = f" The reason: {given.reason[:MAX_REASON]}" if given.reason else ""
        return (reply(call, f"The user did not allow this call.{reason}"),)


def read_request(data: JsonObject, *, at: str) -> Message:
    """The call that a request for approval asks for, from its own words.

    Raises:
        ApiError: it is malformed.
    """
    given = validate(McpApprovalRequest, data, at=at)
    return _call(given.server_label, given.name, given.arguments, at=at)


def read_hosted_call(data: JsonObject, *, approvals: Approvals, at: str) -> tuple[Message, ...]:
    """The call and its result, as far as the item itself tells them: nothing of a search, whose pages it has not.

    Raises:
        ApiError: it is malformed.
    """
    given = {key: value for key, value in data.items() if value is not None}
    if data["type"] == "mcp_call":
        item = validate(McpCall, given, at=at)
        if item.output is None and item.error is None:
            return ()  # it was cut off
        call = approvals.find(item.approval_request_id)
        result = item.output if item.output is not None else _error_text(item.error)
        if call is not None:
            return (reply(call, result),)
        call = _call(item.server_label, item.name, item.arguments, at=at)
        return (call, reply(call, result))
    if data["type"] == "code_interpreter_call":
        code = validate(ResponseCodeInterpreterToolCall, {"code": None, "outputs": None, **given}, at=at)
        if code.code is None or code.outputs is None:
            return ()
        logs = "".join(output.logs for output in code.outputs if output.type == "logs")
        call = Message(
            Role.ASSISTANT, content=code.code, recipient="python", channel=Channel.ANALYSIS, content_type="code"
        )
        return (call, reply(call, logs))
    return ()


def _call(label: str, name: str, arguments: str, *, at: str) -> Message:
    for field, value in (("server_label", label), ("name", name)):
        if not _WORD.fullmatch(value):
            raise ApiError(
                f"{value[:60]!r} is no name; use up to 128 letters, digits, '_', '-' and '.'",
                code="invalid_value",
                param=f"{at}.{field}",
            )
    return Message(
        Role.ASSISTANT,
        content=arguments,
        channel=Channel.COMMENTARY,
        recipient=f"{label}.{name}",
        content_type="json",
    )


def _error_text(error: McpToolExecutionError | McpProtocolError | HTTPError | None) -> str:
    """What the model is told of an error."""
    if isinstance(error, McpToolExecutionError):
        content: object = error.content
        parts = cast("list[object]", content) if isinstance(content, list) else []
        texts = [cast("dict[str, object]", part).get("text") for part in parts if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str)) or "The call failed."
    return "The call failed." if error is None else error.message
