"""/v1/messages through Anthropic's client, over real sockets."""

from __future__ import annotations

import asyncio

import anthropic
import pydantic
import pytest

NEXT = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>They say hello.<|end|>" + NEXT
FINAL = "<|channel|>final<|message|>Hello there, friend.<|return|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
USER = {"role": "user", "content": "Hello"}
TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
ASK = {"model": "scripted", "max_tokens": 1000, "messages": [USER], "tools": [TOOL]}
THINKING = {"type": "enabled", "budget_tokens": 1024}


def client_of(server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=30)


@pytest.mark.parametrize("script", [THINK + FINAL, THINK + CALL, CALL + NEXT + CALL, FINAL])
def test_the_stream_helper_ends_in_what_create_gives(start_server, script):
    with start_server(script, engine={"num_cached": 8}) as server, client_of(server) as client:
        once = client.messages.create(**ASK, thinking=THINKING).to_dict()
        with client.messages.stream(**ASK, thinking=THINKING) as stream:
            kinds = [event.type for event in stream]
            whole = stream.get_final_message().to_dict()
        assert kinds[0] == "message_start"
        assert kinds[-1] == "message_stop"
        for message in (once, whole):
            message["id"] = ""
            for block in message["content"]:
                for key in ("id", "signature", "parsed_output"):
                    block.pop(key, None)
        for key in ("content", "stop_reason", "stop_sequence", "usage"):
            assert once[key] == whole[key]
        assert once["usage"]["cache_read_input_tokens"] == 8


def test_a_tool_round_with_the_clients_own_objects(start_server):
    with (
        start_server(lambda prompt: FINAL if "Sunny" in prompt else THINK + CALL) as server,
        client_of(server) as client,
    ):
        first = client.messages.create(**ASK, thinking=THINKING)
        assert first.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "Sunny"}
        messages = [USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        second = client.messages.create(**{**ASK, "messages": messages}, thinking=THINKING)
        assert second.content[-1].text == "Hello there, friend."
        prompts = [request.prompt_ids for request in server.engine.requests]
        said = tuple(server.engine.tokenizer.encode_with_specials(THINK + CALL))
        assert prompts[1][: len(prompts[0]) + len(said)] == prompts[0] + said
        count = client.messages.count_tokens(model="scripted", messages=messages, tools=[TOOL], thinking=THINKING)
        assert count.input_tokens == len(prompts[1])


def test_parse_gives_values(start_server):
    class Answer(pydantic.BaseModel):
        word: str

    with start_server('<|channel|>final<|message|>{"word":"ok"}<|return|>') as server, client_of(server) as client:
        parsed = client.messages.parse(model="scripted", max_tokens=100, messages=[USER], output_format=Answer)
        assert parsed.parsed_output == Answer(word="ok")
        assert '"word"' in server.engine.requests[-1].params.constraint.response_format.text


def test_the_tool_runner_loops(start_server):
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city.

        Args:
            city: which.
        """
        return f"Sunny in {city}"

    script = lambda prompt: FINAL if "Sunny in Oslo" in prompt else THINK + CALL  # noqa: E731
    with start_server(script) as server, client_of(server) as client:
        runner = client.beta.messages.tool_runner(
            model="scripted", max_tokens=1000, messages=[USER], tools=[get_weather]
        )
        assert runner.until_done().content[-1].text == "Hello there, friend."
        assert len(server.engine.requests) == 2


def test_errors_become_the_clients_exceptions(start_server):
    key = "a-key-of-twenty-letters"
    with start_server(FINAL, api_keys=(key,)) as server:
        with client_of(server) as client, pytest.raises(anthropic.AuthenticationError):
            client.messages.create(**ASK)
        with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
            assert client.messages.create(**ASK).content[0].text == "Hello there, friend."
            assert [model.id for model in client.models.list()] == ["scripted"]
            with pytest.raises(anthropic.BadRequestError, match="temperature"):
                client.messages.create(**ASK, extra_body={"temperature": 9})
            with pytest.raises(anthropic.NotFoundError):
                client.messages.create(**{**ASK, "model": "claude"})
            server.engine.seconds_per_event = 0.05
            stream = client.messages.create(**ASK, stream=True)
            next(iter(stream))
            server.engine.die()
            with pytest.raises(anthropic.APIStatusError, match="engine died"):
                list(stream)


def test_the_asynchronous_client_streams_many_at_once(start_server):
    async def one(client: anthropic.AsyncAnthropic) -> str:
        async with client.messages.stream(**ASK) as stream:
            return await stream.get_final_text()

    async def run(url: str) -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(one(client) for _ in range(64)))

    with start_server(THINK + FINAL) as server:
        assert asyncio.run(run(server.url)) == ["Hello there, friend."] * 64
        assert not server.engine.open
