"""The app as a whole: what every route has of it."""

from __future__ import annotations

import asyncio

import pytest


def test_health_ready_metrics_and_docs(make_server, client_for):
    app = make_server()

    async def run():
        async with client_for(app) as client:
            assert (await client.get("/health")).json() == {"status": "ok"}
            assert (await client.get("/ready")).status_code == 200
            page = (await client.get("/metrics")).text
            assert "ossia_engine_up 1.0" in page
            assert 'ossia_http_requests_total{method="GET",route="/ready",status="200"} 1.0' in page
            assert (await client.get("/docs")).status_code == 200
            assert (await client.get("/openapi.json")).json()["info"]["title"] == "Ossia"
            app.state.context.engine.die()
            assert (await client.get("/health")).status_code == 503
            assert (await client.get("/ready")).status_code == 503
            assert "ossia_engine_up 0.0" in (await client.get("/metrics")).text

    asyncio.run(run())


@pytest.mark.parametrize(("path", "status", "code"), [("/v1/nothing", 404, "unknown_url")])
def test_unknown_paths_get_openai_errors(make_server, client_for, path, status, code):
    async def run():
        async with client_for(make_server()) as client:
            answer = await client.get(path)
            assert answer.status_code == status
            assert answer.json()["error"]["code"] == code
            assert answer.headers["x-request-id"].startswith("req_")

    asyncio.run(run())


def test_a_key_is_asked_for_and_checked(make_server, client_for):
    key = "a-key-of-twenty-letters"

    async def run():
        async with client_for(make_server(api_keys=(key,))) as client:
            assert (await client.get("/health")).status_code == 200
            refused = await client.get("/metrics")
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            wrong = await client.get("/metrics", headers={"authorization": "Bearer no-key-of-twenty-letters"})
            assert wrong.status_code == 401
            for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                assert (await client.get("/metrics", headers=headers)).status_code == 200

    asyncio.run(run())


def test_a_foreign_host_name_is_refused_without_keys(make_server, client_for):
    async def run():
        async with client_for(make_server(allowed_hosts=("mine.example",))) as client:
            for host, status in {"evil.example": 403, "mine.example": 200, "localhost:80": 200, "[::1]:9": 200}.items():
                assert (await client.get("/health", headers={"host": host})).status_code == status

    asyncio.run(run())
