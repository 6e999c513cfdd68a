"""MCP both ways: our client against our server over both transports, and against the protocol's reference server."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Message, Role
from ossia.tools.base import FailureKind, ToolContext, ToolResult
from ossia.tools.mcp.client import McpError, McpTool, connect_mcp
from ossia.tools.mcp.config import McpServer
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox

pytest.importorskip("mcp", reason="the extra ossia[tools] is not installed")

SERVER = '''
import asyncio, sys, time
from ossia.tools.functions import FunctionsTool
from ossia.tools.mcp.server import serve_stdio

def add(a: int, b: int = 1) -> int:
    """Adds."""
    return a + b

async def wait(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "done"

def fail() -> str:
    """Fails."""
    raise ValueError("on purpose")

def leave() -> str:
    """Ends the server."""
    sys.exit(3)

sys.stderr.write("noise on stderr\\n" * 1000)
asyncio.run(serve_stdio([FunctionsTool([add, wait, fail, leave])]))
'''


async def call(tool: McpTool, name: str, arguments: object) -> ToolResult:
    body = arguments if isinstance(arguments, str) else json.dumps(arguments)
    message = Message(Role.ASSISTANT, content=body, recipient=f"{tool.name}.{name}", channel="commentary")
    return await tool.call(message, context=ToolContext())


@pytest.fixture
def stdio(tmp_path: Path) -> McpServer:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return McpServer(label="own", command=(sys.executable, str(script)), approval="never", timeout_s=20)


def with_server(server: McpServer, *calls: tuple[str, object], **options: Any) -> list[ToolResult]:
    async def go() -> list[ToolResult]:
        tool = await connect_mcp(server, **options)
        try:
            return [await call(tool, name, arguments) for name, arguments in calls]
        finally:
            await tool.close()

    return asyncio.run(go())


def change(server: McpServer, **options: Any) -> McpServer:
    from dataclasses import replace

    return replace(server, **options)


def test_stdio_results_and_errors(stdio: McpServer) -> None:
    total, failed, wrong, broken, unknown = with_server(
        stdio,
        ("functions_add", {"a": 2, "b": 3}),
        ("functions_fail", {}),
        ("functions_add", {"a": "x"}),
        ("functions_add", "{"),
        ("functions_nothing", {}),
    )
    assert total.text == "5"
    assert total.messages[0].name == "own.functions_add"
    assert failed.failure is FailureKind.FAILED
    assert "on purpose" in failed.text
    assert wrong.failure is broken.failure is FailureKind.INVALID_ARGUMENTS
    assert "a: 'x' is not of type 'integer'" in wrong.text
    assert unknown.failure is FailureKind.NO_SUCH_TOOL


@pytest.mark.slow
def test_a_slow_call_is_given_up_and_the_connection_stays(stdio: McpServer) -> None:
    slow, after = with_server(
        change(stdio, timeout_s=5.0), ("functions_wait", {"seconds": 60}), ("functions_add", {"a": 1})
    )
    assert slow.failure is FailureKind.TIMEOUT
    assert after.text == "2"


def test_calls_overlap(stdio: McpServer) -> None:
    async def go() -> list[ToolResult]:
        tool = await connect_mcp(stdio)
        try:
            waits = [call(tool, "functions_wait", {"seconds": 1.0}) for _ in range(5)]
            async with asyncio.timeout(4):
                return await asyncio.gather(*waits)
        finally:
            await tool.close()

    assert [result.text for result in asyncio.run(go())] == ["done"] * 5


@pytest.mark.slow
def test_a_server_that_dies_costs_its_calls_only(stdio: McpServer) -> None:
    died, after = with_server(change(stdio, timeout_s=5.0), ("functions_leave", {}), ("functions_add", {"a": 1}))
    assert died.failure is not None
    assert after.failure is not None


def test_only_allowed_tools_are_offered(stdio: McpServer) -> None:
    async def names(server: McpServer) -> set[str]:
        tool = await connect_mcp(server)
        await tool.close()
        return {item.name for item in tool.declaration().tools}

    only = change(stdio, allowed_tools=frozenset({"functions_add"}))
    assert asyncio.run(names(only)) == {"functions_add"}
    but = change(stdio, denied_tools=frozenset({"functions_leave", "functions_fail"}))
    assert asyncio.run(names(but)) == {"functions_add", "functions_wait"}
    (denied,) = with_server(only, ("functions_leave", {}))
    assert denied.failure is FailureKind.NO_SUCH_TOOL


def test_approval(stdio: McpServer) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    async def approve(name: str, arguments: dict[str, object]) -> bool:
        asked.append((name, arguments))
        return arguments == {"a": 1}

    always = change(stdio, approval="always")
    fine, denied = with_server(always, ("functions_add", {"a": 1}), ("functions_add", {"a": 2}), approve=approve)
    assert fine.text == "2"
    assert denied.failure is FailureKind.DENIED
    assert asked == [("own.functions_add", {"a": 1}), ("own.functions_add", {"a": 2})]
    (unasked,) = with_server(always, ("functions_add", {"a": 1}))
    assert unasked.failure is FailureKind.DENIED
    some = change(stdio, approval=frozenset({"functions_fail"}))
    fine, denied = with_server(some, ("functions_add", {"a": 1}), ("functions_fail", {}))
    assert (fine.failure, denied.failure) == (None, FailureKind.DENIED)


@pytest.mark.slow
def test_servers_that_cannot_be_reached(tmp_path: Path) -> None:
    for options in (
        {"command": (str(tmp_path / "nothing"),)},
        {"command": (sys.executable, "-c", "print('no protocol')")},
        {"command": (sys.executable, "-c", "import time; time.sleep(60)")},
        {"url": "http://127.0.0.1:9/mcp"},
        {"url": "http://127.0.0.1:9/mcp", "is_private_allowed": False},
    ):
        with pytest.raises(McpError, match="own"):
            asyncio.run(connect_mcp(McpServer(label="own", timeout_s=3, **options)))


@pytest.mark.parametrize(
    "options",
    [
        {"label": "python", "command": ("x",)},
        {"label": "a b", "command": ("x",)},
        {"label": "a"},
        {"label": "a", "command": ("x",), "url": "http://x/"},
        {"label": "a", "url": "file:///x"},
        {"label": "a", "command": ("x",), "timeout_s": 0},
    ],
)
def test_wrong_servers_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        McpServer(**options)


def test_secrets_are_not_shown() -> None:
    server = McpServer(label="a", url="http://x/", headers={"Authorization": "hunter2"}, environment={"K": "hunter2"})
    assert "hunter2" not in repr(server)


# ---- streamable HTTP ----


def test_http_results(mcp_url: str) -> None:
    server = McpServer(label="web", url=mcp_url, approval="never", timeout_s=20)
    total, wrong = with_server(server, ("functions_add", {"a": 2}), ("functions_add", {}))
    assert total.text == "3"
    assert wrong.failure is FailureKind.INVALID_ARGUMENTS


def test_an_address_that_is_not_trusted_may_not_be_private(mcp_url: str) -> None:
    server = McpServer(label="web", url=mcp_url, approval="never", timeout_s=5, is_private_allowed=False)
    with pytest.raises(McpError):
        asyncio.run(connect_mcp(server))


def test_a_page_of_another_site_cannot_reach_the_server(mcp_url: str) -> None:
    import httpx2

    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    headers = {"Accept": "application/json, text/event-stream"}
    for bad in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        response = httpx2.post(mcp_url, json=body, headers={**headers, **bad}, trust_env=False)
        assert response.status_code in (403, 421)


# ---- the reference server ----


def test_the_reference_server() -> None:
    command = shutil.which("mcp-server-everything")
    if command is None:
        pytest.skip("npm install -g @modelcontextprotocol/server-everything to run this")
    server = McpServer(label="everything", command=(command, "stdio"), approval="never", timeout_s=30)
    echo, total, wrong, image, structured = with_server(
        server,
        ("echo", {"message": "hello"}),
        ("get_sum", {"a": 2, "b": 40}),
        ("get_sum", {"a": "two"}),
        ("get_tiny_image", {}),
        ("get_structured_content", {"location": "Chicago"}),
    )
    assert echo.text == "Echo: hello"
    assert "42" in total.text
    assert wrong.failure is FailureKind.INVALID_ARGUMENTS
    assert image.files[0].mime_type == "image/png"
    assert json.loads(structured.text)["conditions"]


OFFERED = """
import asyncio
from ossia.tools.browser.tool import make_browser
from ossia.tools.mcp.server import serve_stdio
from ossia.tools.python.tool import PythonTool

