"""MCP both ways: our client against our server over both transports, and against the protocol's reference server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ossia
from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Message, Role
from ossia.tools.base import FailureKind, ToolContext, ToolResult
from ossia.tools.mcp.client import McpError, McpTool, connect_mcp
from ossia.tools.mcp.config import McpSandbox, McpServer
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox

pytest.importorskip("mcp", reason="the extra ossia[tools] is not installed")

CLIENTS = Path(__file__).parent / "clients"
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
        {"label": "a", "url": "https://x/", "sandbox": McpSandbox()},
    ],
)
def test_wrong_servers_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        McpServer(**options)


def test_secrets_are_not_shown() -> None:
    server = McpServer(label="a", url="http://x/", headers={"Authorization": "hunter2"}, environment={"K": "hunter2"})
    assert "hunter2" not in repr(server)


# ---- confined ----

CURIOUS = """
import asyncio, os, socket
from ossia.tools.functions import FunctionsTool
from ossia.tools.mcp.server import serve_stdio

def read(path: str) -> str:
    with open(path) as file:
        return file.read()

def write(path: str, text: str) -> str:
    with open(path, "w") as file:
        file.write(text)
    return "written"

def connect(port: int) -> str:
    socket.create_connection(("127.0.0.1", port), timeout=2)
    return "connected"

def look() -> dict[str, str]:
    return {**os.environ, "user": str(os.getuid()), "folder": os.getcwd()}

asyncio.run(serve_stdio([FunctionsTool([read, write, connect, look])]))
"""


@pytest.fixture
def curious(tmp_path: Path) -> McpServer:
    """A server that does what it is told, confined to its own folder and one that it may write to."""
    if (fault := BubblewrapSandbox().find_fault()) is not None:
        pytest.skip(fault)
    home, shared = tmp_path / "home", tmp_path / "shared"
    for folder in (home, shared):
        folder.mkdir()
    (home / "server.py").write_text(CURIOUS)
    (tmp_path / "secret").write_text("hunter2")
    BubblewrapSandbox().prepare_folder(shared)  # root's own folders are not for programs
    package = Path(ossia.__file__).parent.parent
    sandbox = McpSandbox(read_only=(home, package), writable=(shared,))
    command = ("python", str(home / "server.py"))
    return McpServer(label="own", command=command, sandbox=sandbox, approval="never", timeout_s=20)


def test_a_confined_command_has_its_folders_and_nothing_else(curious: McpServer, tmp_path: Path, mcp_url: str) -> None:
    port = int(mcp_url.split(":")[2].split("/", maxsplit=1)[0])
    shared = tmp_path / "shared" / "note"
    written, seen, other, above, own, network, looked = with_server(
        change(curious, environment={"MARK": "x"}),
        ("functions_write", {"path": str(shared), "text": "milk"}),
        ("functions_read", {"path": str(shared)}),
        ("functions_read", {"path": str(tmp_path / "secret")}),
        ("functions_write", {"path": str(tmp_path / "more"), "text": "x"}),
        ("functions_write", {"path": str(tmp_path / "home" / "server.py"), "text": "x"}),
        ("functions_connect", {"port": port}),
        ("functions_look", {}),
    )
    assert (written.text, seen.text, shared.read_text()) == ("written", "milk", "milk")
    assert all(result.failure is FailureKind.FAILED for result in (other, above, own, network))
    assert "hunter2" not in other.text
    assert (tmp_path / "home" / "server.py").read_text() == CURIOUS
    surroundings = json.loads(looked.text)
    assert (surroundings["MARK"], surroundings["folder"]) == ("x", str(tmp_path / "shared"))
    assert surroundings["user"] != "0"
    assert "USER" not in surroundings


def test_a_confined_command_without_folders_works_in_a_temporary_one(curious: McpServer) -> None:
    assert curious.sandbox is not None
    read_only = replace(curious.sandbox, writable=())
    written, looked = with_server(
        change(curious, sandbox=read_only),
        ("functions_write", {"path": "note", "text": "milk"}),
        ("functions_look", {}),
    )
    assert written.text == "written"
    assert json.loads(looked.text)["folder"] == "/mnt/data"


@pytest.mark.parametrize("given", [{"read_only": (Path("/nowhere"),)}, {"writable": (Path("/"),)}])
def test_folders_that_cannot_be_shown(curious: McpServer, given: dict[str, Any]) -> None:
    if os.geteuid() and "writable" in given:
        pytest.skip("only root has folders that nobody may write to")
    with pytest.raises(McpError, match=r"no folder|belongs to root"):
        asyncio.run(connect_mcp(change(curious, sandbox=McpSandbox(**given))))


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


@pytest.mark.parametrize("is_confined", [False, True])
def test_the_reference_server(is_confined: bool) -> None:
    command = shutil.which("mcp-server-everything", path=f"{CLIENTS / 'node_modules/.bin'}:{os.environ['PATH']}")
    if command is None or shutil.which("node") is None:
        pytest.skip("@modelcontextprotocol/server-everything is not installed; `make compat` installs it from npm")
    program = Path(command).resolve()
    sandbox = None
    if is_confined:
        if (fault := BubblewrapSandbox().find_fault()) is not None:
            pytest.skip(fault)
        sandbox = McpSandbox(read_only=(next(p for p in program.parents if p.name == "node_modules"),))
    server = McpServer(
        label="everything", command=(str(program), "stdio"), sandbox=sandbox, approval="never", timeout_s=30
    )
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
