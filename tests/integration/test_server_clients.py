"""The OpenAI Agents SDK against the server, through both of its models."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import openai
import pytest

NEXT = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>I need the weather.<|end|>" + NEXT
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>'
FINAL = "<|channel|>final<|message|>It is sunny in Oslo.<|return|>"


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


def script(prompt: str) -> str:
    return FINAL if "Sunny in Oslo." in prompt else THINK + CALL


async def converse(url: str, *, kind: str, streams: bool) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        model_class = agents.OpenAIResponsesModel if kind == "responses" else agents.OpenAIChatCompletionsModel
        agent = agents.Agent(
            name="Reporter",
            instructions="Tell the weather.",
            tools=[get_weather],
            model=model_class(model="scripted", openai_client=client),
        )
        if not streams:
            return await agents.Runner.run(agent, "Weather in Oslo?")
        result = agents.Runner.run_streamed(agent, "Weather in Oslo?")
        deltas = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                deltas += event.data.delta
        assert deltas == result.final_output
        return result


@pytest.mark.parametrize("kind", ["responses", "chat"])
@pytest.mark.parametrize("streams", [False, True])
def test_an_agent_calls_its_tool(start_server, kind, streams):
    agents.set_tracing_disabled(True)
    with start_server(script) as server:
        result = asyncio.run(converse(server.url, kind=kind, streams=streams))
        assert result.final_output == "It is sunny in Oslo."
        assert "tool_call_output_item" in [item.type for item in result.new_items]
        prompts = [request.prompt_ids for request in server.engine.requests]
        said = tuple(server.engine.tokenizer.encode_with_specials(THINK + CALL))
        assert len(prompts) == 2
        assert prompts[1][: len(prompts[0]) + len(said)] == prompts[0] + said, "reasoning is kept between calls"