asyncio.run(serve_stdio([PythonTool(), make_browser()]))
"""


def test_browser_and_python_are_offered_to_others(tmp_path: Path) -> None:
    """What `ossia mcp` serves: one kernel and one stack of pages for the client, images as images."""
    if (fault := BubblewrapSandbox().find_fault()) is not None:
        pytest.skip(fault)
    script = tmp_path / "server.py"
    script.write_text(OFFERED)
    server = McpServer(label="ossia", command=(sys.executable, str(script)), approval="never", timeout_s=60)
    png = "from IPython.display import Image, display\ndisplay(Image(data=b'\\x89PNG\\r\\n\\x1a\\n', format='png'))"
    first, second, image, wrong, found, opened, bad = with_server(
        server,
        ("python", {"code": "x = 6"}),
        ("python", {"code": "x * 7"}),
        ("python", {"code": png}),
        ("python", {}),
        ("browser_search", {"query": "harmony"}),
        ("browser_open", {"id": 0}),
        ("browser_open", {"id": 999, "cursor": 0}),
    )
    assert first.failure is None
    assert second.text == "42"
    assert [file.mime_type for file in image.files] == ["image/png"]
    assert wrong.failure is FailureKind.INVALID_ARGUMENTS
    assert "【0†" in found.text
    assert opened.text.startswith("[1] ")
    assert bad.failure is FailureKind.FAILED
