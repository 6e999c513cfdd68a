"""Tools that the server runs itself: which a request asks for, how they are made, and how their calls are shown.

web_search        the browser        web_search_call
code_interpreter  python             code_interpreter_call
mcp               an MCP server      mcp_list_tools, mcp_call, mcp_approval_request
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

from openai.types.responses.tool import CodeInterpreter

from ossia.core.errors import InvalidInputError, MissingExtraError, OssiaError
from ossia.harmony.message import Message
from ossia.server.body import validate
from ossia.server.errors import ApiError, unsupported
from ossia.server.makers import CODE_INTERPRETER, MCP, WEB_SEARCH, HostedTool, ToolMaker
from ossia.server.responses.schema import JsonObject
from ossia.tools.base import Tool, ToolResult
from ossia.tools.registry import ToolSet

HOSTED_TYPES = {
    WEB_SEARCH: WEB_SEARCH,
    "web_search_2025_08_26": WEB_SEARCH,
    "web_search_preview": WEB_SEARCH,
    "web_search_preview_2025_03_11": WEB_SEARCH,
    CODE_INTERPRETER: CODE_INTERPRETER,
    MCP: MCP,
}
APPROVAL_REQUEST, APPROVAL_RESPONSE = "mcp_approval_request", "mcp_approval_response"
_SECRET = ("headers", "authorization")
_MAX_LISTED = 500


@runtime_checkable
class Guarded(Protocol):
    """A tool some of whose calls need leave."""

    @property
    def guarded(self) -> frozenset[str]:
        """Their full names."""
        ...


class Approved(NamedTuple):
    """A call that the client has given leave to make.

    Attributes:
        request_id: of the `mcp_approval_request` that asked.
        call: the model's, as it stands in the conversation.
        at: where in the request's input.
    """

    request_id: str
    call: Message
    at: str


class Shown(NamedTuple):
    """What clients see of a hosted tool's call while it is written.

    Attributes:
        body: the item.
        prefix: of its events' types.
        delta, final: types of the events of what is written; None: it is not shown.
        working: the event that says that the tool works.
    """

    body: JsonObject
    prefix: str
    delta: str | None
    final: str
    working: str | None


def read_hosted(tool: Mapping[str, Any], *, at: str, enabled: Sequence[str]) -> HostedTool | None:
    """A hosted tool of `tools`; None for a client's own.

    Raises:
        ApiError: this server has no such tool, or it is not switched on.
    """
    wire_kind = tool.get("type")
    kind = HOSTED_TYPES.get(wire_kind) if isinstance(wire_kind, str) else None
    if kind is None:
        return None
    if kind not in enabled:
        raise unsupported(
            f"the tool {wire_kind!r} is not switched on at this server (it is with --tools {kind}); "
            "declare 'function' or 'custom' tools, or leave it out",
            param=f"{at}.type",
        )
    if kind == CODE_INTERPRETER:
        container = validate(CodeInterpreter, tool, at=at).container
        if isinstance(container, str):
            raise unsupported("containers by id are not available here; use {'type': 'auto'}", param=f"{at}.container")
    return HostedTool(kind, tool, at)


async def make_tools(wanted: Sequence[HostedTool], makers: Mapping[str, ToolMaker]) -> ToolSet:
    """The tools of one response; close them behind it.

    Raises:
        ApiError: one cannot be had.
    """
    made: list[Tool] = []
    try:
        for tool in wanted:
            try:
                made.append(await makers[tool.kind](tool))
            except ApiError:
                raise
            except (OssiaError, MissingExtraError) as error:
                code = "invalid_value" if isinstance(error, InvalidInputError) else "tool_unavailable"
                raise ApiError(f"the tool {tool.kind!r} cannot be had: {error}", code=code, param=tool.at) from error
        return ToolSet(made)
    except BaseException:
        await asyncio.gather(*(tool.close() for tool in made), return_exceptions=True)
        raise


def guarded_names(tools: ToolSet) -> frozenset[str]:
    """Full names of the tools whose calls need the client's leave."""
    return frozenset(name for tool in tools if isinstance(tool, Guarded) for name in tool.guarded)


def without_secrets(tool: JsonObject) -> JsonObject:
    """A tool of a request as responses tell it again and the database keeps it: what opens its server is left out."""
    return {key: value for key, value in tool.items() if key not in _SECRET} if tool.get("type") == MCP else tool


# ---- how calls are shown ----


