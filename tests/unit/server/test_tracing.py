"""Spans of requests."""

from __future__ import annotations

import asyncio
import dataclasses

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ossia.server.app import create_app


def test_a_request_is_a_span_of_its_callers_trace_without_its_text(make_server, client_for):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    context = make_server().state.context
    context.tracer_provider = provider
    context.settings = dataclasses.replace(context.settings, has_traces=True)
    app = create_app(context)

    async def run():
        async with client_for(app) as client:
            trace = "0af7651916cd43dd8448eb211c80319c"
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            body = {"input": "a secret", "stream": True}
            answer = await client.post("/v1/responses", json=body, headers=headers)
            await client.get("/v1/responses/resp_secret")
            return answer.headers["x-request-id"], trace

    request_id, trace = asyncio.run(run())
    first, second = exporter.get_finished_spans()
    assert first.name == "POST /v1/responses"
    assert format(first.context.trace_id, "032x") == trace
    assert dict(first.attributes) == {
        "http.response.status_code": 200,
        "http.route": "/v1/responses",
        "ossia.request_id": request_id,
        "ossia.key": "anonymous",
    }
    assert second.attributes["http.response.status_code"] == 404
    assert second.name == "GET /v1/responses/{response_id}"
    assert "secret" not in first.to_json() + second.to_json()
