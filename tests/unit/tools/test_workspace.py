"""container.exec and repo_browser over a small repository."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ossia.tools.base import FailureKind, ToolResult
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox
from ossia.tools.sandbox.limits import MIB, SandboxLimits
from ossia.tools.workspace.container import ContainerTool
from ossia.tools.workspace.patch_tool import ApplyPatchTool
from ossia.tools.workspace.repo_browser import RepoBrowserTool

OWNER = 12_345
PATCH = "*** Begin Patch\n*** Update File: src/a.py\n@@\n-x = 1\n+x = 2\n*** End Patch\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("x = 1\ny = x + 1\n")
    (root / "README.md").write_text("read me\n")
    (tmp_path / "secret").write_text("hunter2")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, OWNER, OWNER, follow_symlinks=False)
    return root


@pytest.fixture
def browse(root: Path, call: Any) -> Any:
    def browse_repo(name: str, **arguments: object) -> ToolResult:
        return asyncio.run(call(RepoBrowserTool(root=root), f"repo_browser.{name}", json.dumps(arguments)))

    return browse_repo


def test_print_tree(browse: Any) -> None:
    assert browse("print_tree").text.splitlines() == ["README.md", "out@", "src/", "  a.py", "up@"]
    assert "a.py" not in browse("print_tree", depth=1).text
    assert browse("print_tree", path="src").text == "a.py"


def test_open_file_numbers_lines(browse: Any) -> None:
    assert browse("open_file", path="src/a.py").text.splitlines()[1:] == ["1: x = 1", "2: y = x + 1"]
    assert browse("open_file", path="src/a.py", line_start="2").text.endswith("2: y = x + 1")
    assert browse("open_file", path="src/a.py", line_start=9).failure is FailureKind.INVALID_ARGUMENTS


def test_search(browse: Any) -> None:
    assert browse("search", query="x \\+").text == "src/a.py:2: y = x + 1"
    assert browse("search", query="x + 1").text == "No match for 'x + 1'."
    assert browse("search", query="x", file_glob="*.md").text.startswith("No match")
    assert browse("search", query="(a+)+$").failure is None


@pytest.mark.parametrize("path", ["out", "up/secret", "../secret", "/etc/passwd", "up"])
def test_links_and_parents_are_not_read(browse: Any, path: str) -> None:
    for name in ("open_file", "print_tree", "search"):
        result = browse(name, path=path, query="hunter2")
        assert result.failure is not None
        assert "hunter2" not in result.text.replace("'hunter2'", "")
    assert "secret" not in browse("search", query="hunter2").text


@pytest.mark.parametrize("arguments", ["{", "[]", "{}", '{"path": 3, "line_start": []}'])
def test_bad_arguments_are_answered(root: Path, call: Any, arguments: str) -> None:
    result = asyncio.run(call(RepoBrowserTool(root=root), "repo_browser.open_file", arguments))
    assert result.failure is FailureKind.INVALID_ARGUMENTS


def test_patching_by_each_door(root: Path, call: Any, bubblewrap: BubblewrapSandbox) -> None:
    container = ContainerTool(root=root, sandbox=bubblewrap)
    script = f"apply_patch <<'EOF'\n{PATCH}EOF\n"
    doors = [
        (ApplyPatchTool(root=root), "apply_patch", PATCH),
        (ApplyPatchTool(root=root), "apply_patch", json.dumps({"input": PATCH})),
        (RepoBrowserTool(root=root), "repo_browser.apply_patch", json.dumps({"patch": PATCH})),
        (container, "container.exec", json.dumps({"cmd": ["apply_patch", PATCH]})),
        (container, "container.exec", json.dumps({"cmd": ["bash", "-lc", script]})),
    ]
    for tool, recipient, text in doors:
        (root / "src" / "a.py").write_text("x = 1\n")
        result = asyncio.run(call(tool, recipient, text))
        assert result.failure is None, result.text
        assert (root / "src" / "a.py").read_text() == "x = 2\n"
        assert asyncio.run(call(tool, recipient, text)).failure is FailureKind.INVALID_ARGUMENTS


def test_a_reader_cannot_patch(root: Path, call: Any) -> None:
    tool = RepoBrowserTool(root=root, is_writable=False)
    result = asyncio.run(call(tool, "repo_browser.apply_patch", json.dumps({"patch": PATCH})))
    assert result.failure is FailureKind.NO_SUCH_TOOL


@pytest.fixture
def execute(root: Path, call: Any, bubblewrap: BubblewrapSandbox) -> Any:
    limits = SandboxLimits(run_seconds=5, memory_bytes=256 * MIB, disk_bytes=8 * MIB, output_bytes=4 * MIB)

    def run_command(*command: str, **arguments: object) -> ToolResult:
        tool = ContainerTool(root=root, sandbox=bubblewrap, limits=limits)
        return asyncio.run(call(tool, "container.exec", json.dumps({"cmd": list(command), **arguments})))

    return run_command


def test_a_command_sees_the_folder_and_may_change_it(execute: Any, root: Path) -> None:
    assert execute("cat", "src/a.py").text == "x = 1\ny = x + 1\n[exit status 0]"
    assert execute("sh", "-c", "echo out; echo err >&2; exit 3").text == "out\nerr\n[exit status 3]"
    assert execute("cat", "a.py", workdir="src").text.startswith("x = 1")
    assert execute("sh", "-c", "echo $A; pwd", env={"A": "b"}, workdir="/workspace/src").text.startswith(
        "b\n/workspace/src"
    )
    assert execute("touch", "made.txt").failure is None
    assert (root / "made.txt").exists()
    assert "not found" in execute("no-such-program").text


def test_nothing_runs_as_root(execute: Any, root: Path) -> None:
    assert "uid=0" not in execute("id").text
    if os.geteuid() == 0:
        os.chown(root, 0, 0)
        assert "nothing is run as root" in execute("id").text


def test_kernel_settings_are_read_only(execute: Any) -> None:
    """Root owns them by number, whatever its capabilities; a mount that is read-only holds all the same."""
    shown = execute("sh", "-c", "grep ' /proc/' /proc/mounts; cat /proc/sys/kernel/ostype").text
    assert "Linux" in shown
    mounts = [line.split() for line in shown.splitlines() if line.count(" ") == 5]
    by_place = {fields[1]: fields[3].split(",") for fields in mounts}
    for place in (name for name in ("/proc/sys", "/proc/sysrq-trigger") if Path(name).exists()):
        assert "ro" in by_place[place]


def test_a_command_is_held(execute: Any, root: Path) -> None:
    assert execute("sleep", "60", timeout=300).failure is FailureKind.TIMEOUT
    assert "hunter2" not in execute("cat", "out", "up/secret").text
    assert "No such file" in execute("cat", "/etc/shadow").text
    for path in ("/proc/sys/kernel/hostname", "/proc/sys/fs/file-max", "/usr/x", "/etc/x", "/dev/x"):
        assert "[exit status 0]" not in execute("sh", "-c", f"cat {path}; [ -w {path} ] || touch {path}").text
    assert "[exit status 0]" not in execute("unshare", "--user", "id").text
    flood = execute("sh", "-c", "yes | head -c 1000000000")
    assert "printed more than" in flood.text
    assert len(flood.text) < 25_000
    full = execute("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do head -c 4000000 /dev/zero > f$i; done; sleep 4")
    assert "disk" in full.text
    bomb = execute("sh", "-c", "b() { b | b & b; }; b", timeout=2000)
    assert "Cannot fork" in bomb.text or bomb.failure is FailureKind.TIMEOUT or "processes:" in bomb.text
    assert execute("echo", "alive").text.startswith("alive")