def open_request(recipient: str, *, new_id: Callable[[str], str]) -> JsonObject:
    """The item that asks the client for leave."""
    space, _, name = recipient.partition(".")
    return {"id": new_id("mcpr"), "type": APPROVAL_REQUEST, "arguments": "", "name": name, "server_label": space}


def open_call(kind: str, recipient: str, *, new_id: Callable[[str], str]) -> Shown:
    """The item of a call that begins."""
    space, _, name = recipient.partition(".")
    if kind == WEB_SEARCH:
        body: JsonObject = {"id": new_id("ws"), "type": "web_search_call", "status": "in_progress"}
        body["action"] = _action(name, {}, None)
        return Shown(body, "response.web_search_call", None, "", "response.web_search_call.searching")
    if kind == CODE_INTERPRETER:
        body = {"id": new_id("ci"), "type": "code_interpreter_call", "status": "in_progress", "code": ""}
        body |= {"container_id": new_id("cntr"), "outputs": None}
        prefix = "response.code_interpreter_call"
        return Shown(body, prefix, f"{prefix}_code.delta", f"{prefix}_code.done", f"{prefix}.interpreting")
    body = {"id": new_id("mcp"), "type": "mcp_call", "status": "in_progress", "server_label": space, "name": name}
    body |= {"arguments": "", "output": None, "error": None, "approval_request_id": None}
    return Shown(
        body, "response.mcp_call", "response.mcp_call_arguments.delta", "response.mcp_call_arguments.done", None
    )


def written(body: JsonObject, text: str, recipient: str) -> JsonObject:
    """Note in the item what the model wrote; the fields of the event that tells of it."""
    if body["type"] == "web_search_call":
        body["status"] = "searching"
        body["action"] = _action(recipient.partition(".")[2], _arguments(text), None)
        return {}
    if body["type"] == "code_interpreter_call":
        body["status"] = "interpreting"
        body["code"] = text
        return {"code": text}
    body["arguments"] = text
    return {"arguments": text}


def close_call(body: JsonObject, result: ToolResult, *, call: Message, include: Sequence[str]) -> str:
    """Note in the item what the tool gave; how the call ended: `completed` or `failed`."""
    has_failed = result.failure is not None
    body["status"] = "failed" if has_failed else "completed"
    if body["type"] == "web_search_call":
        name = (call.recipient or "").partition(".")[2]
        body["action"] = _action(name, _arguments(call.text), result)
        if "web_search_call.action.sources" in include and body["action"]["type"] == "search":
            urls = dict.fromkeys(source.url for source in result.sources)
            body["action"]["sources"] = [{"type": "url", "url": url} for url in urls]
        return "completed"  # there is no event for a failed search; the item's status tells
    if body["type"] == "code_interpreter_call":
        if "code_interpreter_call.outputs" in include:
            images = [_data_url(file.mime_type, file.data) for file in result.files if file.data is not None]
            outputs: list[JsonObject] = [{"type": "logs", "logs": result.text}]
            body["outputs"] = outputs + [
                {"type": "image", "url": url} for url in images if url.startswith("data:image/")
            ]
        return "completed"
    if has_failed:
        body["error"] = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": result.text}]}
        return "failed"
    body["output"] = result.text
    return "completed"


def list_item(tool: Tool, *, new_id: Callable[[str], str]) -> JsonObject:
    """The `mcp_list_tools` item of a connected server."""
    declared = tool.declaration()
    tools = [
        {
            "name": f.name,
            "description": f.description,
            "input_schema": f.parameters or {"type": "object"},
            "annotations": None,
        }
        for f in declared.tools[:_MAX_LISTED]
    ]
    return {
        "id": new_id("mcpl"),
        "type": "mcp_list_tools",
        "server_label": declared.name,
        "tools": tools,
        "error": None,
    }


def _action(name: str, arguments: Mapping[str, Any], result: ToolResult | None) -> JsonObject:
    """What a call of the browser does, as OpenAI tells it. A link by number gets its address with the result."""
    seen = result.sources[0].url if result is not None and result.sources else None
    if name == "open":
        given = arguments.get("id")
        return {"type": "open_page", "url": seen or (given if isinstance(given, str) else None)}
    if name == "find":
        return {"type": "find_in_page", "pattern": str(arguments.get("pattern", "")), "url": seen or ""}
    query = str(arguments.get("query", ""))
    return {"type": "search", "query": query, "queries": [query]}


def _arguments(text: str) -> Mapping[str, Any]:
    try:
        value: object = json.loads(text)
    except ValueError:
        return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _data_url(mime_type: str, data: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
