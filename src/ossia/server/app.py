"""The server as an ASGI app, and how its parts join.

    Gate (gate.py)          request id, key, limits, one log line; turns any error into OpenAI's shape (errors.py)
      -> a route            body.read_model -> messages (conversation/) -> turns.start (turns.py) -> events
        -> SseResponse      sse.py: bounded, each client at its own pace, client gone cancels; or JSONResponse

To add an API, write `routes/<name>.py` with a `router: APIRouter` and name it in `ROUTERS`. In a route:

    context = context_of(request)                     # ServerContext: model, turns, settings, limiter, new_id, clock
    info = info_of(request)                           # RequestInfo: id, caller (caller.key_id owns what is stored)
    body = await read_model(request, Body)            # bounded and checked; pass **describe(Body) to the decorator
    context.check_takes_work(body.model)              # 503 while draining, 404 for another model
    prompt = await context.turns.encode(conversation)
    asked = context.turns.request(prompt, sampling=Sampling(...), owner=info.caller.key_id, request_id=new_id("req"))
    turn = await context.turns.start(asked, tools=recipients)   # raises before the first byte
    return SseResponse(frames(turn), stall_seconds=context.settings.limits.stall_seconds)

where `frames` is an async generator whose whole body is `async with turn:`, yields `sse.frame(json, event)`, tells its
own errors as its API does (`errors.error_info`), and ends with `context.limiter.charge(info.caller, turn.num_tokens)`.
Anything raised in a route becomes an error answer; raise core errors, `errors.ApiError`, `errors.unsupported`.
Tests use `engine.scripted.ScriptedEngine` through the fixtures of tests/unit/server/conftest.py.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ossia import __version__
from ossia.agent.turns import EngineClient, ServedModel, Turns
from ossia.core.errors import OssiaError
from ossia.core.paths import data_home
from ossia.server.auth import Authenticator, KeyFile, KeyStore
from ossia.server.context import ServerContext
from ossia.server.errors import INVALID_REQUEST, ErrorInfo, error_info
from ossia.server.gate import Gate, error_response
from ossia.server.limits import Limiter
from ossia.server.metrics import ServerMetrics
from ossia.server.openapi import install_openapi
from ossia.server.replay import ReplayCache, Sealer, load_secret
from ossia.server.responses.service import ResponseService
from ossia.server.routes import (
    chat_completions,
    completions,
    conversations,
    health,
    messages,
    models,
    render,
    responses,
)
from ossia.server.store.database import Database, default_url
from ossia.server.store.keys import DatabaseKeys

if TYPE_CHECKING:
    from ossia.server.settings import ServerSettings

logger = logging.getLogger(__name__)

ROUTERS = (
    health.router,
    models.router,
    responses.router,
    conversations.router,
    chat_completions.router,
    completions.router,
    messages.router,
    render.router,
)
KEY_FILE = "keys.json"
SECRET_FILE = "server.secret"  # noqa: S105 a file's name


def build_context(
    engine: EngineClient, *, model: ServedModel, settings: ServerSettings, home: Path | None = None
) -> ServerContext:
    """Open what a server needs: its database (migrated), its keys and its secret.

    Args:
        home: where the key file and the secret lie; None for `data_home()`.

    Raises:
        StorageError: something cannot be opened.
    """
    home = home or data_home()
    database = Database(settings.database_url or default_url())
    database.migrate()
    stores: list[KeyStore] = [KeyFile(home / KEY_FILE), DatabaseKeys(database)]
    return ServerContext(
        settings=settings,
        model=model,
        engine=engine,
        turns=Turns(engine, model=model),
        authenticator=Authenticator(stores, given=settings.api_keys, requires_key=settings.requires_key),
        limiter=Limiter(settings.limits),
        metrics=ServerMetrics(),
        database=database,
        replay=ReplayCache(),
        sealer=Sealer(load_secret(home / SECRET_FILE)),
    )


def create_app(context: ServerContext) -> FastAPI:
    """The app. While it runs it owns the context: it closes the engine and the database at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        await context.responses.start()
        yield
        context.is_draining = True
        await context.responses.stop()
        await context.engine.shutdown(drain=context.settings.drain_seconds > 0)
        context.database.close()

    with_docs = context.settings.with_docs
    app = FastAPI(
        title="Ossia",
        version=__version__,
        description="gpt-oss behind OpenAI's APIs.",
        lifespan=lifespan,
        docs_url="/docs" if with_docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if with_docs else None,
    )
    context.responses = ResponseService(context)
    app.state.context = context
    for router in ROUTERS:
        app.include_router(router)
    install_openapi(app)
    app.add_exception_handler(OssiaError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_middleware(Gate, context=context)
    if context.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(context.settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    if context.settings.has_traces:
        from ossia.server.tracing import Tracing, otlp_provider

        app.add_middleware(Tracing, provider=context.tracer_provider or otlp_provider())
    return app


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    return error_response(error_info(error), request.scope)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """What the router itself refuses: an unknown path, a method that a path has not."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    info = ErrorInfo(error.status_code, INVALID_REQUEST, code, error.detail, None, error.headers or {})
    return error_response(info, request.scope)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """A path or query parameter of the wrong type."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    info = ErrorInfo(400, INVALID_REQUEST, "invalid_value", f"{param}: {first['msg']}", param)
    return error_response(info, request.scope)
