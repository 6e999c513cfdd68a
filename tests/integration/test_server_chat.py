"""/v1/chat/completions and /v1/completions through the official client, over real sockets."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import openai
import pydantic
import pytest

from ossia.agent.turns import ServedModel
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.build import build_engine
from ossia.model.loading import load

NEXT = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>They say hello.<|end|>" + NEXT
FINAL = "<|channel|>final<|message|>Hello there, friend.<|return|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
USER = {"role": "user", "content": "Hello"}


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str


class Forecast(pydantic.BaseModel):
    """The weather of a day. A small model ends in time what has few choices."""

    day: Literal["today", "tomorrow"]


class Answer(pydantic.BaseModel):
    word: str


def client_of(server, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30, **more)


@pytest.mark.parametrize("script", [THINK + FINAL, THINK + CALL, CALL + NEXT + CALL, FINAL])
def test_the_stream_helper_ends_in_what_create_gives(start_server, script):
    tools = [openai.pydantic_function_tool(Weather, name="get_weather")]
    with start_server(script) as server, client_of(server) as client:
        once = client.chat.completions.create(model="scripted", messages=[USER], tools=tools)
        options = {"include_usage": True}
        with client.beta.chat.completions.stream(
            model="scripted", messages=[USER], tools=tools, stream_options=options
        ) as stream:
            kinds = [event.type for event in stream]
            whole = stream.get_final_completion()
        assert ("content.done" in kinds) == ("final" in script)
        assert kinds.count("tool_calls.function.arguments.done") == script.count("<|call|>")
        for completion in (once, whole):
            completion.id, completion.created = "", 0
            for call in completion.choices[0].message.tool_calls or ():
                call.id = ""
        ours, theirs = once.choices[0].message, whole.choices[0].message
        assert ours.content == theirs.content
        assert ours.reasoning == getattr(theirs, "reasoning", None) if THINK in script else True
        assert [call.function.arguments for call in ours.tool_calls or ()] == [
            call.function.arguments for call in theirs.tool_calls or ()
        ]
        assert once.choices[0].finish_reason == whole.choices[0].finish_reason
        assert once.usage == whole.usage


def test_parse_gives_values(start_server):
    script = '<|channel|>final <|constrain|>json<|message|>{"word":"ok"}<|return|>'
    with start_server(script) as server, client_of(server) as client:
        parsed = client.beta.chat.completions.parse(model="scripted", messages=[USER], response_format=Answer)
        assert parsed.choices[0].message.parsed == Answer(word="ok")
        with client.beta.chat.completions.stream(model="scripted", messages=[USER], response_format=Answer) as stream:
            for _ in stream:
                pass
            assert stream.get_final_completion().choices[0].message.parsed == Answer(word="ok")
        assert '"word"' in server.engine.requests[-1].params.constraint.response_format.text
    with start_server(CALL) as server, client_of(server) as client:
        tools = [openai.pydantic_function_tool(Weather, name="get_weather")]
        parsed = client.beta.chat.completions.parse(model="scripted", messages=[USER], tools=tools)
        assert parsed.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Oslo")


def test_a_tool_round_with_the_clients_own_objects(start_server):
    with (
        start_server(lambda prompt: FINAL if "Sunny" in prompt else THINK + CALL) as server,
        client_of(server) as client,
    ):
        tools = [openai.pydantic_function_tool(Weather, name="get_weather")]
        first = client.chat.completions.create(model="scripted", messages=[USER], tools=tools)
        message = first.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sunny"}
        second = client.chat.completions.create(model="scripted", messages=[USER, message, result], tools=tools)
        assert second.choices[0].message.content == "Hello there, friend."
        prompts = [request.prompt_ids for request in server.engine.requests]
        said = tuple(server.engine.tokenizer.encode_with_specials(THINK + CALL))
        assert prompts[1][: len(prompts[0]) + len(said)] == prompts[0] + said


def test_errors_become_the_clients_exceptions(start_server):
    with start_server(FINAL) as server, client_of(server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="scripted", messages=[USER], temperature=9)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-9", messages=[USER])
        server.engine.seconds_per_event = 0.05
        stream = client.chat.completions.create(model="scripted", messages=[USER], stream=True)
        next(stream)
        server.engine.die()
        with pytest.raises(openai.APIError):
            list(stream)


def test_a_client_that_leaves_frees_its_request(start_server):
    with start_server(THINK + FINAL, engine={"seconds_per_event": 0.2}) as server, client_of(server) as client:
        stream = client.chat.completions.create(model="scripted", messages=[USER], stream=True)
        next(stream)
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=1.0).chat.completions.create(model="scripted", messages=[USER])
        deadline = time.monotonic() + 10
        while server.engine.open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.engine.open
        assert len(server.engine.cancelled) == 2


def test_256_streams_at_once_lose_nothing(start_server):
    words = [f"w{i}" for i in range(40)]
    script = "<|channel|>final<|message|>" + " ".join(words) + "<|return|>"

    async def one(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": f"Hello {i}"}], stream=True
        )
        pieces, reasons = [], []
        async for chunk in stream:
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        assert reasons == ["stop"]
        return "".join(pieces)

    async def run(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(one(client, i) for i in range(256)))

    with start_server(script) as server:
        assert asyncio.run(run(server.url)) == [" ".join(words)] * 256
        assert not server.engine.open


def test_completions_and_models(start_server):
    with start_server("and so on.") as server, client_of(server) as client:
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert client.models.retrieve("scripted").object == "model"
        whole = client.completions.create(model="scripted", prompt="Once", max_tokens=50, echo=True)
        assert whole.choices[0].text == "Onceand so on."
        stream = client.completions.create(model="scripted", prompt="Once", max_tokens=50, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "and so on."


@pytest.mark.slow
def test_the_real_nano_answers(start_server):
    """End to end: HTTP, harmony, the engine and the model; a constrained answer, and a seed that repeats."""
    loaded = load("nano")
    model = ServedModel.of(loaded)
    with start_server(AsyncEngine(build_engine(loaded)), model=model) as server, client_of(server) as client:
        asked = [{"role": "user", "content": "What is 12 + 30?"}]
        answer = client.chat.completions.create(
            model="nano", messages=asked, temperature=0, max_tokens=400, reasoning_effort="low"
        )
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        stream = client.chat.completions.create(
            model="nano", messages=asked, temperature=0, max_tokens=400, reasoning_effort="low", stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert text == answer.choices[0].message.content
        held = client.beta.chat.completions.parse(
            model="nano", messages=asked, response_format=Answer, temperature=0, max_tokens=1000
        )
        assert isinstance(held.choices[0].message.parsed, Answer)
        tools = [openai.pydantic_function_tool(Forecast, name="get_forecast")]
        call = client.chat.completions.create(
            model="nano", messages=asked, tools=tools, tool_choice="required", temperature=0, max_tokens=2000
        )
        assert call.choices[0].finish_reason == "tool_calls"
        Forecast.model_validate_json(call.choices[0].message.tool_calls[0].function.arguments)


@pytest.mark.slow
def test_256_streams_of_the_real_nano(start_server):
    """None fails, none loses a token, and all of one question get one answer; the engine is empty afterwards."""
    loaded = load("nano")
    engine = AsyncEngine(build_engine(loaded))

    async def one(client: openai.AsyncOpenAI, i: int) -> tuple[str, int, str]:
        stream = await client.chat.completions.create(
            model="nano",
            messages=[{"role": "user", "content": f"What is {10 + i % 4} + 30?"}],
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
        text, reasons, num_tokens = "", [], 0
        async for chunk in stream:
            for choice in chunk.choices:
                text += getattr(choice.delta, "reasoning", None) or choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
            num_tokens = chunk.usage.completion_tokens if chunk.usage else num_tokens
        assert len(reasons) == 1
        return text, num_tokens, reasons[0]

    async def run(url: str) -> list[tuple[str, int, str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            return await asyncio.gather(*(one(client, i) for i in range(256)))

    with start_server(engine, model=ServedModel.of(loaded)) as server:
        answers = asyncio.run(run(server.url))
        assert len(set(answers)) == 4
        assert all(text and num_tokens and reason in ("stop", "length") for text, num_tokens, reason in answers)
        snapshot = asyncio.run(engine.metrics())
        assert (snapshot.num_running, snapshot.num_waiting) == (0, 0)
        assert snapshot.num_free_pages == snapshot.num_pages
