from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ossia.cli.tool_options import ToolOptions
from ossia.cli.tools import make_tools, read_servers
from ossia.core.errors import InvalidInputError
from ossia.tools.python.tool import PythonTool


def test_no_names_no_tools() -> None:
    assert len(make_tools(None, ToolOptions())) == len(make_tools(" , ", ToolOptions())) == 0


def test_names_in_order_each_once(tmp_path: Path) -> None:
    tools = make_tools("repo_browser, apply_patch,repo_browser", ToolOptions(root=tmp_path))
    assert [tool.name for tool in tools] == ["repo_browser", "apply_patch"]


def test_one_name_for_the_tools_of_a_workspace(tmp_path: Path) -> None:
    options = ToolOptions(root=tmp_path, unsafe_python=True)
    tools = make_tools("workspace,apply_patch", options)
    assert [tool.name for tool in tools] == ["apply_patch", "container", "repo_browser"]


def test_python_without_a_sandbox_keeps_its_files_where_it_is_told(tmp_path: Path) -> None:
    options = ToolOptions(unsafe_python=True, files=tmp_path / "new" / "files")
    (tool,) = make_tools("python", options)
    assert isinstance(tool, PythonTool)
    assert tool.data.path == tmp_path / "new" / "files"
    assert tool.data.path.is_dir()
    asyncio.run(tool.close())
    assert tool.data.path.is_dir()


def test_a_folder_to_search(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Cranes\n\nHarbour cranes are tall.")
    tools = make_tools("browser", ToolOptions(search=f"folder:{tmp_path}"))
    assert tools.recipients() == ("browser.search", "browser.open", "browser.find")
    asyncio.run(tools.close())


@pytest.mark.parametrize(
    ("names", "options", "part"),
    [
        ("nonsense", ToolOptions(), "these exist"),
        ("apply_patch", ToolOptions(root=Path("/nowhere")), "is no folder"),
        ("browser", ToolOptions(search="folder:/nowhere"), "is no folder"),
        ("browser", ToolOptions(search="altavista"), "unknown search backend"),
    ],
)
def test_what_makes_no_tools(names: str, options: ToolOptions, part: str) -> None:
    with pytest.raises(InvalidInputError, match=part):
        make_tools(names, options)


def test_servers_by_command_and_address() -> None:
    first, second = read_servers(["files=npx -y 'a server'", "web=https://example.org/mcp?x=1"])
    assert (first.label, first.command, first.url) == ("files", ("npx", "-y", "a server"), None)
    assert (second.label, second.command, second.url) == ("web", (), "https://example.org/mcp?x=1")


def test_only_commands_are_confined() -> None:
    command, address = read_servers(["files=some-server", "web=https://example.org/mcp"], is_confined=True)
    assert command.sandbox is not None
    assert address.sandbox is None
    assert read_servers(["files=some-server"])[0].sandbox is None


@pytest.mark.parametrize("text", ["npx server", "files=", "=npx", "python=npx", "a-b=npx"])
def test_what_names_no_server(text: str) -> None:
    with pytest.raises(InvalidInputError):
        read_servers([text])
