"""What every request passes: limits of its key, origins of web pages, and what the log says of it."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from tests.unit.server.hosted import Stand, serve

from ossia.core.errors import InvalidInputError
from ossia.harmony.builtin_tools import PYTHON
from ossia.server.auth import KeyFile, make_key
from ossia.server.settings import Limits

QUESTION = [{"role": "user", "content": "Tell me of the swordfish."}]
BODIES = {
    "/v1/responses": {"input": QUESTION},
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "Tell me of the swordfish."},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 100},
}
SECRET = "<|channel|>analysis<|message|>The swordfish thinks.<|end|><|start|>assistant"
CALL = "<|channel|>analysis to=python code<|message|>swordfish()<|call|>"
ANSWER = "<|channel|>final<|message|>A swordfish it is.<|return|>"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("limit", "admitted"), [("requests", 2), ("tokens", 1)])
def test_each_key_has_its_own_limits_in_every_api(make_server, client_for, tmp_path, path, limit, admitted):
    """A key with limits of its own is stopped by them; another is not. Tokens are paid for afterwards."""
    bounds = {"requests_per_minute": 2} if limit == "requests" else {"tokens_per_minute": 10}
    small, free = make_key("small", now=1.0, **bounds), make_key("free", now=1.0)
    for new in (small, free):
        KeyFile(tmp_path / "keys.json").add(new.record)
    app = make_server(ANSWER)

    async def run() -> None:
        async with client_for(app) as client:

            async def ask(secret: str):
                return await client.post(path, json=BODIES[path], headers={"authorization": f"Bearer {secret}"})

            for i in range(admitted):
                answer = await ask(small.secret)
                assert answer.status_code == 200, answer.text
                assert answer.headers[f"x-ratelimit-limit-{limit}"] == str(next(iter(bounds.values())))
                left = int(answer.headers[f"x-ratelimit-remaining-{limit}"])
                assert left == (admitted - 1 - i if limit == "requests" else 10)
            refused = await ask(small.secret)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60 * 20
            assert refused.json()["error"]["type"] == "rate_limit_error"
            for _ in range(admitted + 2):
                assert (await ask(free.secret)).status_code == 200

    asyncio.run(run())


def test_requests_at_once_are_bounded_for_each_key(make_server, client_for):
    app = make_server(ANSWER, engine={"seconds_per_event": 0.05}, limits=Limits(concurrency=2))

    async def run() -> None:
        async with client_for(app) as client:
            asked = (client.post("/v1/responses", json=BODIES["/v1/responses"]) for _ in range(3))
            answers = await asyncio.gather(*asked)
            assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
            assert (await client.post("/v1/responses", json=BODIES["/v1/responses"])).status_code == 200

    asyncio.run(run())


def test_pages_of_other_origins_are_let_in_only_if_named(make_server, client_for):
    origin = {"origin": "https://page.example", "access-control-request-method": "POST"}

    async def run() -> None:
        async with client_for(make_server()) as client:
            closed = await client.options("/v1/responses", headers=origin)
            assert "access-control-allow-origin" not in closed.headers
            answer = await client.post("/v1/responses", json={"input": "x"}, headers={"origin": origin["origin"]})
            assert "access-control-allow-origin" not in answer.headers
        async with client_for(make_server(cors_origins=("https://page.example",))) as client:
            opened = await client.options("/v1/responses", headers=origin)
            assert (opened.status_code, opened.headers["access-control-allow-origin"]) == (200, origin["origin"])
            other = await client.options("/v1/responses", headers=origin | {"origin": "https://other.example"})
            assert "access-control-allow-origin" not in other.headers

    asyncio.run(run())


def test_the_log_tells_of_requests_and_not_what_was_said(make_server, client_for, caplog):
    """At INFO, in every API: prompts, reasoning, what tools say, wrong values and keys stay out."""
    caplog.set_level(logging.INFO)
    key = "a-key-of-the-swordfish"
    python = Stand(PYTHON, "swordfish output", fails=True)
    app = serve(
        make_server,
        lambda p: SECRET + (ANSWER if "swordfish output" in p else CALL),
        api_keys=(key,),
        code_interpreter=python,
    )
    tool = {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}

    async def run() -> list[str]:
        ids = []
        async with client_for(app) as client:
            for number, (path, body) in enumerate(BODIES.items()):
                for more in ({}, {"stream": True}, {"temperature": "swordfish"}, tool if "resp" in path else {}):
                    ids.append(f"mine-{number}-{len(ids)}")
                    headers = {"x-api-key": key, "x-request-id": ids[-1]}
                    answer = await client.post(path, json=body | more, headers=headers)
                    assert answer.headers["x-request-id"] == ids[-1]
                    assert answer.status_code == (400 if "temperature" in more else 200), answer.text
        return ids

    ids = asyncio.run(run())
    assert python.num_calls == 1
    lines = [json.loads(record.message) for record in caplog.records if record.name == "ossia.server.gate"]
    assert [line["request_id"] for line in lines] == ids
    assert {line["status"] for line in lines} == {200, 400}
    assert "swordfish" not in caplog.text


def test_what_limits_cannot_be_is_told() -> None:
    with pytest.raises(InvalidInputError):
        Limits(concurrency=-1)
