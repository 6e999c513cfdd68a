"""OpenTelemetry traces: a span a request, under the caller's own trace if it sent one (`traceparent`).

Off unless the settings say so. Where spans go is the SDK's affair and stands in its own environment variables
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ...). A span holds the route, the status, the request id and the
key's id; never a prompt or an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ossia.core.errors import MissingExtraError

try:
    from opentelemetry import propagate, trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:  # pragma: no cover
    raise MissingExtraError("opentelemetry-sdk", extra="traces") from error

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SCOPE = "ossia.server"


def otlp_provider() -> TracerProvider:
    """A provider that sends spans by OTLP over HTTP.

    Raises:
        MissingExtraError: the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise MissingExtraError("opentelemetry-exporter-otlp-proto-http", extra="traces") from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """The middleware; see the module. It stands outside of the gate."""

    def __init__(self, app: ASGIApp, *, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer(_SCOPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = propagate.extract(dict(Headers(scope=scope)))
        # Its name is a path's pattern, which is known once the router has found it; paths hold ids.
        with self._tracer.start_as_current_span(scope["method"], context=parent, kind=trace.SpanKind.SERVER) as span:

            async def note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note_start(span, message)
                await send(message)

            await self._app(scope, receive, note)
            _note_end(span, scope)


def _note_start(span: Span, message: Message) -> None:
    status = message["status"]
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("ossia.request_id", Headers(raw=message["headers"]).get("x-request-id", ""))
    span.add_event("response started")
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)


def _note_end(span: Span, scope: Scope) -> None:
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    info = scope.get("ossia")
    if info is not None:
        span.set_attribute("ossia.key", info.caller.key_id)
