"""Calls of MCP servers that need the client's leave: the request, the answer, the call, in every way clients go on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.unit.server.hosted import Stand, kinds, post, serve

from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.server.makers import HostedTool, read_mcp

THINK = "<|channel|>analysis<|message|>I must look it up.<|end|><|start|>assistant"
READ = '<|channel|>commentary to=notes.read <|constrain|>json<|message|>{"id":3}<|call|>'
FREE = "<|channel|>commentary to=notes.list <|constrain|>json<|message|>{}<|call|>"
MILK = "<|channel|>final<|message|>Buy milk.<|return|>"
NO = "<|channel|>final<|message|>As you wish.<|return|>"
TOOL = {"type": "mcp", "server_label": "notes", "server_url": "https://notes.example", "authorization": "hunter2"}
SPACE = ToolNamespace(
    "notes", tools=tuple(FunctionTool(name, description="", parameters={"type": "object"}) for name in ("read", "list"))
)


def script(prompt: str) -> str:
    if "did not allow" in prompt:
        return NO
    return MILK if "milk is out" in prompt else THINK + READ


def notes() -> Stand:
    return Stand(SPACE, "milk is out", is_builtin=False, guarded=["notes.read"])


def answer(request: dict[str, Any], *, approve: bool = True, **more: Any) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": approve, **more}


def prompts(app: Any) -> list[str]:
    context = app.state.context
    return [context.model.tokenizer.decode(request.prompt_ids) for request in context.engine.requests]


FIRST = {"input": "What shall I buy?", "tools": [TOOL]}


def by_id(answers: list[Any]) -> dict[str, Any]:
    request = answers[0]["output"][-1]
    return {"previous_response_id": answers[0]["id"], "input": [answer(request)], "tools": [TOOL]}


def by_items(answers: list[Any]) -> dict[str, Any]:
    said = [{"role": "user", "content": "What shall I buy?"}, *answers[0]["output"]]
    return {"input": [*said, answer(answers[0]["output"][-1])], "tools": [TOOL], "store": False}


def without_reasoning(answers: list[Any]) -> dict[str, Any]:
    body = by_items(answers)
    return body | {"input": [item for item in body["input"] if item.get("type") != "reasoning"]}


@pytest.mark.parametrize("go_on", [by_id, by_items, without_reasoning])
def test_leave_is_asked_and_the_call_is_made(make_server, client_for, go_on):
    tool = notes()
    app = serve(make_server, script, mcp=tool)
    first, second = post(client_for, app, FIRST | {"store": go_on is by_id}, go_on)
    assert [item["type"] for item in first["output"]] == ["mcp_list_tools", "reasoning", "mcp_approval_request"]
    request = first["output"][-1]
    assert (request["server_label"], request["name"], request["arguments"]) == ("notes", "read", '{"id":3}')
    assert first["status"] == "completed"
    assert tool.num_calls == 1
    call, message = second["output"]
    assert (call["type"], call["status"], call["output"]) == ("mcp_call", "completed", "milk is out")
    assert (call["approval_request_id"], call["arguments"]) == (request["id"], '{"id":3}')
    assert message["content"][0]["text"] == "Buy milk."
    seen = prompts(app)
    assert seen[1] == seen[0] + THINK + READ + "<|start|>notes.read to=assistant<|channel|>commentary<|message|>" + (
        "milk is out<|end|><|start|>assistant"
    )


@pytest.mark.parametrize("go_on", [by_id, by_items])
def test_the_conversation_goes_on_behind_an_answered_request(make_server, client_for, go_on):
    """Clients that send all items again send old answers too; the call is not made twice, and the prompt only grows."""
    tool = notes()
    app = serve(make_server, script, mcp=tool)

    def third(answers):
        question = {"role": "user", "content": "Thanks. And?"}
        if go_on is by_id:
            return {"previous_response_id": answers[1]["id"], "input": [question], "tools": [TOOL]}
        return {"input": [*by_items(answers)["input"], *answers[1]["output"], question], "tools": [TOOL]}

    post(client_for, app, FIRST, go_on, third)
    assert tool.num_calls == 1
    first, second, last = prompts(app)
    assert second.startswith(first)
    assert "milk is out<|end|><|start|>assistant<|channel|>final<|message|>Buy milk." in last


def test_a_refused_call_is_not_made_and_the_model_is_told(make_server, client_for):
    tool = notes()
    app = serve(make_server, script, mcp=tool)

    def refuse(answers):
        return by_id(answers) | {"input": [answer(answers[0]["output"][-1], approve=False, reason="Too private.")]}

    _, second = post(client_for, app, FIRST, refuse)
    assert tool.num_calls == 0
    assert [item["type"] for item in second["output"]] == ["message"]
    assert "The user did not allow this call. The reason: Too private." in prompts(app)[1]


def test_the_events(make_server, client_for):
    app = serve(make_server, script, mcp=notes())
    first, second = post(
        client_for, app, FIRST | {"stream": True}, lambda a: by_id([a[0][-1]["response"]]) | {"stream": True}
    )
    asked = [e for e in first if e.get("item", {}).get("type") == "mcp_approval_request"]
    assert [e["type"] for e in asked] == ["response.output_item.added", "response.output_item.done"]
    assert [e["item"]["arguments"] for e in asked] == ['{"id":3}'] * 2
    assert not [kind for kind in kinds(first) if "mcp_call" in kind]
    assert kinds(second)[2:8] == [
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
    ], "the tools are listed once in a conversation"


def test_free_and_guarded_calls_of_one_turn(make_server, client_for):
    tool = notes()
    both = READ.replace("<|call|>", "<|end|>") + "<|start|>assistant" + FREE
    app = serve(make_server, lambda p: MILK if p.count("milk is out") == 2 else both, mcp=tool)
    first, second = post(
        client_for,
        app,
        FIRST,
        lambda a: (
            by_id(a) | {"input": [answer(next(i for i in a[0]["output"] if i["type"] == "mcp_approval_request"))]}
        ),
    )
    assert [item["type"] for item in first["output"]] == ["mcp_list_tools", "mcp_approval_request", "mcp_call"]
    assert [item["type"] for item in second["output"]] == ["mcp_call", "message"]
    assert tool.num_calls == 2


def test_a_request_that_is_cut_off_is_none(make_server, client_for):
    tool = notes()
    app = serve(make_server, READ, mcp=tool)
    (once,) = post(client_for, app, FIRST | {"max_output_tokens": 16})
    assert once["status"] == "incomplete"
    assert [(item["type"], item.get("status")) for item in once["output"][1:]] == [("mcp_call", "incomplete")]


def test_answers_that_are_not_taken(make_server, client_for):
    app = serve(make_server, script, mcp=notes())

    async def run():
        async with client_for(app) as client:
            first = (await client.post("/v1/responses", json=FIRST)).json()
            whole = by_id([first])
            request = first["output"][-1]
            twice = [answer(request), answer(request)]
            cases = [
                (whole | {"previous_response_id": None}, "input[0].approval_request_id"),
                (whole | {"input": twice}, "input[1].approval_request_id"),
                (whole | {"tools": []}, "input[0]"),
                (whole | {"input": [{"type": "mcp_approval_response", "approve": True}]}, "approval_request_id"),
                ({"input": [{**request, "name": "a b"}], "tools": [TOOL]}, "input[0].name"),
            ]
            for body, param in cases:
                refused = await client.post("/v1/responses", json=body)
                assert refused.status_code == 400, refused.text
                assert refused.json()["error"]["param"].endswith(param), refused.text
            conversation = (await client.post("/v1/conversations", json={"items": [request]})).json()
            path = f"/v1/conversations/{conversation['id']}/items"
            refused = await client.post(path, json={"items": [answer(request)]})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items[0]")

    asyncio.run(run())


def test_a_call_with_leave_is_made_even_where_the_model_may_call_nothing(make_server, client_for):
    tool = notes()
    app = serve(make_server, script, mcp=tool)
    _, second = post(client_for, app, FIRST, lambda a: by_id(a) | {"tool_choice": "none"})
    assert tool.num_calls == 1
    assert second["output"][-1]["content"][0]["text"] == "Buy milk."
    assert app.state.context.engine.requests[1].params.constraint.tool_choice.value == "none"


def test_what_opens_a_server_is_neither_told_nor_kept(make_server, client_for, tmp_path):
    tool = TOOL | {"headers": {"X-Key": "swordfish"}}
    app = serve(make_server, script, mcp=notes(), database_url=f"sqlite:///{tmp_path / 'kept.db'}")
    made, events = post(client_for, app, FIRST | {"tools": [tool]}, FIRST | {"tools": [tool], "stream": True})
    public = {key: TOOL[key] for key in ("type", "server_label", "server_url")}
    assert made["tools"] == events[-1]["response"]["tools"] == [public]
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert made["id"].encode() in kept
    for secret in ("hunter2", "swordfish"):
        assert secret not in json.dumps([made, events])
        assert secret.encode() not in kept


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"read", "write"}),
        ({"require_approval": "always"}, {"read", "write"}),
        ({"require_approval": "never"}, set()),
        ({"require_approval": {"never": {"tool_names": ["read"]}}}, {"write"}),
        ({"require_approval": {"never": {"read_only": True}}}, {"write"}),
        ({"require_approval": {"always": {"tool_names": ["read"]}, "never": {"read_only": False}}}, {"read"}),
    ],
)
def test_what_a_request_says_of_leave(given, asked):
    server = read_mcp(HostedTool("mcp", TOOL | given, "tools[0]"))
    assert {n for n in ("read", "write") if server.needs_approval(n, is_read_only=n == "read")} == asked
    assert (server.headers, server.is_private_allowed) == ({"Authorization": "Bearer hunter2"}, False)


@pytest.mark.parametrize(
    ("allowed", "offered"),
    [
        (["read"], {"read"}),
        ({"read_only": True}, {"read"}),
        ({"tool_names": ["write"]}, {"write"}),
        (None, {"read", "write"}),
    ],
)
def test_which_tools_a_request_allows(allowed, offered):
    server = read_mcp(HostedTool("mcp", TOOL | {"allowed_tools": allowed}, "tools[0]"))
    assert {n for n in ("read", "write") if server.offers(n, is_read_only=n == "read")} == offered


def test_in_a_conversation_and_in_the_background(make_server, client_for):
    tool = notes()
    app = serve(make_server, script, mcp=tool)

    async def run():
        async with client_for(app) as client:
            conversation = (await client.post("/v1/conversations", json={})).json()["id"]

            async def ask(given: Any) -> dict[str, Any]:
                body = {"conversation": conversation, "input": given, "tools": [TOOL], "background": True}
                made = (await client.post("/v1/responses", json=body)).json()
                while made["status"] in ("queued", "in_progress"):
                    await asyncio.sleep(0.01)
                    made = (await client.get(f"/v1/responses/{made['id']}")).json()
                return made

            first = await ask("What shall I buy?")
            second = await ask([answer(first["output"][-1])])
            assert second["output"][-1]["content"][0]["text"] == "Buy milk."
            third = await ask("Thanks.")
            assert third["status"] == "completed"
            page = (await client.get(f"/v1/conversations/{conversation}/items?order=asc")).json()["data"]
            kinds = [item["type"] for item in page]
            assert kinds[3:6] == ["mcp_approval_request", "mcp_approval_response", "mcp_call"]
            assert kinds.count("mcp_list_tools") == 1

    asyncio.run(run())
    assert tool.num_calls == 1
