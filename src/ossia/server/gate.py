"""What every request goes through: a request id, the key, the limits, one log line, and errors in OpenAI's shape.

Plain ASGI, so that a streamed token costs nothing here. It holds a request's place among its key's concurrent ones
until the last byte is sent or the client is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossia.server.auth import ANONYMOUS, Caller, secret_of
from ossia.server.context import RequestInfo
from ossia.server.errors import ApiError, ErrorInfo, error_info, wants_anthropic
from ossia.server.settings import is_loopback

if TYPE_CHECKING:
    from ossia.server.context import ServerContext

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Answered to anybody: they tell nothing."""
UNLIMITED_PATHS = frozenset({"/health", "/ready", "/metrics", "/docs", "/openapi.json"})

_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def error_response(error: ErrorInfo, scope: Scope) -> JSONResponse:
    """An error as the HTTP answer to a request, in the shape that its client reads."""
    body = error.body
    if wants_anthropic(scope):
        info = scope.get("ossia")
        body = error.anthropic_body(None if info is None else info.id)
    return JSONResponse(body, status_code=error.status, headers=dict(error.headers))


class Gate:
    """The middleware; see the module."""

    def __init__(self, app: ASGIApp, *, context: ServerContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        metrics = self._context.metrics
        metrics.num_open += 1
        try:
            await self._pass(scope, receive, answer)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 whatever it is, the client gets an answer and the server goes on
            info = error_info(error)
            if not answer.status:
                await error_response(info, scope)(scope, receive, answer)
        finally:
            metrics.num_open -= 1
            route = getattr(scope.get("route"), "path", "none")
            metrics.requests[(route, scope["method"], answer.status)] += 1
            _log(answer, scope, route)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path = scope["path"]
        headers = Headers(scope=scope)
        self._check_host(headers)
        caller = ANONYMOUS if path in OPEN_PATHS else await self._identify(headers)
        scope["ossia"] = RequestInfo(answer.request_id, caller)
        if path in UNLIMITED_PATHS:
            await self._app(scope, receive, answer)
            return
        limiter = self._context.limiter
        limiter.admit(caller)
        try:
            answer.headers = limiter.headers(caller)
            await self._app(scope, receive, answer)
        finally:
            limiter.release(caller)

    async def _identify(self, headers: Headers) -> Caller:
        authenticator = self._context.authenticator
        secret = secret_of(headers)
        caller = authenticator.known(secret)
        return caller if caller is not None else await asyncio.to_thread(authenticator.identify, secret)

    def _check_host(self, headers: Headers) -> None:
        """Refuse a name that a web page could have bound to this machine (DNS rebinding)."""
        settings = self._context.settings
        if not settings.is_loopback or settings.api_keys or settings.requires_key:
            return
        host = headers.get("host", "")
        name = host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        if host and not is_loopback(name) and name not in settings.allowed_hosts:
            raise ApiError(
                f"this server listens on loopback without keys and does not answer to the host {name[:100]!r}; "
                "allow it with --allowed-host, or require a key",
                status=403,
                code="host_not_allowed",
            )


class _Answer:
    """Wraps `send`: notes the status, and adds the request id and the limits to the headers."""

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.request_id = given if _CLIENT_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.started = time.perf_counter()
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers["request-id"] = self.request_id
            headers["openai-processing-ms"] = str(int(1000 * (time.perf_counter() - self.started)))
            headers["x-content-type-options"] = "nosniff"
            headers.update(self.headers)
        await self._send(message)


def _log(answer: _Answer, scope: Scope, route: str) -> None:
    """One line a request. Never a prompt, an answer or a key; the path only by its pattern."""
    if not logger.isEnabledFor(logging.INFO):
        return
    info = scope.get("ossia")
    fields = {
        "request_id": answer.request_id,
        "method": scope["method"],
        "route": route,
        "status": answer.status,
        "seconds": round(time.perf_counter() - answer.started, 4),
        "key": info.caller.key_id if info is not None else None,
    }
    logger.info("%s", json.dumps(fields), extra={"ossia": fields})
