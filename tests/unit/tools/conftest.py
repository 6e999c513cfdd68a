"""Fixtures for the tools: a way to call one, and the sandbox that this machine has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ossia.harmony.message import Message, Role
from ossia.tools.base import Tool, ToolContext, ToolResult
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox

Call = Callable[..., Coroutine[Any, Any, ToolResult]]


@pytest.fixture
def call() -> Call:
    """Calls a tool as the agent does: `await call(tool, "browser.search", '{"query": "x"}')`."""

    async def call_tool(tool: Tool, recipient: str, text: str, **context: Any) -> ToolResult:
        message = Message(Role.ASSISTANT, content=text, recipient=recipient, channel="analysis")
        result = await tool.call(message, context=ToolContext(**context))
        for reply in result.messages:
            assert reply.role is Role.TOOL
            assert reply.recipient == "assistant"
            assert reply.channel == "analysis"
        return result

    return call_tool


@pytest.fixture(scope="session")
def bubblewrap() -> BubblewrapSandbox:
    """The sandbox, if this machine has it."""
    pytest.importorskip("ipykernel", reason="the extra ossia[tools] is not installed")
    sandbox = BubblewrapSandbox()
    fault = sandbox.find_fault()
    if fault is not None:
        pytest.skip(fault)
    return sandbox


@pytest.fixture
def run() -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in a fresh event loop."""
    return asyncio.run
