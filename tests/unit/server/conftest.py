"""A server on a scripted engine: `make_server` builds one, `client_for` talks to it without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ossia.agent.turns import ServedModel
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.scripted import Script, ScriptedEngine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.server.app import build_context, create_app
from ossia.server.settings import ServerSettings

FINAL = "<|channel|>final<|message|>Hello there.<|return|>"
MODEL = "scripted"

MakeServer = Callable[..., FastAPI]
ClientFor = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(PACKAGE_ROOT / "nano")


@pytest.fixture
def make_server(tokenizer: Tokenizer, tmp_path: Path) -> MakeServer:
    """`make_server(script, engine={...}, **settings)`: an app whose engine is `app.state.context.engine`."""

    def make(script: Script | str = FINAL, *, engine: dict[str, Any] | None = None, **settings: Any) -> FastAPI:
        say = script if callable(script) else lambda _: script
        scripted = ScriptedEngine(tokenizer, script=say, **(engine or {}))
        model = ServedModel(
            name=MODEL,
            tokenizer=tokenizer,
            identity=Identity(model_identity="You are a test.", knowledge_cutoff="2024-06"),
            context_length=scripted.context_length,
        )
        settings.setdefault("database_url", "sqlite://")
        context = build_context(scripted, model=model, settings=ServerSettings(**settings), home=tmp_path)
        context.today = lambda: "2026-01-02"
        return create_app(context)

    return make


@pytest.fixture
def client_for() -> ClientFor:
    """`async with client_for(app) as client`: an httpx client on the running app."""

    @asynccontextmanager
    async def connect(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                yield client

    return connect
