"""The tools of an MCP server, as one of ours.

The list of tools is read once, at `connect`: a server that changes a description later changes nothing here. What a
server says, descriptions too, is text from outside: it is bounded and stays a tool's declaration or message.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from ossia.core.errors import InvalidInputError, OssiaError
from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.arguments import parse_object
from ossia.tools.base import (
    ApprovalHook,
    FailureKind,
    ToolContext,
    ToolError,
    ToolFile,
    ToolResult,
    failure,
    reply,
)
from ossia.tools.browser.page import clean_text
from ossia.tools.extras import need
from ossia.tools.mcp.config import McpServer
from ossia.tools.mcp.confined import confine
from ossia.tools.mcp.transport import make_client

MAX_RESULT_CHARS = 100_000
MAX_TOOLS = 200
_MAX_PAGES = 20
_MAX_DESCRIPTION_CHARS = 4_000
_MAX_FILE_BYTES = 16 << 20
_log = logging.getLogger(__name__)


class McpError(OssiaError):
    """An MCP server that cannot be reached, or does not speak as it should."""


class _Entry(NamedTuple):
    """A tool: the server's name for it, its declaration, what checks its arguments, and whether calls need leave."""

    remote_name: str
    tool: FunctionTool
    validator: Any
    needs_leave: bool


class _Connection(NamedTuple):
    """The SDK's client, and the HTTP client under it, which the SDK leaves to us to close."""

    client: Any
    http: Any | None


class McpTool:
    """One connected server. Make one with `connect_mcp`."""

    is_builtin = False

    def __init__(self, server: McpServer, connection: _Connection, *, approve: ApprovalHook | None) -> None:
        self._server = server
        self._client = connection.client
        self._http = connection.http
        self._approve = approve
        self._entries: dict[str, _Entry] = {}
        self._stop = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._server.label

    @property
    def guarded(self) -> frozenset[str]:
        """Full names of the tools whose calls need leave."""
        return frozenset(f"{self.name}.{name}" for name, entry in self._entries.items() if entry.needs_leave)

    def declaration(self) -> ToolNamespace:
        return ToolNamespace(self.name, tools=tuple(entry.tool for entry in self._entries.values()))

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        name = (message.recipient or "").partition(".")[2]
        entry = self._entries.get(name)
        if entry is None:
            text = f"There is no tool {message.recipient!r}; these exist: {', '.join(self._entries)}."
            return failure(message, text, kind=FailureKind.NO_SUCH_TOOL)
        try:
            arguments = parse_object(message)
            _check_arguments(entry, arguments)
        except ToolError as error:
            return failure(message, str(error), kind=error.kind)
        if entry.needs_leave and not await self._has_leave(name, arguments):
            text = f"The call of {self.name}.{name} was not approved."
            return failure(message, text, kind=FailureKind.DENIED)
        try:
            async with asyncio.timeout(self._server.timeout_s):
                result = await self._client.call_tool(entry.remote_name, arguments)
        except TimeoutError:
            text = f"{name} did not answer within {self._server.timeout_s:g} s."
            return failure(message, text, kind=FailureKind.TIMEOUT)
        except Exception as error:  # noqa: BLE001  the SDK raises many kinds
            _log.warning("the MCP tool %s.%s failed: %s", self.name, name, type(error).__name__)
            text = f"{name} failed: {_reason(error)}"
            return failure(message, text, kind=FailureKind.FAILED)
        text, files = read_content(result)
        kind = FailureKind.FAILED if result.is_error else None
        return ToolResult(messages=(reply(message, text),), files=files, failure=kind)

    async def _has_leave(self, name: str, arguments: dict[str, Any]) -> bool:
        return self._approve is not None and await self._approve(f"{self.name}.{name}", arguments)

    async def close(self) -> None:
        self._stop.set()
        if self._owner is not None:
            await asyncio.wait({self._owner})

    async def open(self) -> None:
        """Connects and reads the tools. As `connect_mcp`, which calls it."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(ready))
        try:
            await asyncio.wait_for(asyncio.shield(ready), self._server.timeout_s)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._owner.cancel()
            await asyncio.wait({self._owner})
            if isinstance(error, asyncio.CancelledError):
                raise
            seconds = f"{self._server.timeout_s:g} s"
            raise McpError(f"the MCP server {self.name!r} did not answer within {seconds}") from error

    async def _own(self, ready: asyncio.Future[None]) -> None:
        """Opens the connection, keeps it, and closes it in the task that opened it, as the SDK requires."""
        try:
            async with AsyncExitStack() as stack:
                if self._http is not None:
                    await stack.enter_async_context(self._http)
                await stack.enter_async_context(self._client)
                await self._list_tools()
                ready.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(McpError(f"the MCP server {self.name!r} cannot be used: {_reason(error)}"))
            elif not isinstance(error, asyncio.CancelledError):
                _log.warning("the connection to the MCP server %s ended: %s", self.name, type(error).__name__)
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _list_tools(self) -> None:
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            for tool in page.tools:
                if len(self._entries) < MAX_TOOLS:
                    self._add(tool)
            cursor = page.next_cursor
            if not cursor:
                return

    def _add(self, tool: Any) -> None:
        is_read_only = tool.annotations is not None and tool.annotations.read_only_hint is True
        if not self._server.offers(tool.name, is_read_only=is_read_only):
            return
        name = re.sub(r"[^A-Za-z0-9_]", "_", tool.name)[:64]
        if not name or name in self._entries:
            _log.warning("the tool %r of the MCP server %s is left out: its name is taken", tool.name, self.name)
            return
        description = clean_text(tool.description or "")[:_MAX_DESCRIPTION_CHARS]
        try:
            declared = FunctionTool(name, description=description, parameters=tool.input_schema)
            validator = _make_validator(tool.input_schema)
        except InvalidInputError as error:
            _log.warning("the tool %r of the MCP server %s is left out: %s", tool.name, self.name, error)
            return
        needs_leave = self._server.needs_approval(tool.name, is_read_only=is_read_only)
        self._entries[name] = _Entry(tool.name, declared, validator, needs_leave)


async def connect_mcp(server: McpServer, *, approve: ApprovalHook | None = None) -> McpTool:
    """Connects to a server and reads its tools.

    Args:
        server: which, and what is allowed.
        approve: asked before calls that need leave.

    Raises:
        McpError: it cannot be reached or does not answer in time.
        MissingExtraError: the SDK is not installed.
    """
    tool = McpTool(server, _make_connection(server), approve=approve)
    await tool.open()
    return tool


def _make_connection(server: McpServer) -> _Connection:
    mcp = need("mcp")
    client = None
    if server.url is not None:
        streamable = need("mcp.client.streamable_http", package="mcp")
        client = make_client(
            headers=dict(server.headers),
            timeout_s=server.timeout_s,
            is_private_allowed=server.is_private_allowed,
        )
        transport = streamable.streamable_http_client(server.url, http_client=client)
    else:
        stdio = need("mcp.client.stdio", package="mcp")
        transport = _open_stdio(stdio, server)
    return _Connection(mcp.Client(transport, read_timeout_seconds=server.timeout_s), client)


@asynccontextmanager
async def _open_stdio(stdio: Any, server: McpServer) -> AsyncGenerator[Any, None]:
    """Start a server's command. What it writes to stderr is its own affair."""
    command, environment, workdir = server.command, dict(server.environment), server.workdir
    with contextlib.ExitStack() as stack:
        if server.sandbox is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossia-", ignore_cleanup_errors=True)))
            command = await asyncio.to_thread(confine, command, server.sandbox, environment=environment, folder=folder)
            environment, workdir = {}, None
        parameters = stdio.StdioServerParameters(
            command=command[0],
            args=list(command[1:]),
            env=environment,
            cwd=workdir,
            encoding_error_handler="replace",
        )
        sink = stack.enter_context(open(os.devnull, "w"))
        async with stdio.stdio_client(parameters, errlog=sink) as streams:
            yield streams


