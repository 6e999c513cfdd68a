"""/v1/messages: what goes in, what comes out, and that streaming changes nothing."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from tests.unit.server import scripts
from tests.unit.server.scripts import FINAL, PREAMBLE, THINK, params_of, prompt_of, random_script, words

from ossia.engine.constraint import JsonSchema, ToolChoice

PATH = "/v1/messages"
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
TOOL = {"name": "f", "description": "Does f.", "input_schema": {"type": "object"}}
USER = {"role": "user", "content": "Hello"}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
NAMES = ("functions.f", "functions.unknown", "python")
BASE = {"max_tokens": 1000, "messages": [USER]}


def ask(client_for, app, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    return scripts.ask(client_for, app, PATH, BASE, *bodies)


def test_a_message_has_blocks_and_usage(make_server, client_for):
    app = make_server(THINK + PREAMBLE + CALL, engine={"num_cached": 4})
    without, answer = ask(client_for, app, {"tools": [TOOL]}, {"tools": [TOOL], **THINKING})
    Message.model_validate(answer, strict=True)
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use"]
    assert [block["type"] for block in without["content"]] == ["text", "tool_use"]
    assert answer["content"][0]["thinking"] == "They say hello."
    assert answer["content"][1]["text"] == "Let me look."
    assert (answer["content"][2]["name"], answer["content"][2]["input"]) == ("f", {"a": 1})
    assert answer["stop_reason"] == "tool_use"
    usage = answer["usage"]
    assert usage["cache_read_input_tokens"] == 4
    assert usage["input_tokens"] == len(app.state.context.engine.requests[-1].prompt_ids) - 4
    assert 0 < usage["output_tokens_details"]["thinking_tokens"] < usage["output_tokens"]


@pytest.mark.parametrize(
    ("policy", "more", "kinds"),
    [
        ("raw", {}, {"thinking": "They say hello."}),
        ("raw", {"display": "omitted"}, {"thinking": ""}),
        ("summary", {}, {"thinking": "Short."}),
        ("hidden", {}, {"redacted_thinking": None}),
    ],
)
def test_the_policy_decides_what_is_seen_of_thinking(make_server, client_for, policy, more, kinds):
    def script(prompt: str) -> str:
        return "<|channel|>final<|message|>Short.<|return|>" if "notes" in prompt else THINK + FINAL

    app = make_server(script, reasoning=policy)
    (answer,) = ask(client_for, app, {"thinking": {**THINKING["thinking"], **more}})
    block = answer["content"][0]
    assert {block["type"]: block.get("thinking")} == kinds
    assert "They say" not in json.dumps(answer) or policy == "raw"


@pytest.mark.parametrize("policy", ["raw", "hidden"])
@pytest.mark.parametrize("keeps", ["all", "no thinking", "thinking alone"])
def test_a_tool_round_goes_back_in_as_it_was_sampled(make_server, client_for, policy, keeps):
    app = make_server(lambda prompt: FINAL if "Sunny" in prompt else THINK + PREAMBLE + CALL, reasoning=policy)

    async def run():
        async with client_for(app) as client:
            body = {**BASE, **THINKING, "tools": [TOOL]}
            blocks = (await client.post(PATH, json=body)).json()["content"]
            call_id = blocks[-1]["id"]
            if keeps == "no thinking":
                blocks = [block for block in blocks if "thinking" not in block["type"]]
            elif keeps == "thinking alone":
                app.state.context.replay.forget("anonymous", call_id)
            result = {"type": "tool_result", "tool_use_id": call_id, "content": [{"type": "text", "text": "Sunny"}]}
            messages = [USER, {"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
            again = await client.post(PATH, json={**body, "messages": messages})
            assert again.json()["content"][-1]["text"] == "Hello there.", again.text

    asyncio.run(run())
    engine = app.state.context.engine
    first, second = (request.prompt_ids for request in engine.requests)
    said = THINK + (PREAMBLE if keeps == "thinking alone" else PREAMBLE + CALL)
    ids = tuple(engine.tokenizer.encode_with_specials(said))
    assert second[: len(first) + len(ids)] == first + ids
    assert prompt_of(app).endswith("assistant<|channel|>commentary<|message|>Sunny<|end|><|start|>assistant")


def test_a_foreign_signature_does_no_harm(make_server, client_for):
    app = make_server()
    blocks = [
        {"type": "redacted_thinking", "data": "AAAA"},
        {"type": "thinking", "thinking": "Hm.", "signature": "AAAA"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"b": [1.5, None]}},
    ]
    result = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": "no"},
        {"type": "text", "text": "Go on."},
    ]
    messages = [USER, {"role": "assistant", "content": blocks}, {"role": "user", "content": result}]
    ask(client_for, app, {"messages": messages, "tools": [TOOL]})
    assert prompt_of(app).endswith(
        "<|channel|>analysis<|message|>Hm.<|end|>"
        '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"b":[1.5,null]}<|call|>'
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>Error: no<|end|>"
        "<|start|>user<|message|>Go on.<|end|><|start|>assistant"
    )


@pytest.mark.parametrize(
    ("choice", "kind", "allowed"),
    [
        ({"type": "auto"}, ToolChoice.AUTO, None),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice.REQUIRED, None),
        ({"type": "tool", "name": "f"}, ToolChoice.REQUIRED, ("functions.f",)),
        ({"type": "none"}, ToolChoice.NONE, None),
    ],
)
def test_tool_choice_becomes_a_constraint(make_server, client_for, choice, kind, allowed):
    app = make_server()
    ask(client_for, app, {"tools": [TOOL], "tool_choice": choice})
    constraint = params_of(app).constraint
    assert (constraint.tool_choice, constraint.allowed_tools) == (kind, allowed)
    assert constraint.parallel_calls == ("disable_parallel_tool_use" not in choice)


@pytest.mark.parametrize(
    ("body", "effort"),
    [
        ({}, "medium"),
        ({"thinking": {"type": "disabled"}}, "low"),
        ({"thinking": {"type": "adaptive"}}, "medium"),
        (THINKING, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 20_000}}, "high"),
        ({**THINKING, "output_config": {"effort": "max"}}, "high"),
    ],
)
def test_effort_comes_from_the_budget_or_the_config(make_server, client_for, body, effort):
    app = make_server()
    ask(client_for, app, body)
    assert f"Reasoning: {effort}" in prompt_of(app)


def test_system_format_sampling_and_documents(make_server, client_for):
    app = make_server()
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    ask(
        client_for,
        app,
        {
            "system": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}],
            "output_config": {"format": {"type": "json_schema", "schema": schema}},
            "messages": [{"role": "user", "content": [document, {"type": "text", "text": "Read."}]}],
            "temperature": 0.25,
            "top_k": 5,
            "top_p": 0.5,
        },
    )
    assert "# Instructions\n\nOne.\n\nTwo.\n\n# Response Formats" in prompt_of(app)
    assert "<|start|>user<|message|>T\n\nD\nRead.<|end|>" in prompt_of(app)
    params = params_of(app)
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.25, 5, 0.5, 1000)
    assert isinstance(params.constraint.response_format, JsonSchema)


def test_how_messages_end(make_server, client_for):
    app = make_server(THINK + FINAL)
    stopped, short, plain = ask(client_for, app, {"stop_sequences": ["lo "]}, {"max_tokens": 3}, {})
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "lo ")
    assert stopped["content"] == [{"type": "text", "text": "Hel", "citations": None}]
    assert (short["stop_reason"], short["content"]) == ("max_tokens", [])
    assert plain["stop_reason"] == "end_turn"
    app = make_server(THINK + FINAL, engine={"context_length": len(prompt_of(app)) // 2})
    room = app.state.context.engine.context_length

    async def fill():
        async with client_for(app) as client:
            size = 0
            count = (await client.post(f"{PATH}/count_tokens", json={"messages": [USER]})).json()["input_tokens"]
            size = room - count - 4
            text = "Hello" + " a" * size
            return (await client.post(PATH, json={**BASE, "messages": [{"role": "user", "content": text}]})).json()

    assert asyncio.run(fill())["stop_reason"] == "model_context_window_exceeded"


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"max_tokens": None}, "max_tokens"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "assistant", "content": "Well"}]}, "the last message is the assistant's"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "reads text only"),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
        "no call with the id 'x'",
    ),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124' is not available"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [TOOL], "tool_choice": {"type": "odd"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "'g'"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"temperature": 7}, "temperature"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"messages": [{"role": "user", "content": "x " * 9000}]}, "at most"),
]


def test_errors_are_in_anthropics_shape(make_server, client_for):
    key = "a-key-of-twenty-letters"
    app = make_server(api_keys=(key,))

    async def run():
        async with client_for(app) as client:
            headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
            for body, text in ERRORS:
                answer = await client.post(PATH, json={**BASE, **body}, headers=headers)
                error = answer.json()
                assert answer.status_code == 400, body
                assert set(error) == {"type", "error", "request_id"}
                assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
                assert text in error["error"]["message"], (body, error)
                assert error["request_id"] == answer.headers["request-id"]
            cases = [
                (await client.post(PATH, json=BASE), 401, "authentication_error"),
                (await client.post(PATH, json={**BASE, "model": "m"}, headers=headers), 404, "not_found_error"),
                (await client.get("/v1/models/m", headers=headers), 404, "not_found_error"),
                (await client.post(f"{PATH}/nothing", json=BASE, headers=headers), 404, "not_found_error"),
                (await client.get(PATH, headers=headers), 405, "invalid_request_error"),
            ]
            for answer, status, kind in cases:
                assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)

    asyncio.run(run())
    assert not app.state.context.engine.requests


# ---- streaming changes nothing ----


def read_events(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n", 1)
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def join(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message as a client puts it together; checks the order of events on the way."""
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    message = events[0]["message"]
    is_open = False
    arguments = ""
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            is_open, arguments = True, ""
            continue
        assert is_open
        assert event["index"] == len(message["content"]) - 1
        block = message["content"][-1]
        if event["type"] == "content_block_stop":
            is_open = False
            if block["type"] == "tool_use":
                block["input"] = pydantic_partial(arguments)
            continue
        delta = event["delta"]
        field = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(delta["type"])
        if field is None:
            arguments += delta["partial_json"]
        else:
            block[field] += delta[field]
    assert not is_open
    message |= events[-2]["delta"]
    message["usage"] |= events[-2]["usage"]
    return message


