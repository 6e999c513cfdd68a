"""Which tools of an MCP server are offered, and which calls need leave. Servers that run: tests/integration."""

from __future__ import annotations

from typing import Any

import pytest

from ossia.tools.mcp.config import ApprovalRules, McpServer, ToolFilter


def server(**options: Any) -> McpServer:
    return McpServer(label="a", url="https://a.example", **options)


@pytest.mark.parametrize(
    ("allowed", "offered"),
    [
        (None, {"read", "write"}),
        (frozenset({"write", "other"}), {"write"}),
        (ToolFilter(names=frozenset({"read"})), {"read"}),
        (ToolFilter(is_read_only=True), {"read"}),
        (ToolFilter(is_read_only=False), {"write"}),
        (ToolFilter(names=frozenset({"write"}), is_read_only=True), set()),
        (ToolFilter(), set()),
    ],
)
def test_what_is_offered(allowed: Any, offered: set[str]) -> None:
    made = server(allowed_tools=allowed)
    assert {n for n in ("read", "write") if made.offers(n, is_read_only=n == "read")} == offered
    assert not server(allowed_tools=allowed, denied_tools=frozenset({"read"})).offers("read", is_read_only=True)


@pytest.mark.parametrize(
    ("approval", "asked"),
    [
        ("always", {"read", "write"}),
        ("never", set()),
        (frozenset({"write"}), {"write"}),
        (ApprovalRules(), {"read", "write"}),
        (ApprovalRules(never=ToolFilter(is_read_only=True)), {"write"}),
        (ApprovalRules(never=ToolFilter(names=frozenset({"write"}))), {"read"}),
        (ApprovalRules(always=ToolFilter(names=frozenset({"write"}))), {"read", "write"}),
        (
            ApprovalRules(
                always=ToolFilter(names=frozenset({"write"})), never=ToolFilter(names=frozenset({"read", "write"}))
            ),
            {"write"},
        ),
    ],
)
def test_what_needs_leave(approval: Any, asked: set[str]) -> None:
    made = server(approval=approval)
    assert {n for n in ("read", "write") if made.needs_approval(n, is_read_only=n == "read")} == asked
