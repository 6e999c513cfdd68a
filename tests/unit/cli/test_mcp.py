"""`ossia mcp`: its options. A server that is spoken to: tests/integration/test_tools_mcp.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra ossia[tools] is not installed")

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}


def test_a_client_on_stdin_is_told_of_the_tools(tmp_path: Path) -> None:
    lines = [
        HELLO,
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
    ]
    command = [sys.executable, "-m", "ossia.cli.main", "mcp", "--tools", "repo_browser", "--root", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.stdin.close()
        assert process.wait(30) == 0
    assert answers[0]["result"]["serverInfo"]["name"] == "ossia"
    assert "repo_browser_open_file" in [tool["name"] for tool in answers[1]["result"]["tools"]]


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--tools", "nonsense"], "there is no tool 'nonsense'"),
        (["--tools", ","], "no tools are named"),
        (["--http", "--host", "0.0.0.0"], "--allow-open"),
        (["--tools", "container", "--root", "/nowhere"], "is no folder"),
        (["--tools", "browser", "--search", "altavista"], "unknown search backend"),
    ],
)
def test_what_cannot_be_served(run: Any, args: list[str], part: str) -> None:
    result = run("mcp", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert part in result.stderr


def test_missing_packages_name_the_extra(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    result = run("mcp")
    assert result.exit_code == 1
    assert "pip install 'ossia[tools]'" in result.stderr
