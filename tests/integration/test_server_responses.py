"""/v1/responses through the official client, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
import uvicorn
from openai.types.responses import ResponseStreamEvent

from ossia.agent.turns import ServedModel
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.scripted import Script, ScriptedEngine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.server.app import build_context, create_app
from ossia.server.serve import bind
from ossia.server.settings import Limits, ServerSettings

THINK = "<|channel|>analysis<|message|>They say hello.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Hello there, friend.<|return|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
EVENT = pydantic.TypeAdapter(ResponseStreamEvent)

Serving = Callable[..., Any]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(PACKAGE_ROOT / "nano")


@pytest.fixture
def serving(tokenizer: Tokenizer, tmp_path: Path) -> Serving:
    """`with serving(script, **settings) as (client, context)`: a server on loopback and an official client."""

    @contextmanager
    def run(script: Script | str = FINAL, *, engine: dict[str, Any] | None = None, **settings: Any) -> Iterator[Any]:
        say = script if callable(script) else lambda _: script
        scripted = ScriptedEngine(tokenizer, script=say, **(engine or {}))
        model = ServedModel(
            name="scripted",
            tokenizer=tokenizer,
            identity=Identity(model_identity="You are a test.", knowledge_cutoff=None),
            context_length=scripted.context_length,
        )
        settings.setdefault("database_url", f"sqlite:///{tmp_path / 'test.db'}")
        context = build_context(scripted, model=model, settings=ServerSettings(**settings), home=tmp_path)
        context.today = lambda: "2026-01-02"
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        config = uvicorn.Config(create_app(context), log_config=None, lifespan="on", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)
        try:
            while not server.started:
                time.sleep(0.005)
            yield client, context
        finally:
            client.close()
            server.should_exit = True
            thread.join(30)

    return run


def plain(response: Any) -> dict[str, Any]:
    """A response without what differs between two of the same content."""
    data = response.to_dict() if hasattr(response, "to_dict") else dict(response)
    data = {**data, "id": "", "created_at": 0, "completed_at": 0}
    data["output"] = [{**item, "id": "", "call_id": ""} for item in data["output"]]
    return data


def test_an_answer_at_once_with_usage(serving):
    with serving(THINK + FINAL, engine={"num_cached": 8}) as (client, _):
        response = client.responses.create(model="scripted", input="Hello", metadata={"a": "b"})
        assert response.status == "completed"
        assert response.output_text == "Hello there, friend."
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output[0].content[0].text == "They say hello."
        assert response.metadata == {"a": "b"}
        assert response.usage.input_tokens_details.cached_tokens == 8
        assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
        assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
        items = client.responses.input_items.list(response.id)
        assert items.data[0].content[0].text == "Hello"
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)


@pytest.mark.parametrize("script", [THINK + FINAL, THINK + CALL, FINAL, CALL])
def test_streamed_events_are_well_formed_and_end_in_the_same_object(serving, script):
    with serving(script) as (client, _):
        once = client.responses.create(model="scripted", input="Hello", tools=[WEATHER])
        events = list(client.responses.create(model="scripted", input="Hello", tools=[WEATHER], stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
        terminal = [e for e in events if e.type in ("response.completed", "response.failed", "response.incomplete")]
        assert terminal == [events[-1]]
        for event in events:
            EVENT.validate_python(event.to_dict(), strict=False)
        assert plain(events[-1].response) == plain(once)
        deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert deltas == once.output_text


def test_parse_and_the_stream_helper(serving):
    class Answer(pydantic.BaseModel):
        word: str

    script = '<|channel|>final <|constrain|>json<|message|>{"word":"ok"}<|return|>'
    with serving(script) as (client, context):
        parsed = client.responses.parse(model="scripted", input="Say ok", text_format=Answer)
        assert parsed.output_parsed == Answer(word="ok")
        constraint = context.engine.requests[-1].params.constraint
        assert '"word"' in constraint.response_format.text
        with client.responses.stream(model="scripted", input="Say ok", text_format=Answer) as stream:
            kinds = [event.type for event in stream]
            assert stream.get_final_response().output_parsed == Answer(word="ok")
        assert kinds[-1] == "response.completed"


def test_a_tool_round_keeps_reasoning_and_sampled_ids(serving, tokenizer):
    """A client that sends back only the call and its output has the same prompt as one that sends all, or an id."""

    def script(prompt: str) -> str:
        return FINAL if "Sunny" in prompt else THINK + CALL

    with serving(script) as (client, context):
        first = client.responses.create(model="scripted", input="Weather?", tools=[WEATHER])
        call = first.output[-1]
        assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", '{"city":"Oslo"}')
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
        question = {"role": "user", "content": "Weather?"}
        dropped = [question, {**call.to_dict()}, result]
        whole = [question, *[item.to_dict() for item in first.output], result]
        client.responses.create(model="scripted", input=dropped, tools=[WEATHER])
        client.responses.create(model="scripted", input=whole, tools=[WEATHER])
        answer = client.responses.create(
            model="scripted", input=[result], tools=[WEATHER], previous_response_id=first.id
        )
        assert answer.output_text == "Hello there, friend."
        prompts = [request.prompt_ids for request in context.engine.requests]
        assert prompts[1] == prompts[2] == prompts[3]
        sampled = tuple(tokenizer.encode_with_specials(THINK + CALL))
        assert prompts[1][: len(prompts[0]) + len(sampled)] == prompts[0] + sampled


def test_conversations_grow_by_responses(serving):
    with serving(lambda prompt: FINAL) as (client, context):
        conversation = client.conversations.create(items=[{"role": "user", "content": "One"}], metadata={"k": "v"})
        client.responses.create(model="scripted", input="Two", conversation=conversation.id)
        client.responses.create(model="scripted", input="Three", conversation={"id": conversation.id})
        text = context.turns.model.tokenizer.decode(context.engine.requests[-1].prompt_ids)
        assert text.index("One") < text.index("Two") < text.index("Hello there") < text.index("Three")
        items = list(client.conversations.items.list(conversation.id, order="asc", limit=2))
        assert [item.role for item in items] == ["user", "user", "assistant", "user", "assistant"]
        client.conversations.items.delete(items[0].id, conversation_id=conversation.id)
        assert len(list(client.conversations.items.list(conversation.id))) == 4
        assert client.conversations.update(conversation.id, metadata={"x": "y"}).metadata == {"x": "y"}
        assert client.conversations.delete(conversation.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="scripted", input="Four", conversation=conversation.id)


def test_background_runs_are_polled_resumed_and_cancelled(serving):
    with serving(THINK + FINAL, engine={"seconds_per_event": 0.01}) as (client, context):
        started = client.responses.create(model="scripted", input="Hello", background=True)
        assert started.status == "queued"
        while (polled := client.responses.retrieve(started.id)).status in ("queued", "in_progress"):
            time.sleep(0.01)
        assert polled.output_text == "Hello there, friend."

        stream = client.responses.create(model="scripted", input="Hello", background=True, stream=True)
        seen = [next(stream) for _ in range(6)]
        stream.close()
        resumed = list(client.responses.retrieve(seen[0].response.id, stream=True, starting_after=5))
        again = list(client.responses.retrieve(seen[0].response.id, stream=True, starting_after=5))
        assert [e.sequence_number for e in seen + resumed] == list(range(6 + len(resumed)))
        assert resumed[-1].type == "response.completed"
        assert [e.to_dict() for e in again] == [e.to_dict() for e in resumed]

        context.engine.seconds_per_event = 0.2
        slow = client.responses.create(model="scripted", input="Hello", background=True)
        cancelled = client.responses.cancel(slow.id)
        assert cancelled.status == "cancelled"
        assert client.responses.cancel(slow.id).status == "cancelled"
        events = list(client.responses.retrieve(slow.id, stream=True))
        assert events[-1].response.status == "cancelled"
        assert not context.engine.open


def test_a_client_that_leaves_frees_its_request(serving):
    with serving(THINK + FINAL, engine={"seconds_per_event": 0.2}) as (client, context):
        stream = client.responses.create(model="scripted", input="Hello", stream=True)
        for _ in range(5):
            next(stream)
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).responses.create(model="scripted", input="Hello")
        deadline = time.monotonic() + 10
        while context.engine.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not context.engine.open
        assert len(context.engine.cancelled) == 2


def test_the_asynchronous_client_streams_many_at_once(serving):
    with serving(THINK + FINAL) as (client, context):

        async def one(other: openai.AsyncOpenAI, i: int) -> str:
            stream = await other.responses.create(model="scripted", input=f"Hello {i}", stream=True)
            events = [event async for event in stream]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            return events[-1].response.output_text

        async def run() -> list[str]:
            async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
                return await asyncio.gather(*(one(other, i) for i in range(64)))

        assert asyncio.run(run()) == ["Hello there, friend."] * 64
        assert not context.engine.open


def test_a_client_that_does_not_read_is_cut_off_and_others_are_served(serving):
    text = "<|channel|>final<|message|>" + "word " * 3000 + "<|return|>"
    with serving(text, limits=Limits(stall_seconds=1.0)) as (client, context):
        body = b'{"input":"Hello","stream":true,"store":false,"top_logprobs":20}'
        head = b"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", client.base_url.port))
            stuck.sendall(head + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            while not context.engine.open:
                time.sleep(0.01)
            events = list(client.responses.create(model="scripted", input="Hello", stream=True))
            assert events[-1].type == "response.completed"
            deadline = time.monotonic() + 30
            while context.engine.open and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not context.engine.open
            assert context.engine.cancelled == [context.engine.requests[0].id]


def test_errors_name_code_and_param(serving):
    with serving() as (client, _):
        cases: list[tuple[dict[str, Any], str, str]] = [
            ({"input": []}, "missing_required_parameter", "input"),
            ({"input": "x", "temperature": 3}, "invalid_value", "temperature"),
            ({"input": "x", "temperature": "hot"}, "invalid_type", "temperature"),
            ({"input": "x", "reasoning": {"effort": "huge"}}, "invalid_value", "reasoning.effort"),
            ({"input": "x", "tools": [{"type": "web_search"}]}, "unsupported_value", "tools[0].type"),
            ({"input": "x", "tools": [{"type": "mcp", "server_label": "a"}]}, "unsupported_value", "tools[0].type"),
            ({"input": "x", "tool_choice": "required"}, "invalid_value", "tool_choice"),
            ({"input": "x", "previous_response_id": "resp_0"}, "previous_response_not_found", "previous_response_id"),
            (
                {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
                "invalid_value",
                "input[0].call_id",
            ),
            (
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
                "unsupported_value",
                "input[0].content[0].type",
            ),
            ({"input": "x " * 9000}, "context_length_exceeded", "input"),
            (
                {"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}},
                "missing_required_parameter",
                "text.format.schema",
            ),
        ]
        for body, code, param in cases:
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(model="scripted", **body)
            assert (caught.value.code, caught.value.param) == (code, param), body
            assert caught.value.type == "invalid_request_error"
        with pytest.raises(openai.NotFoundError) as missing:
            client.responses.create(model="gpt-9", input="x")
        assert missing.value.code == "model_not_found"


def test_bodies_out_of_bounds_are_refused(serving):
    with serving(limits=Limits(max_body_bytes=10_000, max_json_depth=20)) as (client, _):
        url = f"{client.base_url}responses"
        large = httpx.post(url, json={"input": "x" * 20_000})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        chunks = (b'{"input": "', b"x" * 20_000, b'"}')
        streamed = httpx.post(url, content=iter(chunks), headers={"content-type": "application/json"})
        assert streamed.status_code == 413
        deep = httpx.post(url, content=b'{"a":' * 30 + b"1" + b"}" * 30, headers={"content-type": "application/json"})
        assert (deep.status_code, deep.json()["error"]["code"]) == (400, "invalid_json")
        assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.parametrize("path", ["responses", "chat/completions", "completions", "messages"])
@pytest.mark.parametrize("tells_length", [True, False])
def test_100_megabytes_are_refused_and_the_server_goes_on(serving, path, tells_length):
    with serving() as (client, _):
        headers = {"content-type": "application/json"} | ({"content-length": str(100 << 20)} if tells_length else {})
        body = (b" " * (1 << 20) for _ in range(100))
        answer = httpx.post(f"{client.base_url}{path}", content=body, headers=headers, timeout=60)
        assert answer.status_code == 413
        assert client.responses.create(model="scripted", input="Hello").status == "completed"
