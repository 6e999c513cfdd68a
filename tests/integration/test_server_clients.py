"""The OpenAI Agents SDK against the server, through both of its models."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import agents
import openai
import pytest

from ossia.server.makers import make_mcp

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


SUM = '<|channel|>commentary to=sums.functions_add <|constrain|>json<|message|>{"a":40,"b":2}<|call|>'


def add_up(prompt: str) -> str:
    if "did not allow" in prompt:
        return "<|channel|>final<|message|>Then I do not know.<|return|>"
    answered = "<|start|>sums.functions_add to=assistant" in prompt
    return "<|channel|>final<|message|>It is 42.<|return|>" if answered else THINK + SUM


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("is_allowed", [True, False])
def test_an_agent_asks_its_user_before_a_call_of_an_mcp_server(start_server, mcp_url, streams, is_allowed):
    """The client, the server and the MCP server are real; the SDK's hook is asked once, with what is to be done."""
    agents.set_tracing_disabled(True)
    asked: list[tuple[str, str]] = []

    def decide(request: agents.MCPToolApprovalRequest) -> agents.MCPToolApprovalFunctionResult:
        asked.append((request.data.name, request.data.arguments))
        return {"approve": True} if is_allowed else {"approve": False, "reason": "not today"}

    async def converse(url: str) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
            tool = agents.HostedMCPTool(
                tool_config={
                    "type": "mcp",
                    "server_label": "sums",
                    "server_url": mcp_url,
                    "require_approval": "always",
                },
                on_approval_request=decide,
            )
            model = agents.OpenAIResponsesModel(model="scripted", openai_client=client)
            agent = agents.Agent(name="Adder", tools=[tool], model=model)
            if not streams:
                return await agents.Runner.run(agent, "40 + 2?")
            result = agents.Runner.run_streamed(agent, "40 + 2?")
            async for _ in result.stream_events():
                pass
            return result

    with start_server(add_up, tools=("mcp",)) as server:
        server.context.tool_makers = {"mcp": functools.partial(make_mcp, is_private_allowed=True)}
        result = asyncio.run(converse(server.url))
        assert result.final_output == ("It is 42." if is_allowed else "Then I do not know.")
        assert asked == [("functions_add", '{"a":40,"b":2}')]
        prompts = [server.engine.tokenizer.decode(request.prompt_ids) for request in server.engine.requests]
        assert len(prompts) == 2
        assert prompts[1].startswith(prompts[0] + THINK + SUM), "reasoning is kept between the call and its result"
        said = "<|message|>42<|end|>" if is_allowed else "The user did not allow this call. The reason: not today"
        assert said in prompts[1][len(prompts[0]) :]
