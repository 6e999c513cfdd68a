"""/v1/chat/completions: what goes in, what comes out, and that streaming changes nothing."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.unit.server import scripts
from tests.unit.server.scripts import FINAL, NEXT, PREAMBLE, THINK, params_of, prompt_of, random_script, words

from ossia.engine.constraint import JsonObject, JsonSchema, ToolChoice

PATH = "/v1/chat/completions"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CUSTOM = {"type": "custom", "custom": {"name": "g"}}
USER = {"role": "user", "content": "Hello"}


def ask(client_for, app, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    return scripts.ask(client_for, app, PATH, {"messages": [USER]}, *bodies)


# ---- what comes out ----


def test_a_completion_has_reasoning_text_and_usage(make_server, client_for):
    app = make_server(THINK + FINAL, engine={"num_cached": 4})
    (answer,) = ask(client_for, app, {})
    ChatCompletion.model_validate(answer, strict=True)
    message = answer["choices"][0]["message"]
    assert message["content"] == "Hello there."
    assert message["reasoning"] == message["reasoning_content"] == "They say hello."
    assert "tool_calls" not in message
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 4
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(("policy", "seen"), [("raw", "They say hello."), ("hidden", None), ("summary", "Short.")])
def test_the_policy_decides_what_is_seen_of_reasoning(make_server, client_for, policy, seen):
    def script(prompt: str) -> str:
        return "<|channel|>final<|message|>Short.<|return|>" if "notes" in prompt else THINK + FINAL

    app = make_server(script, reasoning=policy)

    async def run():
        async with client_for(app) as client:
            once = (await client.post(PATH, json={"messages": [USER]})).json()["choices"][0]["message"]
            text = (await client.post(PATH, json={"messages": [USER], "stream": True})).text
            streamed = join(read_chunks(text))["choices"][0]["message"]
            assert once.get("reasoning") == once.get("reasoning_content") == seen
            assert streamed.get("reasoning") == seen
            assert seen == "They say hello." or "They say" not in text

    asyncio.run(run())


def test_calls_of_functions_custom_tools_and_legacy_functions(make_server, client_for):
    custom = "<|channel|>commentary to=custom.g<|message|>print(1)<|call|>"
    app = make_server(THINK + PREAMBLE + CALL + NEXT + custom)
    legacy = {"functions": [TOOL["function"]], "function_call": {"name": "f"}}
    both, one, old = ask(
        client_for, app, {"tools": [TOOL, CUSTOM]}, {"tools": [TOOL], "parallel_tool_calls": False}, legacy
    )
    ChatCompletion.model_validate(both, strict=True)
    choice = both["choices"][0]
    assert choice["message"]["content"] == "Let me look."
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert [call["type"] for call in calls] == ["function", "custom"]
    assert calls[0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert calls[1]["custom"] == {"name": "g", "input": "print(1)"}
    assert len({call["id"] for call in calls}) == 2
    assert len(one["choices"][0]["message"]["tool_calls"]) == 1
    assert old["choices"][0]["message"]["function_call"] == {"name": "f", "arguments": '{"a":1}'}
    assert old["choices"][0]["finish_reason"] == "function_call"
    assert not app.state.context.engine.open


def test_stop_strings_count_in_the_text_alone(make_server, client_for):
    app = make_server("<|channel|>analysis<|message|>one END two<|end|>" + NEXT + FINAL)
    whole, cut = ask(client_for, app, {"stop": "END"}, {"stop": ["lo th", "zzz"]})
    assert whole["choices"][0]["message"]["content"] == "Hello there."
    assert whole["choices"][0]["message"]["reasoning"] == "one END two"
    assert cut["choices"][0]["message"]["content"] == "Hel"
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert not app.state.context.engine.open
    assert len(app.state.context.engine.cancelled) == 1


def test_logprobs_are_those_of_the_text(make_server, client_for):
    app = make_server(THINK + "<|channel|>final<|message|>Snø \U0001f600!<|return|>")
    answer, without = ask(client_for, app, {"logprobs": True, "top_logprobs": 2}, {})
    entries = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "Snø \U0001f600!"
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert without["choices"][0]["logprobs"] is None


def test_several_answers(make_server, client_for):
    (answer,) = ask(client_for, make_server(FINAL), {"n": 3, "stop": ["there"]})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello "}


def test_an_answer_cut_by_its_length(make_server, client_for):
    app = make_server(THINK + FINAL)
    early, late = ask(client_for, app, {"max_tokens": 4}, {"max_completion_tokens": 1 << 40})
    assert early["choices"][0]["finish_reason"] == "length"
    assert early["choices"][0]["message"]["content"] == ""
    assert late["choices"][0]["finish_reason"] == "stop"
    assert params_of(app).max_tokens == 4096 - late["usage"]["prompt_tokens"]


# ---- what goes in ----


def test_all_sampling_parameters_reach_the_engine(make_server, client_for):
    app = make_server()
    body = {
        "temperature": 0.5, "top_p": 0.4, "top_k": 7, "min_p": 0.1, "presence_penalty": 1.5, "frequency_penalty": -1.0,
        "repetition_penalty": 1.1, "seed": 11, "logit_bias": {"5": -100, "6": 3.5}, "n": 2, "max_tokens": 9,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    ask(client_for, app, body)
    params = params_of(app)
    for name in ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "n"):
        assert getattr(params, name) == body[name], name
    assert params.repetition_penalty == 1.1
    assert params.logit_bias == {5: -100, 6: 3.5}
    assert (params.max_tokens, params.logprobs) == (9, 3)
    assert params.stop == ()


def test_roles_parts_effort_and_tools_make_the_prompt(make_server, client_for):
    app = make_server()
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        USER,
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "developer", "content": "Now do."},
        {"role": "user", "content": "Please", "name": "Ann"},
    ]
    ask(client_for, app, {"messages": messages, "tools": [TOOL], "reasoning_effort": "high"})
    prompt = prompt_of(app)
    assert "Reasoning: high" in prompt
    assert "# Instructions\n\nBe kind.\n\nBe brief.\n\n# Tools" in prompt
    assert prompt.endswith(
        "<|start|>user<|message|>Hello<|end|><|start|>assistant<|channel|>final<|message|>No.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nNow do.<|end|>"
        "<|start|>user<|message|>Please<|end|><|start|>assistant"
    )


@pytest.mark.parametrize(
    ("choice", "kind", "allowed"),
    [
        ("auto", ToolChoice.AUTO, None),
        ("none", ToolChoice.NONE, None),
        ("required", ToolChoice.REQUIRED, None),
        ({"type": "function", "function": {"name": "f"}}, ToolChoice.REQUIRED, ("functions.f",)),
        ({"type": "custom", "custom": {"name": "g"}}, ToolChoice.REQUIRED, ("custom.g",)),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "g"}}]},
            },
            ToolChoice.AUTO,
            ("custom.g",),
        ),
    ],
)
def test_tool_choice_becomes_a_constraint(make_server, client_for, choice, kind, allowed):
    app = make_server()
    ask(client_for, app, {"tools": [TOOL, CUSTOM], "tool_choice": choice, "parallel_tool_calls": False})
    constraint = params_of(app).constraint
    assert (constraint.tool_choice, constraint.allowed_tools) == (kind, allowed)
    assert not constraint.parallel_calls


def test_formats_become_constraints_and_declarations(make_server, client_for):
    app = make_server()
    schema = {"type": "object", "properties": {"word": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    ask(client_for, app, {"response_format": form, "tools": [TOOL]})
    assert isinstance(params_of(app).constraint.response_format, JsonSchema)
    assert not params_of(app).constraint.has_preambles
    assert "# Response Formats\n\n## answer" in prompt_of(app)
    ask(client_for, make_server(), {"response_format": {"type": "text"}})
    app = make_server(PREAMBLE + FINAL)
    (answer,) = ask(client_for, app, {"response_format": {"type": "json_object"}})
    assert isinstance(params_of(app).constraint.response_format, JsonObject)
    assert answer["choices"][0]["message"]["content"] == "Hello there."


def test_a_tool_round_goes_back_in_as_it_was_sampled(make_server, client_for):
    """With all of it sent back, without reasoning, under either of its names, and with legacy functions."""
    app = make_server(lambda prompt: FINAL if "Sunny" in prompt else THINK + PREAMBLE + CALL)
    result = {"role": "tool", "content": "Sunny"}

    async def run():
        async with client_for(app) as client:
            body = {"messages": [USER], "tools": [TOOL]}
            message = (await client.post(PATH, json=body)).json()["choices"][0]["message"]
            result["tool_call_id"] = message["tool_calls"][0]["id"]
            forms = [
                message,
                {key: value for key, value in message.items() if key != "reasoning"},
                {key: value for key, value in message.items() if not key.startswith("reasoning")},
                {"role": "assistant", "tool_calls": message["tool_calls"]},
            ]
            for form in forms:
                again = await client.post(PATH, json={"messages": [USER, form, result], "tools": [TOOL]})
                assert again.status_code == 200, again.text
            body = {"messages": [USER], "functions": [TOOL["function"]]}
            old = (await client.post(PATH, json=body)).json()["choices"][0]["message"]
            assert "tool_calls" not in old
            body["messages"] += [old, {"role": "function", "name": "f", "content": "Sunny"}]
            await client.post(PATH, json=body)

    asyncio.run(run())
    engine = app.state.context.engine
    prompts = [request.prompt_ids for request in engine.requests]
    said = tuple(engine.tokenizer.encode_with_specials(THINK + PREAMBLE + CALL))
    for prompt in (*prompts[1:5], prompts[-1]):
        assert prompt[: len(prompts[0]) + len(said)] == prompts[0] + said
    assert len(set(prompts[1:5])) == 1


def test_what_a_client_changed_is_taken_as_changed(make_server, client_for):
    app = make_server(lambda prompt: FINAL if "Sunny" in prompt else THINK + CALL)

    async def run():
        async with client_for(app) as client:
            body = {"messages": [USER], "tools": [TOOL]}
            message = (await client.post(PATH, json=body)).json()["choices"][0]["message"]
            call_id = message["tool_calls"][0]["id"]
            result = {"role": "tool", "content": "Sunny", "tool_call_id": call_id}
            message["reasoning"] = "Something else."
            message["tool_calls"][0]["function"]["arguments"] = '{"a":2}'
            await client.post(PATH, json={"messages": [USER, message, result], "tools": [TOOL]})

    asyncio.run(run())
    assert "analysis<|message|>Something else.<|end|>" in prompt_of(app)
    assert 'to=functions.f<|channel|>commentary json<|message|>{"a":2}<|call|>' in prompt_of(app)
    assert "They say hello." not in prompt_of(app)


ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": None}, "invalid_type", "messages"),
    ({"messages": [{}]}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": []}]}, "invalid_value", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "invalid_type", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "unsupported_value",
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "assistant"}]}, "missing_required_parameter", "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "missing_required_parameter", "messages[0].tool_call_id"),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
        "invalid_value",
        "messages[0].tool_call_id",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]}]},
        "missing_required_parameter",
        "messages[0].tool_calls[0].function",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "odd"}]}]},
        "invalid_value",
        "messages[0].tool_calls[0].type",
    ),
    ({"temperature": 2.5}, "invalid_value", "temperature"),
    ({"temperature": "1"}, "invalid_type", "temperature"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": 1.5}, "invalid_type", "n"),
    ({"stop": ["x"] * 17}, "invalid_value", "stop"),
    ({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
    ({"logit_bias": {"999999": 1}}, "invalid_value", "logit_bias"),
    ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "invalid_value", "top_logprobs"),
    ({"reasoning_effort": "minimal"}, "invalid_value", "reasoning_effort"),
    ({"response_format": {"type": "xml"}}, "unsupported_value", "response_format.type"),
    (
        {"response_format": {"type": "json_schema"}},
        "missing_required_parameter",
        "response_format.json_schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "missing_required_parameter",
        "response_format.json_schema.schema",
    ),
    ({"modalities": ["text", "audio"]}, "unsupported_value", "modalities"),
    ({"web_search_options": {}}, "unsupported_value", "web_search_options"),
    ({"tools": [{"type": "retrieval"}]}, "unsupported_value", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools.function"),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "invalid_value",
        "tools[0].function.name",
    ),
    ({"tools": [TOOL, TOOL]}, "invalid_value", "tools"),
    ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "invalid_value", "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "h"}}},
        "invalid_value",
        "tool_choice",
    ),
    ({"tools": [TOOL], "functions": [{"name": "f"}]}, "mutually_exclusive_parameters", "functions"),
    ({"function_call": "auto"}, "invalid_value", "function_call"),
    ({"messages": [{"role": "user", "content": "x " * 9000}]}, "context_length_exceeded", "input"),
]


def test_errors_name_code_and_param(make_server, client_for):
    app = make_server()

    async def run():
        async with client_for(app) as client:
            for body, code, param in ERRORS:
                answer = await client.post(PATH, json={"messages": [USER], **body})
                error = answer.json()["error"]
                assert (answer.status_code, error["code"], error["param"]) == (400, code, param), (body, error)
            missing = await client.post(PATH, json={"model": "gpt-9", "messages": [USER]})
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")

    asyncio.run(run())
    assert not app.state.context.engine.requests


def test_a_failing_engine_is_told_in_the_stream(make_server, client_for):
    app = make_server(THINK + FINAL)

    async def run():
        async with client_for(app) as client:
            engine = app.state.context.engine
            engine.gate = asyncio.Event()
            asking = asyncio.create_task(client.post(PATH, json={"messages": [USER], "stream": True}))
            while not engine.open:
                await asyncio.sleep(0)
            engine.die()
            text = (await asking).text
            assert '"code": "engine_unavailable"' in text
            assert text.endswith("data: [DONE]\n\n")
            again = await client.post(PATH, json={"messages": [USER]})
            assert (again.status_code, again.json()["error"]["code"]) == (503, "engine_unavailable")

    asyncio.run(run())


# ---- streaming changes nothing ----


def read_chunks(text: str) -> list[dict[str, Any]]:
    blocks = [block.removeprefix("data: ") for block in text.strip().split("\n\n")]
    assert blocks[-1] == "[DONE]"
    return [json.loads(block) for block in blocks[:-1]]


def join(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion as a client puts it together, as OpenAI's own does: texts are added, lists go by their index."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"] == chunks[0]["id"]
        usage = usage or chunk.get("usage")
        for part in chunk["choices"]:
            new = {"index": part["index"], "message": {"annotations": []}, "logprobs": None, "finish_reason": None}
            choice = choices.setdefault(part["index"], new)
            assert choice["finish_reason"] is None, "nothing comes behind the finish reason"
            add(choice["message"], part["delta"])
            choice["finish_reason"] = part["finish_reason"]
            if part["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                choice["logprobs"]["content"] += part["logprobs"]["content"]
    first = {key: chunks[0][key] for key in ("id", "created", "model", "service_tier", "system_fingerprint")}
    ordered = [choices[i] for i in sorted(choices)]
    for choice in ordered:
        for call in choice["message"].get("tool_calls", []):
            del call["index"]
    return {**first, "object": "chat.completion", "choices": ordered, "usage": usage}


def add(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls":
            calls = whole.setdefault("tool_calls", [])
            for call in value:
                if call["index"] == len(calls):
                    assert {"id", "type", "index"} < set(call)
                    assert call[call["type"]]["name"]
                    calls.append(call)
                else:
                    add(calls[call["index"]], {k: v for k, v in call.items() if k not in ("index", "type")})
        elif isinstance(value, dict) and isinstance(whole.get(key), dict):
            add(whole[key], value)
        elif isinstance(value, str) and isinstance(whole.get(key), str):
            whole[key] += value
        else:
            whole[key] = value


def without_names(completion: dict[str, Any]) -> dict[str, Any]:
    data = json.loads(json.dumps({**completion, "id": "", "created": 0}))
    for choice in data["choices"]:
        for call in choice["message"].get("tool_calls", []):
            call["id"] = ""
    return data


def random_body(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": words(rng)}]}
    tools = rng.choice([{}, {"tools": [TOOL, CUSTOM]}, {"functions": [TOOL["function"]]}])
    body |= tools
    if rng.random() < 0.3:
        body["max_tokens"] = rng.randint(1, 30)
    if rng.random() < 0.3:
        body |= {"logprobs": True, "top_logprobs": rng.randint(0, 3)}
    if rng.random() < 0.3:
        body["stop"] = rng.sample(["yes", "es n", "日", "}", "perhaps no", "aps"], 2)
    if rng.random() < 0.2:
        body["n"] = 2
    if "tools" in body:
        body["parallel_tool_calls"] = rng.random() < 0.8
    return body


def test_streamed_and_whole_completions_agree(make_server, client_for):
    rng = random.Random(7)
    script = {"text": ""}
    app = make_server(lambda _: script["text"])

    async def run() -> None:
        async with client_for(app) as client:
            for _ in range(200):
                script["text"] = random_script(rng)
                app.state.context.engine.tokens_per_event = rng.randint(1, 4)
                body = random_body(rng)
                once = (await client.post(PATH, json=body)).json()
                ChatCompletion.model_validate(once)
                streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
                chunks = read_chunks((await client.post(PATH, json=streaming)).text)
                for chunk in chunks:
                    if '"custom"' not in json.dumps(chunk):  # its types know no custom tools in a stream
                        ChatCompletionChunk.model_validate(chunk)
                assert without_names(join(chunks)) == without_names(once), (script["text"], body)
                assert not app.state.context.engine.open

    asyncio.run(run())


def test_usage_comes_only_if_asked_for(make_server, client_for):
    async def run():
        async with client_for(make_server()) as client:
            plain = read_chunks((await client.post(PATH, json={"messages": [USER], "stream": True})).text)
            assert all("usage" not in chunk for chunk in plain)
            assert all(chunk["choices"] for chunk in plain)
            body = {"messages": [USER], "stream": True, "stream_options": {"include_usage": True}}
            chunks = read_chunks((await client.post(PATH, json=body)).text)
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["total_tokens"] > 0
            assert all(chunk["usage"] is None for chunk in chunks[:-1])

    asyncio.run(run())
