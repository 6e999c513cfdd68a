"""The same conversation through Responses, Chat Completions and Messages is the same token ids."""

from __future__ import annotations

import asyncio
import random
from typing import Any

NEXT = "<|start|>assistant"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WORDS = ["Oslo", "rain", "snø", "日本", "\U0001f600", "<|end|>", "maybe", "2 + 2", "\n"]


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))


def random_turns(rng: random.Random) -> list[dict[str, Any]]:
    """Rounds of a question, calls with their results, and an answer; the last may wait for its answer."""
    turns: list[dict[str, Any]] = []
    for i in range(rng.randint(1, 3)):
        calls = [(f"call_{i}_{j}", {"city": words(rng)}, words(rng)) for j in range(rng.choice([0, 0, 1, 2]))]
        preamble = words(rng) if calls and rng.random() < 0.5 else ""
        thought = words(rng) if rng.random() < 0.7 else ""
        turn = {"user": words(rng), "thought": thought, "preamble": preamble, "calls": calls, "answer": words(rng)}
        turns.append(turn)
    if not turns[-1]["calls"] or rng.random() < 0.5:
        turns.append({"user": words(rng), "thought": "", "preamble": "", "calls": [], "answer": None})
    else:
        turns[-1]["answer"] = None
    return turns


def for_responses(turns: list[dict[str, Any]]) -> dict[str, Any]:
    import json

    items: list[dict[str, Any]] = []
    for turn in turns:
        items.append({"role": "user", "content": turn["user"]})
        if turn["thought"] and (turn["calls"] or turn["answer"] is not None):
            part = {"type": "reasoning_text", "text": turn["thought"]}
            items.append({"type": "reasoning", "summary": [], "content": [part]})
        if turn["preamble"]:
            items.append({"role": "assistant", "phase": "commentary", "content": turn["preamble"]})
        for call_id, value, _ in turn["calls"]:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            items.append({"type": "function_call", "call_id": call_id, "name": "weather", "arguments": text})
        for call_id, _, result in turn["calls"]:
            items.append({"type": "function_call_output", "call_id": call_id, "output": result})
        if turn["answer"] is not None:
            items.append({"role": "assistant", "content": turn["answer"]})
    tool = {"type": "function", "name": "weather", "description": "The weather", "parameters": SCHEMA}
    return {"input": items, "instructions": "Be brief.", "tools": [tool], "reasoning": {"effort": "low"}}


def for_chat(turns: list[dict[str, Any]]) -> dict[str, Any]:
    import json

    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    for turn in turns:
        messages.append({"role": "user", "content": turn["user"]})
        thought = {"reasoning": turn["thought"]} if turn["thought"] else {}
        if turn["calls"]:
            calls = []
            for call_id, value, _ in turn["calls"]:
                text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
                calls.append({"id": call_id, "type": "function", "function": {"name": "weather", "arguments": text}})
            said = {"content": turn["preamble"]} if turn["preamble"] else {}
            messages.append({"role": "assistant", "tool_calls": calls, **said, **thought})
            thought = {}
        for call_id, _, result in turn["calls"]:
            messages.append({"role": "tool", "tool_call_id": call_id, "content": result})
        if turn["answer"] is not None:
            messages.append({"role": "assistant", "content": turn["answer"], **thought})
    function = {"name": "weather", "description": "The weather", "parameters": SCHEMA}
    return {"messages": messages, "tools": [{"type": "function", "function": function}], "reasoning_effort": "low"}


def for_messages(turns: list[dict[str, Any]]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn["user"]})
        blocks: list[dict[str, Any]] = []
        if turn["thought"]:
            blocks.append({"type": "thinking", "thinking": turn["thought"], "signature": ""})
        if turn["preamble"]:
            blocks.append({"type": "text", "text": turn["preamble"]})
        for call_id, value, _ in turn["calls"]:
            blocks.append({"type": "tool_use", "id": call_id, "name": "weather", "input": value})
        if turn["calls"]:
            messages.append({"role": "assistant", "content": blocks})
            results = [{"type": "tool_result", "tool_use_id": name, "content": text} for name, _, text in turn["calls"]]
            messages.append({"role": "user", "content": results})
            blocks = []
        if turn["answer"] is not None:
            messages.append({"role": "assistant", "content": [*blocks, {"type": "text", "text": turn["answer"]}]})
    tool = {"name": "weather", "description": "The weather", "input_schema": SCHEMA}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    return {"messages": messages, "system": "Be brief.", "tools": [tool], "thinking": thinking}


def test_random_conversations_render_alike(make_server, client_for):
    rng = random.Random(3)
    app = make_server()

    async def run() -> None:
        async with client_for(app) as client:
            for _ in range(100):
                turns = random_turns(rng)
                forms = {
                    "/v1/responses": for_responses(turns),
                    "/v1/chat/completions": for_chat(turns),
                    "/v1/messages": for_messages(turns),
                }
                prompts = []
                for path, body in forms.items():
                    answer = await client.post(f"{path}/render", json=body)
                    assert answer.status_code == 200, answer.text
                    prompts.append(answer.json())
                assert prompts[0] == prompts[1] == prompts[2], prompts
                assert prompts[0]["num_tokens"] == len(prompts[0]["token_ids"])

    asyncio.run(run())


def test_what_is_rendered_is_what_the_engine_gets(make_server, client_for):
    turns = random_turns(random.Random(5))
    app = make_server()

    async def run() -> None:
        async with client_for(app) as client:
            for path, body in (
                ("/v1/responses", for_responses(turns)),
                ("/v1/chat/completions", for_chat(turns)),
                ("/v1/messages", {**for_messages(turns), "max_tokens": 100}),
            ):
                rendered = (await client.post(f"{path}/render", json=body)).json()["token_ids"]
                assert (await client.post(path, json=body)).status_code == 200
                assert app.state.context.engine.requests[-1].prompt_ids == tuple(rendered)
            counted = (await client.post("/v1/messages/count_tokens", json=for_messages(turns))).json()
            assert counted == {"input_tokens": len(rendered)}

    asyncio.run(run())


def test_answers_said_through_any_api_are_replayed_as_sampled(make_server, client_for):
    """Also where the model wrote a header of its own."""
    said = (
        "<|channel|>analysis<|message|>Hm.<|end|>" + NEXT + "<|channel|>final <|constrain|>json<|message|>{}<|return|>"
    )
    app = make_server(said)
    user = {"role": "user", "content": "Give JSON."}
    more = {"role": "user", "content": "Again."}

    async def run() -> None:
        async with client_for(app) as client:
            response = (await client.post("/v1/responses", json={"input": [user]})).json()
            chat = (await client.post("/v1/chat/completions", json={"messages": [user]})).json()
            body = {"messages": [user], "max_tokens": 100}
            message = (await client.post("/v1/messages", json=body)).json()
            await client.post("/v1/responses", json={"input": [user, *response["output"], more]})
            messages = [user, chat["choices"][0]["message"], more]
            await client.post("/v1/chat/completions", json={"messages": messages})
            messages = [user, {"role": "assistant", "content": message["content"]}, more]
            await client.post("/v1/messages", json={**body, "messages": messages})

    asyncio.run(run())
    prompts = [request.prompt_ids for request in app.state.context.engine.requests]
    assert prompts[3] == prompts[4] == prompts[5]
    text = app.state.context.engine.tokenizer.decode(prompts[3])
    assert "<|channel|>final <|constrain|>json<|message|>{}<|end|>" in text
    assert "Hm." not in text
