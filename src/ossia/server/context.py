"""What all routes share, as one value on the app; and what belongs to one request."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, cast

from ossia.core.errors import EngineDeadError, ModelNotFoundError
from ossia.server.makers import ToolMaker, default_makers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.requests import HTTPConnection

    from ossia.agent.turns import EngineClient, ServedModel, Turns
    from ossia.server.auth import Authenticator, Caller
    from ossia.server.limits import Limiter
    from ossia.server.metrics import ServerMetrics
    from ossia.server.replay import ReplayCache, Sealer
    from ossia.server.responses.service import ResponseService
    from ossia.server.settings import ServerSettings
    from ossia.server.store.database import Database


def new_id(prefix: str) -> str:
    """`resp_` and 48 random hex digits, and the like."""
    return f"{prefix}_{secrets.token_hex(24)}"


@dataclass(kw_only=True, slots=True)
class ServerContext:
    """What all routes share.

    Attributes:
        settings: as given.
        model: the one model that is served.
        engine: runs it.
        turns: joins conversations to the engine.
        authenticator, limiter, metrics: the gate's.
        database: what is stored; its calls run in threads.
        replay: reasoning and sampled ids of late answers, for clients that send less back than they got.
        sealer: makes and reads `encrypted_content`.
        responses: runs and keeps responses. Set by `create_app`.
        tool_makers: how the tools that the server runs itself are made, by their kinds.
        clock: seconds since 1970.
        today: the date for system messages, as YYYY-MM-DD.
        new_id: makes ids.
        tracer_provider: takes the spans, where there are traces; None for one that sends them by OTLP.
        is_draining: the server is stopping and takes no new work.
    """

    settings: ServerSettings
    model: ServedModel
    engine: EngineClient
    turns: Turns
    authenticator: Authenticator
    limiter: Limiter
    metrics: ServerMetrics
    database: Database
    replay: ReplayCache
    sealer: Sealer
    tool_makers: Mapping[str, ToolMaker] = field(default_factory=default_makers)
    clock: Callable[[], float] = time.time
    today: Callable[[], str] = field(default=lambda: datetime.now(UTC).date().isoformat())
    new_id: Callable[[str], str] = new_id
    tracer_provider: TracerProvider | None = None
    is_draining: bool = False
    _responses: ResponseService | None = None

    def check_takes_work(self, model: str | None = None) -> None:
        """Refuse new work that cannot be done.

        Raises:
            EngineDeadError: the server is stopping.
            ModelNotFoundError: another model than the one served is asked for.
        """
        if self.is_draining:
            raise EngineDeadError("the server is stopping and takes no new work")
        if model is not None and model != self.model.name:
            raise ModelNotFoundError(f"the model {model!r} is not served here; {self.model.name!r} is")

    @property
    def responses(self) -> ResponseService:
        assert self._responses is not None, "create_app sets it"
        return self._responses

    @responses.setter
    def responses(self, service: ResponseService) -> None:
        self._responses = service


class RequestInfo(NamedTuple):
    """One request. `id` is in its log lines and in its `x-request-id` header."""

    id: str
    caller: Caller


def context_of(request: HTTPConnection) -> ServerContext:
    """What all routes share."""
    return cast("ServerContext", request.app.state.context)


def info_of(request: HTTPConnection) -> RequestInfo:
    """Whose request it is, as the gate found."""
    return cast("RequestInfo", request.scope["ossia"])
