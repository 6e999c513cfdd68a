"""/v1/responses: what each parameter does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.unit.server.hosted import events_of

THINK = "<|channel|>analysis<|message|>They say hello.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Hello there, friend.<|return|>"
PREAMBLE = "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}


def ask(make_server, client_for, script=FINAL, bodies=({"input": "Hi"},), **options) -> Any:
    """Posts bodies one after another; the answers, and the app."""
    app = make_server(script, **options)

    async def run() -> list[dict[str, Any]]:
        answers = []
        async with client_for(app) as client:
            for body in bodies:
                filled = body(answers) if callable(body) else body
                answer = await client.post("/v1/responses", json=filled)
                assert answer.status_code == 200, answer.text
                answers.append(answer.json() if not filled.get("stream") else events_of(answer.text))
        return answers

    return asyncio.run(run()), app.state.context


@pytest.mark.parametrize(
    ("policy", "has_content", "has_summary"), [("raw", True, False), ("summary", False, True), ("hidden", False, False)]
)
def test_reasoning_is_shown_by_policy(make_server, client_for, policy, has_content, has_summary):
    def script(prompt: str) -> str:
        if "notes below" in prompt:
            return "<|channel|>final<|message|>A greeting.<|return|>"
        return THINK + FINAL

    bodies = [{"input": "Hi"}, {"input": "Hi", "stream": True}]
    (once, events), _ = ask(make_server, client_for, script, bodies, reasoning=policy)
    item = once["output"][0]
    assert item["type"] == "reasoning"
    assert ("content" in item) is has_content
    assert item["summary"] == ([{"type": "summary_text", "text": "A greeting."}] if has_summary else [])
    kinds = {event["type"] for event in events}
    assert ("response.reasoning_text.delta" in kinds) is has_content
    assert ("response.reasoning_summary_text.delta" in kinds) is has_summary
    assert ("They say hello" in json.dumps(events)) is has_content


def test_hidden_reasoning_is_put_back_all_the_same(make_server, client_for):
    def follow(answers):
        call = answers[0]["output"][-1]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
        return {"input": [{"role": "user", "content": "Hi"}, call, output], "tools": [TOOL], "store": False}

    first = {"input": "Hi", "tools": [TOOL], "store": False}
    _, context = ask(make_server, client_for, THINK + CALL, [first, follow], reasoning="hidden")
    prompts = [context.model.tokenizer.decode(r.prompt_ids) for r in context.engine.requests]
    assert "They say hello." in prompts[1]
    assert prompts[1].startswith(prompts[0])


def test_encrypted_content_carries_reasoning_without_storage(make_server, client_for, tmp_path):
    include = ["reasoning.encrypted_content"]

    def follow(answers):
        context_free = [{k: v for k, v in item.items() if k not in ("id", "content")} for item in answers[0]["output"]]
        context_free[-1]["call_id"] = "call_other"
        output = {"type": "function_call_output", "call_id": "call_other", "output": "7"}
        return {"input": [{"role": "user", "content": "Hi"}, *context_free, output], "tools": [TOOL], "store": False}

    first = {"input": "Hi", "tools": [TOOL], "store": False, "include": include}
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    (one, _), context = ask(make_server, client_for, THINK + CALL, [first, follow], database_url=url)
    assert one["output"][0]["encrypted_content"]
    assert "hello" not in one["output"][0]["encrypted_content"]
    assert "They say hello." in context.model.tokenizer.decode(context.engine.requests[1].prompt_ids)
    assert b"hello" not in (tmp_path / "kept.db").read_bytes().lower()


def test_another_keys_encrypted_content_is_refused(make_server, client_for):
    keys = ("first-key-0123456789", "other-key-0123456789")
    app = make_server(THINK + FINAL, api_keys=keys)

    async def run():
        async with client_for(app) as client:
            heads = [{"authorization": f"Bearer {key}"} for key in keys]
            body = {"input": "Hi", "include": ["reasoning.encrypted_content"]}
            made = (await client.post("/v1/responses", json=body, headers=heads[0])).json()
            sealed = {"type": "reasoning", "summary": [], "encrypted_content": made["output"][0]["encrypted_content"]}
            items = [{"role": "user", "content": "Hi"}, sealed]
            assert (await client.post("/v1/responses", json={"input": items}, headers=heads[0])).status_code == 200
            refused = await client.post("/v1/responses", json={"input": items}, headers=heads[1])
            assert refused.json()["error"]["param"] == "input[1].encrypted_content"
            assert (await client.get(f"/v1/responses/{made['id']}", headers=heads[1])).status_code == 404
            assert (await client.get(f"/v1/responses/{made['id']}", headers=heads[0])).status_code == 200
            after = {"input": "x", "previous_response_id": made["id"]}
            assert (await client.post("/v1/responses", json=after, headers=heads[1])).status_code == 400

    asyncio.run(run())


def test_logprobs_of_the_text_alone(make_server, client_for):
    bodies = [{"input": "Hi", "top_logprobs": 2, "stream": stream} for stream in (False, True)]
    bodies.append({"input": "Hi", "include": ["message.output_text.logprobs"]})
    (once, events, none_on_top), context = ask(
        make_server, client_for, THINK + FINAL, bodies, engine={"tokens_per_event": 3}
    )
    part = once["output"][1]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    assert bytes(part["logprobs"][0]["bytes"]).decode() == part["logprobs"][0]["token"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [e["logprobs"][0]["token"] for e in deltas] == [entry["token"] for entry in part["logprobs"]]
    assert none_on_top["output"][1]["content"][0]["logprobs"][0]["top_logprobs"] == []
    assert context.engine.requests[2].params.logprobs == 0


def test_max_output_tokens_cuts_and_is_clamped(make_server, client_for):
    bodies = [{"input": "Hi", "max_output_tokens": 5}, {"input": "Hi", "max_output_tokens": 1 << 60}]
    (cut, whole), context = ask(make_server, client_for, FINAL, bodies)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["status"] == "incomplete"
    assert cut["usage"]["output_tokens"] == 5
    assert whole["status"] == "completed"
    room = context.model.context_length - len(context.engine.requests[1].prompt_ids)
    assert context.engine.requests[1].params.max_tokens == room


def test_truncation_drops_the_oldest_turns(make_server, client_for):
    items = [{"role": "developer", "content": "Be kind."}]
    for i in range(40):
        items += [
            {"role": "user", "content": f"Question {i} " + "word " * 60},
            {"role": "assistant", "content": "Yes."},
        ]
    items.append({"role": "user", "content": "The last"})
    body = {"input": items, "truncation": "auto"}
    (answer,), context = ask(make_server, client_for, FINAL, [body], engine={"context_length": 1500})
    text = context.model.tokenizer.decode(context.engine.requests[0].prompt_ids)
    assert answer["truncation"] == "auto"
    assert "Be kind." in text
    assert "The last" in text
    assert "Question 39" in text
    assert "Question 0 " not in text


def test_custom_tools_and_every_tool_choice(make_server, client_for):
    call = "<|channel|>commentary to=custom.patch<|message|>*** Begin\nx<|call|>"
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
    patch = {"type": "custom", "name": "patch", "description": "Edits", "format": grammar}
    choices: list[tuple[Any, str, Any]] = [
        ("auto", "auto", None),
        ("none", "none", None),
        ("required", "required", None),
        ({"type": "function", "name": "f"}, "required", ("functions.f",)),
        ({"type": "custom", "name": "patch"}, "required", ("custom.patch",)),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "patch"}]},
            "auto",
            ("custom.patch",),
        ),
    ]
    bodies = [{"input": "Hi", "tools": [TOOL, patch], "tool_choice": choice} for choice, _, _ in choices]
    bodies.append({"input": "Hi", "tools": [TOOL, patch], "stream": True})
    answers, context = ask(make_server, client_for, call, bodies)
    for (choice, expected, allowed), answer, request in zip(
        choices, answers[:-1], context.engine.requests, strict=False
    ):
        assert answer["tool_choice"] == choice
        constraint = request.params.constraint
        assert (constraint.tool_choice.value, constraint.allowed_tools) == (expected, allowed)
        item = answer["output"][0]
        assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", "*** Begin\nx")
    kinds = [event["type"] for event in answers[-1]]
    assert "response.custom_tool_call_input.delta" in kinds
    assert "start: /.+/" in context.model.tokenizer.decode(context.engine.requests[0].prompt_ids)


def test_only_one_call_without_parallel_calls(make_server, client_for):
    two = CALL.replace("<|call|>", "<|end|><|start|>assistant") + CALL
    bodies = [{"input": "Hi", "tools": [TOOL], "parallel_tool_calls": parallel} for parallel in (True, False)]
    (both, one), _ = ask(make_server, client_for, two, bodies)
    assert [item["type"] for item in both["output"]] == ["function_call", "function_call"]
    assert [item["type"] for item in one["output"]] == ["function_call"]
    assert one["status"] == "completed"


def test_preambles_are_commentary_and_go_back_as_such(make_server, client_for):
    def follow(answers):
        items = [{"role": "user", "content": "Hi"}, *answers[0]["output"]]
        output = {"type": "function_call_output", "call_id": answers[0]["output"][-1]["call_id"], "output": "7"}
        return {"input": [*items, output], "tools": [TOOL]}

    (first, _), context = ask(
        make_server, client_for, THINK + PREAMBLE + CALL, [{"input": "Hi", "tools": [TOOL]}, follow]
    )
    assert [item.get("phase") for item in first["output"]] == [None, "commentary", None]
    prompts = [r.prompt_ids for r in context.engine.requests]
    sampled = tuple(context.model.tokenizer.encode_with_specials(THINK + PREAMBLE + CALL))
    assert prompts[1][: len(prompts[0]) + len(sampled)] == prompts[0] + sampled


def test_instructions_do_not_carry_over_and_the_date_does(make_server, client_for):
    def follow(answers):
        return {"input": "More", "previous_response_id": answers[-1]["id"]}

    app_days = iter(["2026-01-02", "2026-01-03", "2026-01-04"])
    app = make_server(FINAL)
    app.state.context.today = lambda: next(app_days)

    async def run():
        async with client_for(app) as client:
            first = (await client.post("/v1/responses", json={"input": "Hi", "instructions": "Rhyme."})).json()
            second = (await client.post("/v1/responses", json=follow([first]))).json()
            await client.post("/v1/responses", json=follow([second]))

    asyncio.run(run())
    texts = [app.state.context.model.tokenizer.decode(r.prompt_ids) for r in app.state.context.engine.requests]
    assert "Rhyme." in texts[0]
    assert "Rhyme." not in texts[2]
    assert all("2026-01-02" in text for text in texts)
    assert texts[2].count("Hello there, friend.") == 2


def test_item_references_and_ids_mean_what_was_said(make_server, client_for):
    def follow(answers):
        references = [{"type": "item_reference", "id": item["id"]} for item in answers[0]["output"]]
        output = {"type": "function_call_output", "call_id": answers[0]["output"][-1]["call_id"], "output": "7"}
        return {"input": [{"role": "user", "content": "Hi"}, *references, output], "tools": [TOOL]}

    _, context = ask(make_server, client_for, THINK + CALL, [{"input": "Hi", "tools": [TOOL]}, follow])
    prompts = [r.prompt_ids for r in context.engine.requests]
    sampled = tuple(context.model.tokenizer.encode_with_specials(THINK + CALL))
    assert prompts[1][: len(prompts[0]) + len(sampled)] == prompts[0] + sampled


def test_a_dying_engine_ends_the_stream_as_failed(make_server, client_for):
    app = make_server(FINAL, engine={"seconds_per_event": 0.01})

    async def run():
        async with client_for(app) as client:
            asyncio.get_running_loop().call_later(0.05, app.state.context.engine.die)
            events = events_of((await client.post("/v1/responses", json={"input": "Hi", "stream": True})).text)
            assert events[-1]["type"] == "response.failed"
            assert events[-1]["response"]["error"]["code"] == "server_error"
            assert sum(e["type"] in ("response.completed", "response.failed") for e in events) == 1
            after = await client.post("/v1/responses", json={"input": "Hi"})
            assert (after.status_code, after.json()["error"]["code"]) == (503, "engine_unavailable")

    asyncio.run(run())


def test_a_full_queue_is_503_with_retry_after(make_server, client_for):
    app = make_server(FINAL, engine={"max_open": 0})

    async def run():
        async with client_for(app) as client:
            answer = await client.post("/v1/responses", json={"input": "Hi", "stream": True})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
            assert answer.headers["retry-after"] == "1"

    asyncio.run(run())


def test_a_failing_database_fails_the_response_and_not_the_server(make_server, client_for, monkeypatch):
    from ossia.core.errors import StorageError

    app = make_server(FINAL)

    def fail(*_: object, **__: object) -> bool:
        raise StorageError("the database failed")

    async def run():
        async with client_for(app) as client:
            monkeypatch.setattr(app.state.context.responses.store, "close", fail)
            answer = (await client.post("/v1/responses", json={"input": "Hi"})).json()
            assert answer["status"] == "failed"
            assert answer["output"][0]["content"][0]["text"] == "Hello there, friend."
            kept = (await client.post("/v1/responses", json={"input": "Hi", "store": False})).json()
            assert kept["status"] == "completed"

    asyncio.run(run())


def test_input_tokens_counts_the_prompt(make_server, client_for):
    app = make_server(FINAL)

    async def run():
        async with client_for(app) as client:
            body = {"input": "Hi", "tools": [TOOL], "instructions": "Be brief."}
            count = (await client.post("/v1/responses/input_tokens", json=body)).json()
            answer = (await client.post("/v1/responses", json=body)).json()
            assert count == {"object": "response.input_tokens", "input_tokens": answer["usage"]["input_tokens"]}

    asyncio.run(run())


def test_functions_of_a_namespace(make_server, client_for):
    """As Codex declares its sub-agents: a namespace of its own to the model, a field of its own to the client."""
    space = {
        "type": "namespace",
        "name": "crm",
        "description": "About customers.",
        "tools": [{"type": "function", "name": "find", "strict": False, "parameters": {"type": "object"}}],
    }
    other = {"type": "function", "name": "find", "parameters": {"type": "object"}}
    call = '<|channel|>commentary to=crm.find <|constrain|>json<|message|>{"a":1}<|call|>'
    final = "<|channel|>final<|message|>Done.<|return|>"
    app = make_server(lambda prompt: final if "found" in prompt else call)

    async def run():
        async with client_for(app) as client:
            body = {"input": "x", "tools": [space, other]}
            item = (await client.post("/v1/responses", json=body)).json()["output"][0]
            assert (item["type"], item["namespace"], item["name"]) == ("function_call", "crm", "find")
            result = {"type": "function_call_output", "call_id": item["call_id"], "output": "found"}
            for given in (item, {**item, "call_id": "call_x", "id": "fc_x"}):
                result["call_id"] = given["call_id"]
                items = [{"role": "user", "content": "x"}, given, result]
                answer = await client.post("/v1/responses", json={**body, "input": items})
                assert answer.json()["status"] == "completed", answer.text
                prompt = (await client.post("/v1/responses/render", json={**body, "input": items})).json()["text"]
                assert "## crm\n\n// About customers.\nnamespace crm {\n\ntype find = " in prompt
                assert "<|start|>crm.find to=assistant<|channel|>commentary<|message|>found<|end|>" in prompt
            for name in ("functions", "browser", "a b"):
                refused = await client.post("/v1/responses", json={"input": "x", "tools": [{**space, "name": name}]})
                assert refused.json()["error"]["param"] == "tools[0].name"
            custom = {**space, "tools": [{"type": "custom", "name": "g"}]}
            refused = await client.post("/v1/responses", json={"input": "x", "tools": [custom]})
            assert refused.json()["error"]["param"] == "tools[0].tools[0].type"

    asyncio.run(run())
    constraint = app.state.context.engine.requests[0].params.constraint
    assert [tool.recipient for tool in constraint.tools] == ["crm.find", "functions.find"]


def test_what_a_request_says_is_told_again(make_server, client_for):
    """Also what has no effect here: clients compare what they sent."""
    said = {
        "metadata": {"a": "b"},
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_logprobs": 1,
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "truncation": "auto",
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "p",
        "store": False,
        "tool_choice": "none",
        "tools": [TOOL],
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "reasoning": {"effort": "high", "summary": None},
    }
    passed_over = {
        "service_tier": "flex",
        "stream_options": {"include_obfuscation": True},
        "a_parameter_of_tomorrow": 1,
    }
    bodies = [{"input": "Hi", **said, **passed_over, "stream": stream} for stream in (False, True)]
    (once, events), context = ask(make_server, client_for, FINAL, bodies)
    assert {key: once[key] for key in said} == said
    assert {key: events[0]["response"][key] for key in said} == said
    assert once["service_tier"] == "default"
    params = context.engine.requests[0].params
    assert (params.temperature, params.top_p, params.max_tokens, params.logprobs) == (0.5, 0.9, 50, 1)
