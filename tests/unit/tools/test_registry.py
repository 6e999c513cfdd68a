"""Finding tools by name, and one door for every call."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError, MissingExtraError
from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.harmony.message import Message, Role
from ossia.tools import registry
from ossia.tools.base import FailureKind, Tool, ToolContext, ToolError, ToolResult, reply
from ossia.tools.registry import ToolSet, available_tools, make_tool


class Echo:
    """A tool with two functions, one of which fails as told."""

    is_builtin = False

    def __init__(self, *, name: str = "echo", error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.is_closed = False

    def declaration(self) -> ToolNamespace:
        return ToolNamespace(self.name, tools=(FunctionTool("say"), FunctionTool("fail")))

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        if self.error is not None:
            raise self.error
        return ToolResult(messages=(reply(message, message.text),))

    async def close(self) -> None:
        self.is_closed = True
        if self.error is not None:
            raise self.error


class Whole(Echo):
    """A namespace that is one tool."""

    is_builtin = True

    def declaration(self) -> ToolNamespace:
        return ToolNamespace(self.name, description="Says it again.")


def ask(tools: ToolSet, recipient: str | None, text: str = "hi") -> ToolResult:
    return asyncio.run(tools.call(Message(Role.ASSISTANT, content=text, recipient=recipient, channel="commentary")))


def test_calls_go_where_they_are_addressed() -> None:
    tools = ToolSet([Echo(), Whole(name="whole")])
    result = ask(tools, "echo.say")
    assert result.text == "hi"
    assert result.messages[0].name == "echo.say"
    assert result.messages[0].channel == "commentary"
    assert ask(tools, "whole").text == "hi"
    assert ask(tools, "whole.exec").text == "hi"
    assert ask(tools, "functions.whole").text == "hi", "the parser reads a bare name as a function's"
    assert ask(tools, "functions.echo").failure is FailureKind.NO_SUCH_TOOL


@pytest.mark.parametrize(
    "recipient", ["echo", "echo.nothing", "nothing", "python", "functions.f", "a b\n<|call|>", "\u202e", None]
)
def test_unknown_tools_are_answered_with_those_that_exist(recipient: str | None) -> None:
    result = ask(ToolSet([Echo()]), recipient)
    assert result.failure is FailureKind.NO_SUCH_TOOL
    assert "echo.say, echo.fail" in result.text
    assert "no tools" in ask(ToolSet(), recipient).text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ToolError("told", kind=FailureKind.TIMEOUT), FailureKind.TIMEOUT),
        (RuntimeError("secret path"), FailureKind.FAILED),
        (MissingExtraError("thing", extra="tools"), FailureKind.FAILED),
    ],
)
def test_a_tools_own_fault_is_a_message(error: Exception, kind: FailureKind) -> None:
    result = ask(ToolSet([Echo(error=error)]), "echo.say")
    assert result.failure is kind
    assert "secret path" not in result.text


def test_cancelling_passes() -> None:
    class Slow(Echo):
        async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
            await asyncio.sleep(60)
            raise AssertionError

    async def go() -> None:
        task = asyncio.create_task(ToolSet([Slow()]).call(Message(Role.ASSISTANT, recipient="echo.say")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())


def test_declarations_go_to_their_places_and_all_tools_are_closed() -> None:
    one, two = Echo(error=RuntimeError("x")), Whole(name="whole")

    async def go() -> ToolSet:
        async with ToolSet([one, two]) as tools:
            return tools

    tools = asyncio.run(go())
    assert [space.name for space in tools.system_namespaces()] == ["whole"]
    assert [space.name for space in tools.developer_namespaces()] == ["echo"]
    assert tools.recipients() == ("echo.say", "echo.fail", "whole")
    assert one.is_closed
    assert two.is_closed
    with pytest.raises(InvalidInputError, match="two tools"):
        ToolSet([Echo(), Echo()])


def make_echo(**options: Any) -> Tool:
    return Echo(**options)


def make_nothing() -> None:
    return None


def make_broken() -> Tool:
    raise MissingExtraError("thing", extra="thing")


def test_plugins_come_through_the_same_group(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "tests_registry_plugins"
    monkeypatch.setitem(__import__("sys").modules, module, __import__("types").SimpleNamespace(**globals()))
    points = [
        EntryPoint(name, f"{module}:{attribute}", registry.ENTRY_POINT_GROUP)
        for name, attribute in (
            ("echo", "make_echo"),
            ("nothing", "make_nothing"),
            ("lost", "no_such"),
            ("python", "make_echo"),
            ("broken", "make_broken"),
        )
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "ossia.tools" else [])
    assert {"apply_patch", "browser", "container", "echo", "python", "repo_browser"} <= set(available_tools())
    assert available_tools()["python"].value.startswith("ossia.tools.python")
    assert make_tool("echo", name="e").name == "e"
    for name in ("nothing", "lost", "unknown"):
        with pytest.raises(InvalidInputError):
            make_tool(name)
    with pytest.raises(InvalidInputError, match="cannot be made"):
        make_tool("echo", colour="red")
    with pytest.raises(MissingExtraError):
        make_tool("broken")


def test_every_built_in_name_leads_to_a_factory() -> None:
    for name, point in available_tools().items():
        assert callable(point.load()), name
