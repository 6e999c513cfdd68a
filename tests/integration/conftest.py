"""A real server on loopback, for tests that drive it by real clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from ossia.agent.turns import EngineClient, ServedModel
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.scripted import Script, ScriptedEngine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.server.app import build_context, create_app
from ossia.server.context import ServerContext
from ossia.server.serve import bind
from ossia.server.settings import ServerSettings


@dataclass
class Loopback:
    """A running server. `url` has no `/v1` at its end."""

    url: str
    context: ServerContext
    engine: Any


StartServer = Callable[..., AbstractContextManager[Loopback]]


@pytest.fixture(scope="session")
def nano_tokenizer() -> Tokenizer:
    return load_tokenizer(PACKAGE_ROOT / "nano")


@pytest.fixture
def start_server(nano_tokenizer: Tokenizer, tmp_path: Path) -> StartServer:
    """`with start_server(script or engine, **settings) as server`: on a thread of its own."""

    @contextmanager
    def run(
        what: Script | str | EngineClient,
        *,
        engine: dict[str, Any] | None = None,
        model: ServedModel | None = None,
        **more: Any,
    ) -> Iterator[Loopback]:
        runs: Any = what
        if isinstance(what, str) or callable(what):
            say = what if callable(what) else lambda _: what
            runs = ScriptedEngine(nano_tokenizer, script=say, **(engine or {}))
        model = model or ServedModel(
            name="scripted",
            tokenizer=nano_tokenizer,
            identity=Identity(model_identity="You are a test.", knowledge_cutoff=None),
            context_length=runs.context_length,
        )
        more.setdefault("database_url", f"sqlite:///{tmp_path / 'server.db'}")
        context = build_context(runs, model=model, settings=ServerSettings(**more), home=tmp_path)
        context.today = lambda: "2026-01-02"
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(context), log_config=None, lifespan="on", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield Loopback(f"http://127.0.0.1:{port}", context, runs)
        finally:
            server.should_exit = True
            thread.join(30)

    return run


@pytest.fixture
def mcp_url() -> Iterator[str]:
    """The address of an MCP server on loopback, with the one tool `functions_add`."""
    pytest.importorskip("mcp", reason="the extra ossia[tools] is not installed")
    from ossia.tools.functions import FunctionsTool
    from ossia.tools.mcp.server import make_http_app

    def add(a: int, b: int = 1) -> int:
        """Adds."""
        return a + b

    listener = bind("127.0.0.1", 0)
    app = make_http_app([FunctionsTool([add])])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    server.should_exit = True
    thread.join(10)
