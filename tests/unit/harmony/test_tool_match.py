"""Where a tool's name ends."""

from __future__ import annotations

import pytest

from ossia.harmony.tool_match import NameReading, ToolNames

TOOLS = ToolNames(
    ["functions.shell", "functions.shelljson", "functions.Web Search", "find", "browser.search", "python"]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("functions.shell", NameReading("functions.shell", "", False)),
        ("functions.shell json", NameReading("functions.shell", " json", False)),
        ("functions.shell{}", NameReading("functions.shell", "{}", False)),
        ("functions.shellcode", NameReading("functions.shell", "code", True)),
        ("functions.shelljson", NameReading("functions.shelljson", "", False)),
        ("functions.shelly", NameReading("functions.shelly", "", False)),
        ("functions.shell-2", NameReading("functions.shell-2", "", False)),
        ("functions.Web Search json", NameReading("functions.Web Search", " json", True)),
        ("functions.Web", NameReading("functions.Web", "", False)),
        ("Web Search", NameReading("functions.Web Search", "", True)),
        ("find", NameReading("functions.find", "", True)),
        ("functions.find", NameReading("functions.find", "", False)),
        ("search", NameReading("browser.search", "", True)),
        ("python code", NameReading("python", " code", False)),
        ("unknown.tool x", NameReading("unknown.tool", " x", False)),
        ("", NameReading("", "", False)),
    ],
)
def test_read(text: str, expected: NameReading) -> None:
    assert TOOLS.read(text) == expected


def test_a_function_comes_before_another_tool_of_that_bare_name() -> None:
    assert ToolNames(["browser.search", "functions.search"]).read("search").recipient == "functions.search"


def test_without_declared_tools_a_name_goes_to_the_first_space() -> None:
    assert ToolNames().read("functions.shelljson x") == NameReading("functions.shelljson", " x", False)


def test_which_names_are_known() -> None:
    assert "functions.find" in TOOLS
    assert "find" not in TOOLS
    assert TOOLS.knows("find")
    assert not TOOLS.knows("")
