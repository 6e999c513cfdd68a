"""Our tools as an MCP server: what `ossia mcp` offers over stdio or streamable HTTP.

Each function of a namespace is one MCP tool (`browser_search`); a namespace that is itself a tool takes its text as one
argument (`python`, with `code`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ossia.harmony.message import Message, Role
from ossia.tools.base import Tool, ToolResult
from ossia.tools.extras import need
from ossia.tools.registry import ToolSet

_CODE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "Sent to the tool as it is."}},
    "required": ["code"],
    "additionalProperties": False,
}
_EMPTY_SCHEMA: Mapping[str, Any] = {"type": "object", "properties": {}}


def make_server(tools: Iterable[Tool], *, name: str = "ossia", version: str = "") -> Any:
    """An `mcp.server.Server` over some tools; its clients share them, and with them one kernel and one page stack.

    Closing the tools stays with the caller.

    Raises:
        MissingExtraError: the SDK is not installed.
    """
    lowlevel = need("mcp.server.lowlevel", package="mcp")
    types = need("mcp_types", package="mcp")
    tool_set = ToolSet(tools)
    recipients: dict[str, str] = {}
    listed: list[Any] = []
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tool_set:
        space = tool.declaration()
        entries = [(f"{space.name}.{item.name}", item.description, item.parameters) for item in space.tools]
        for recipient, description, parameters in entries or [(space.name, space.description, _CODE_SCHEMA)]:
            public = recipient.replace(".", "_")
            schema = dict(parameters) if isinstance(parameters, Mapping) else dict(_EMPTY_SCHEMA)
            recipients[public], schemas[public] = recipient, schema
            # A namespace says in its own description how its functions go together.
            text = f"{description}\n\n{space.description}" if entries and space.description else description
            listed.append(types.Tool(name=public, description=text or "", input_schema=schema))

    async def list_tools(_context: Any, _params: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(_context: Any, params: Any) -> Any:
        recipient = recipients.get(params.name)
        arguments: dict[str, Any] = params.arguments or {}
        if recipient is None:
            known = ", ".join(recipients)
            return _error(types, f"There is no tool {params.name!r}; these exist: {known}.")
        if schemas[params.name] == _CODE_SCHEMA:
            body: Any = arguments.get("code")
            if not isinstance(body, str):
                return _error(types, "The argument 'code' is missing or no text.")
        else:
            body = json.dumps(arguments)
        call = Message(Role.ASSISTANT, content=body, recipient=recipient, channel="analysis")
        return _to_result(types, await tool_set.call(call))

    return lowlevel.Server(name, version=version, on_list_tools=list_tools, on_call_tool=call_tool)


async def serve_stdio(tools: Iterable[Tool], *, version: str = "") -> None:
    """Serves one client on stdin and stdout until stdin ends; then closes the tools."""
    stdio = need("mcp.server.stdio", package="mcp")
    owned = tuple(tools)
    server = make_server(owned, version=version)
    async with ToolSet(owned), stdio.stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())


def make_http_app(tools: Iterable[Tool], *, host: str = "127.0.0.1", version: str = "") -> Any:
    """An ASGI application that serves streamable HTTP at /mcp.

    Args:
        host: where it will listen. On loopback, requests with another Host or Origin are refused (DNS rebinding).
    """
    return make_server(tools, version=version).streamable_http_app(host=host)


def _to_result(types: Any, result: ToolResult) -> Any:
    content: list[Any] = [types.TextContent(type="text", text=result.text)]
    for file in result.files:
        if file.data is not None and file.mime_type.startswith("image/"):
            data = base64.b64encode(file.data).decode("ascii")
            content.append(types.ImageContent(type="image", data=data, mime_type=file.mime_type))
    return types.CallToolResult(content=content, is_error=result.failure is not None)


def _error(types: Any, text: str) -> Any:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)
