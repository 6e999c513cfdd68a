"""How the tools that the server runs itself are made, one set for each response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from ossia.server.errors import unsupported
from ossia.tools.base import Tool
from ossia.tools.registry import make_tool

WEB_SEARCH, CODE_INTERPRETER, MCP = "web_search", "code_interpreter", "mcp"


class HostedTool(NamedTuple):
    """A tool of the server that a request asks for.

    Attributes:
        kind: web_search, code_interpreter or mcp.
        wire: as the request gave it.
        at: where in the request.
    """

    kind: str
    wire: Mapping[str, Any]
    at: str


ToolMaker: TypeAlias = Callable[[HostedTool], Awaitable[Tool]]


async def make_browser(_: HostedTool) -> Tool:
    """A browser with the backend that this installation has."""
    return make_tool("browser")


async def make_python(_: HostedTool) -> Tool:
    """A Python kernel in a sandbox."""
    return make_tool("python")


async def make_mcp(wanted: HostedTool) -> Tool:
    """A connection to the MCP server that the client names; never to a private address.

    Raises:
        ApiError: it wants approvals or a connector, or cannot be reached.
    """
    from openai.types.responses.tool import Mcp

    from ossia.server.body import validate
    from ossia.tools.mcp.client import connect_mcp
    from ossia.tools.mcp.config import McpServer

    mcp = validate(Mcp, wanted.wire, at=wanted.at)
    if mcp.server_url is None:
        raise unsupported(
            "connectors are not available on this server; give server_url", param=f"{wanted.at}.server_url"
        )
    if mcp.require_approval != "never":
        raise unsupported(
            "approvals are not available on this server; say 'never', and allow only tools that you trust",
            param=f"{wanted.at}.require_approval",
        )
    headers = dict(mcp.headers or {})
    if mcp.authorization:
        headers["Authorization"] = f"Bearer {mcp.authorization}"
    allowed = mcp.allowed_tools
    names = allowed if isinstance(allowed, list) or allowed is None else allowed.tool_names
    return await connect_mcp(
        McpServer(
            label=mcp.server_label,
            url=mcp.server_url,
            headers=headers,
            allowed_tools=None if names is None else frozenset(names),
            approval="never",
            is_private_allowed=False,
        )
    )


def default_makers() -> dict[str, ToolMaker]:
    """How each kind of hosted tool is made."""
    return {WEB_SEARCH: make_browser, CODE_INTERPRETER: make_python, MCP: make_mcp}
