"""How the tools that the server runs itself are made, one set for each response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ossia.server.errors import ApiError, unsupported
from ossia.tools.base import Tool
from ossia.tools.registry import make_tool

if TYPE_CHECKING:
    from ossia.tools.mcp.config import McpServer

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


async def make_mcp(wanted: HostedTool, *, is_private_allowed: bool = False) -> Tool:
    """A connection to the MCP server that the client names.

    Args:
        is_private_allowed: it may be at a private or loopback address, which clients could else not reach.

    Raises:
        ApiError: it is one of OpenAI's own connectors or tunnels.
        InvalidInputError, McpError: it cannot be named so, or cannot be reached.
    """
    from ossia.tools.mcp.client import connect_mcp

    async def is_allowed(_name: str, _arguments: dict[str, object]) -> bool:
        return True  # calls that need leave are held by the agent's loop, and come here once the client has given it

    server = replace(read_mcp(wanted), is_private_allowed=is_private_allowed)
    return await connect_mcp(server, approve=is_allowed)


def read_mcp(wanted: HostedTool) -> McpServer:
    """A server as a request names it. Without `require_approval` every call needs leave, as with OpenAI.

    Raises:
        ApiError: it is one of OpenAI's own connectors or tunnels, or malformed.
        InvalidInputError: a label or an address that cannot be taken.
    """
    from openai.types.responses.tool import Mcp

    from ossia.server.body import validate
    from ossia.tools.mcp.config import ApprovalRules, McpServer, ToolFilter

    def read_filter(given: Any) -> ToolFilter:
        if given is None:
            return ToolFilter()
        names = None if given.tool_names is None else frozenset(given.tool_names)
        return ToolFilter(names=names, is_read_only=given.read_only)

    mcp = validate(Mcp, wanted.wire, at=wanted.at)
    for field in ("connector_id", "tunnel_id"):
        if getattr(mcp, field) is not None:
            raise unsupported(
                f"{field} names a service of OpenAI's, which this server has not; give server_url",
                param=f"{wanted.at}.{field}",
            )
    if mcp.server_url is None:
        raise ApiError(
            "an MCP server needs a server_url", code="missing_required_parameter", param=f"{wanted.at}.server_url"
        )
    headers = dict(mcp.headers or {})
    if mcp.authorization:
        headers["Authorization"] = f"Bearer {mcp.authorization}"
    allowed, approval = mcp.allowed_tools, mcp.require_approval
    if approval is not None and not isinstance(approval, str):
        approval = ApprovalRules(always=read_filter(approval.always), never=read_filter(approval.never))
    return McpServer(
        label=mcp.server_label,
        url=mcp.server_url,
        headers=headers,
        allowed_tools=frozenset(allowed) if isinstance(allowed, list) else allowed and read_filter(allowed),
        approval=approval or "always",
        is_private_allowed=False,
    )


def default_makers() -> dict[str, ToolMaker]:
    """How each kind of hosted tool is made."""
    return {WEB_SEARCH: make_browser, CODE_INTERPRETER: make_python, MCP: make_mcp}