def pydantic_partial(text: str) -> Any:
    from pydantic_core import from_json

    return from_json(text, allow_partial=True) if text else {}


def without_names(message: dict[str, Any]) -> dict[str, Any]:
    data = {**message, "id": ""}
    data["content"] = [
        {key: value for key, value in block.items() if key not in ("id", "signature", "data")}
        for block in message["content"]
    ]
    return data


def arguments(rng: random.Random, name: str) -> str:
    """Calls of declared tools are held to JSON by the engine; others may be anything."""
    return rng.choice(['{"a": 1, "b": "snø"}', "{}"] if name == "functions.f" else ["not json", "[1]", words(rng)])


def test_streamed_and_whole_messages_agree(make_server, client_for):
    rng = random.Random(11)
    script = {"text": ""}
    app = make_server(lambda _: script["text"])

    async def run() -> None:
        async with client_for(app) as client:
            for _ in range(200):
                script["text"] = random_script(rng, names=NAMES, arguments=arguments, is_unruly=False)
                app.state.context.engine.tokens_per_event = rng.randint(1, 4)
                body: dict[str, Any] = {"max_tokens": rng.choice([1000, rng.randint(1, 30)]), "tools": [TOOL]}
                body |= {"messages": [{"role": "user", "content": words(rng)}]}
                body |= rng.choice([{}, THINKING, {"stop_sequences": ["es n", "日", "aps"]}])
                once = (await client.post(PATH, json=body)).json()
                Message.model_validate(once, strict=True)
                events = read_events((await client.post(PATH, json={**body, "stream": True})).text)
                for event in events:
                    if event["type"] != "ping":  # no part of its types, but of its API
                        EVENT.validate_python(event)
                assert without_names(join(events)) == without_names(once), script["text"]
                assert not app.state.context.engine.open

    asyncio.run(run())


def test_a_failing_engine_is_told_in_the_stream(make_server, client_for):
    app = make_server(FINAL)

    async def run():
        async with client_for(app) as client:
            engine = app.state.context.engine
            engine.gate = asyncio.Event()
            asking = asyncio.create_task(client.post(PATH, json={**BASE, "stream": True}))
            while not engine.open and not asking.done():
                await asyncio.sleep(0)
            engine.die()
            text = (await asking).text
            assert text.rsplit("event: ", 1)[1].startswith('error\ndata: {"type": "error", "error": {"type": "overl')

    asyncio.run(run())
