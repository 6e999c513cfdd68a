"""`ossia serve`: what its options become. A server that runs: tests/integration."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import OssiaError
from ossia.server.context import ServerContext
from ossia.server.makers import HostedTool
from ossia.server.settings import ReasoningPolicy


class Served(list[ServerContext]):
    """The contexts that were to be served, and the levels that logs were set to."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[str] = []


@pytest.fixture
def served(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    served = Served()

    def serve(context: ServerContext, *, announce: Any) -> None:
        announce("http://127.0.0.1:1/v1")
        context.database.close()
        served.append(context)

    monkeypatch.setenv("OSSIA_HOME", str(tmp_path))
    monkeypatch.setattr("ossia.server.serve.serve", serve)
    monkeypatch.setattr("ossia.server.serve.set_up_logs", served.levels.append)
    return served


def test_without_options_it_is_nano_on_loopback(run: Any, script: Any, served: Served) -> None:
    result = run("serve")
    assert (result.exit_code, result.stdout) == (0, "http://127.0.0.1:1/v1\n")
    (context,) = served
    assert script.names == ["nano"]
    assert (context.settings.host, context.settings.port, context.settings.api_keys) == ("127.0.0.1", 8000, ())
    assert (context.model.name, context.model.context_length, context.model.created_at > 0) == ("scripted", 400, True)
    assert context.engine is script.engine
    assert {key: value for key, value in script.sizes.items() if value is not None} == {"has_prefix_cache": True}


def test_options_reach_the_settings(run: Any, served: Served) -> None:
    key = "a-key-of-enough-letters"
    args = ["--port", "0", "--name", "mine", "--api-key", key, "--api-key", key[::-1], "--reasoning", "hidden"]
    args += ["--cors-origin", "https://a.example", "--allowed-host", "a.example", "--ttl-days", "2", "--no-docs"]
    args += ["--requests-per-minute", "5", "--tokens-per-minute", "6", "--concurrency", "7", "--max-body-mib", "1"]
    args += ["--drain-seconds", "3", "--tools", "web_search,mcp", "--log-level", "debug"]
    result = run("serve", *args)
    assert result.exit_code == 0, result.stderr
    assert key not in result.output
    settings, limits = served[0].settings, served[0].settings.limits
    assert (settings.port, settings.api_keys, settings.reasoning) == (0, (key, key[::-1]), ReasoningPolicy.HIDDEN)
    assert (settings.cors_origins, settings.allowed_hosts) == (("https://a.example",), ("a.example",))
    assert (settings.ttl_seconds, settings.with_docs, settings.drain_seconds) == (172_800.0, False, 3.0)
    assert (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency) == (5, 6, 7)
    assert (limits.max_body_bytes, settings.tools) == (1 << 20, ("web_search", "mcp"))
    assert (served[0].model.name, served.levels) == ("mine", ["debug"])


def test_zero_days_are_for_ever(run: Any, served: Served) -> None:
    run("serve", "--ttl-days", "0")
    assert served[0].settings.ttl_seconds is None


def test_traces_and_8_bits_are_asked_for(run: Any, script: Any, served: Served) -> None:
    result = run("serve", "--traces", "--cpu-quant", "q8")
    assert result.exit_code == 0, result.stderr
    assert served[0].settings.has_traces
    assert script.sizes["cpu_quant"] == "q8"


def test_options_reach_the_engine(run: Any, script: Any, served: Served) -> None:
    args = ["--max-num-seqs", "3", "--max-num-batched-tokens", "64", "--max-queue", "9", "--context-length", "100"]
    run("serve", *args, "--kv-cache-gib", "0.5", "--kv-dtype", "fp8", "--num-drafts", "2", "--no-prefix-cache")
    assert script.sizes == {
        "max_num_seqs": 3,
        "max_num_batched_tokens": 64,
        "max_queue": 9,
        "context_length": 100,
        "kv_cache_bytes": 1 << 29,
        "kv_dtype": "fp8",
        "num_drafts": 2,
        "has_prefix_cache": False,
        "cpu_quant": None,
    }
    assert served[0].model.context_length == 100


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--host", "0.0.0.0"], "no API key is set"),
        (["--reasoning", "loud"], "raw, summary, hidden"),
        (["--log-level", "loud"], "debug, info"),
        (["--api-key", "short"], "shorter than 16"),
        (["--tools", "python"], "web_search"),
        (["--port", "70000"], "65535"),
    ],
)
def test_what_cannot_be_served_is_told_before_a_model_is_loaded(
    run: Any, script: Any, served: Served, args: list[str], part: str
) -> None:
    result = run("serve", *args)
    assert (result.exit_code, result.stdout, served, script.names) == (1, "", [], [])
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", [["--allow-open"], ["--api-key", "a-key-of-enough-letters"]])
def test_others_than_loopback_with_a_key_or_leave(run: Any, served: Served, args: list[str]) -> None:
    assert run("serve", "--host", "0.0.0.0", *args).exit_code == 0
    assert len(served) == 1


def test_a_stored_key_opens_the_host_too(run: Any, served: Served) -> None:
    run("keys", "add", "laptop")
    assert run("serve", "--host", "0.0.0.0").exit_code == 0


def test_tools_for_clients_are_made_as_the_options_say(run: Any, served: Served, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Cranes\n\nHarbour cranes are tall.")
    run("serve", "--tools", "web_search", "--search", f"folder:{tmp_path}")

    async def make() -> str:
        tool = await served[0].tool_makers["web_search"](HostedTool("web_search", {}, "tools[0]"))
        try:
            return tool.declaration().description or ""
        finally:
            await tool.close()

    assert "sources=web" not in asyncio.run(make())


def test_private_mcp_servers_only_if_asked_for(run: Any, served: Served) -> None:
    run("serve", "--tools", "mcp")
    run("serve", "--tools", "mcp", "--private-mcp")
    tool = {"type": "mcp", "server_label": "a", "server_url": "http://127.0.0.1:59999/mcp"}

    async def fault(context: ServerContext) -> str:
        with pytest.raises(OssiaError) as caught:
            await context.tool_makers["mcp"](HostedTool("mcp", tool, "tools[0]"))
        return str(caught.value)

    closed, opened = (asyncio.run(fault(context)) for context in served)
    assert "127.0.0.1" in closed
    assert "onnect" in opened
    assert closed != opened


def test_missing_packages_name_the_extra(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "uvicorn" or name.startswith("ossia.server.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve")
    assert result.exit_code == 1
    assert "pip install 'ossia[server]'" in result.stderr
