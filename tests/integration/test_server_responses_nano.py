"""/v1/responses on nano itself: the real engine, many clients at once, and what the engine enforces."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import uvicorn

from ossia.agent.turns import ServedModel
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.build import EngineConfig, build_engine
from ossia.model.loading import load
from ossia.server.app import build_context, create_app
from ossia.server.context import ServerContext
from ossia.server.serve import bind
from ossia.server.settings import ServerSettings

pytestmark = pytest.mark.slow
NUM_CLIENTS = 256


class Served(NamedTuple):
    client: openai.OpenAI
    context: ServerContext


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("server")
    loaded = load("nano", device="cpu")
    engine = AsyncEngine(build_engine(loaded, config=EngineConfig(max_num_seqs=64)))
    settings = ServerSettings(database_url=f"sqlite:///{home / 'nano.db'}")
    context = build_context(engine, model=ServedModel.of(loaded), settings=settings, home=home)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(context), log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield Served(client, context)
    server.should_exit = True
    thread.join(60)


def num_free_pages(client: openai.OpenAI) -> tuple[int, int]:
    page = httpx.get(str(client.base_url).replace("/v1/", "/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("ossia_kv"))
    return int(float(values["ossia_kv_free_pages"])), int(float(values["ossia_kv_pages"]))


def test_many_streaming_clients_at_once(served):
    async def one(client: openai.AsyncOpenAI, i: int) -> Any:
        body: dict[str, Any] = {"model": "nano", "input": f"What is {i} + 7?", "temperature": 0}
        stream = await client.responses.create(**body, max_output_tokens=64, stream=True, store=False)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == events[-1].response.output_text
        return events[-1].response

    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=served.client.base_url, api_key="none", max_retries=0, timeout=600
        ) as client:
            return await asyncio.gather(*(one(client, i) for i in range(NUM_CLIENTS)))

    responses = asyncio.run(run())
    assert len(responses) == NUM_CLIENTS
    assert {response.status for response in responses} <= {"completed", "incomplete"}
    assert responses[5].output_text == "5 + 7 = 12"
    free, total = num_free_pages(served.client)
    assert free == total


def test_the_prefix_cache_serves_the_next_turn(served):
    first = served.client.responses.create(model="nano", input="What is 12 + 30?", temperature=0)
    after = served.client.responses.create(
        model="nano", input="And 5 more?", previous_response_id=first.id, temperature=0
    )
    assert after.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens // 2


def test_formats_and_choices_are_enforced(served):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "name": "a", "schema": {**schema, "additionalProperties": False}}
    # At low effort nano answers at once; what is tested is the form, not how long it thinks about so odd a request.
    body: dict[str, Any] = {"model": "nano", "temperature": 0, "max_output_tokens": 600, "reasoning": {"effort": "low"}}
    answer = served.client.responses.create(**body, input="Are you well?", text={"format": form})
    assert set(json.loads(answer.output_text)) == {"ok"}
    bad = {"type": "json_schema", "name": "a", "schema": {"type": "wrong"}, "strict": True}
    with pytest.raises(openai.BadRequestError):
        served.client.responses.create(**body, input="x", text={"format": bad})


def test_a_client_that_leaves_frees_its_pages(served):
    stream = served.client.responses.create(model="nano", input="Tell me all you can do.", stream=True)
    for _ in range(4):
        next(stream)
    stream.close()
    deadline = time.monotonic() + 30
    free, total = num_free_pages(served.client)
    while free != total and time.monotonic() < deadline:
        time.sleep(0.05)
        free, total = num_free_pages(served.client)
    assert free == total