def read_content(result: Any) -> tuple[str, tuple[ToolFile, ...]]:
    """The text and the files of a result; structured content counts where there is no text."""
    parts: list[str] = []
    files: list[ToolFile] = []
    for i, block in enumerate(cast("Sequence[Any]", result.content)):
        if block.type == "text":
            parts.append(block.text)
        elif block.type in ("image", "audio"):
            parts.append(_take_file(files, block.data, block.mime_type, name=f"{block.type}_{i + 1}"))
        elif block.type == "resource":
            resource = block.resource
            text = getattr(resource, "text", None)
            if text is not None:
                parts.append(text)
            else:
                parts.append(_take_file(files, resource.blob, resource.mime_type, name=f"resource_{i + 1}"))
        elif block.type == "resource_link":
            parts.append(f"[resource: {block.uri}]")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(parts)
    if len(text) > MAX_RESULT_CHARS:
        text = f"{text[:MAX_RESULT_CHARS]}\n[... {len(text) - MAX_RESULT_CHARS} characters left out]"
    return text or "[no output]", tuple(files)


def _take_file(files: list[ToolFile], data: str, mime_type: str | None, *, name: str) -> str:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return f"[{name}: cannot be decoded]"
    if len(content) > _MAX_FILE_BYTES:
        return f"[{name}: {len(content)} bytes, left out]"
    files.append(
        ToolFile(name=name, mime_type=mime_type or "application/octet-stream", size=len(content), data=content)
    )
    return f"[{name}]"


def _make_validator(schema: Mapping[str, Any]) -> Any:
    """A validator that fetches nothing: a reference to elsewhere fails instead."""
    jsonschema, referencing = need("jsonschema"), need("referencing", package="jsonschema")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InvalidInputError(f"its schema is not valid: {error.message[:200]}", param="tools") from error
    return kind(schema, registry=referencing.Registry())


def _check_arguments(entry: _Entry, arguments: dict[str, Any]) -> None:
    try:
        errors = list(entry.validator.iter_errors(arguments))[:5]
    except Exception:  # noqa: BLE001  a schema that cannot be followed: the server checks for itself
        return
    if errors:
        lines = [f"- {'.'.join(str(part) for part in error.path) or 'arguments'}: {error.message}" for error in errors]
        text = "\n".join([f"Invalid arguments for {entry.tool.name}:", *lines])
        raise ToolError(text[:4000], kind=FailureKind.INVALID_ARGUMENTS)


def _reason(error: BaseException) -> str:
    """The first plain error in a group, in one line; SDK errors carry the server's words."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}".rstrip(": ")
