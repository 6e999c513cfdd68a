"""Tools that the server runs itself: the browser, python, and MCP servers, each played by a stand-in."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.unit.server.hosted import Stand, check_events, events_of, kinds, post, serve

from ossia.core.errors import InvalidInputError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.content import FunctionTool, ToolNamespace

SEARCH = '<|channel|>analysis to=browser.search<|message|>{"query":"tides"}<|call|>'
CITED = "<|channel|>final<|message|>The moon 【0†L1-L2】 does.<|return|>"
CODE = "<|channel|>analysis to=python code<|message|>print(6*7)<|call|>"
PLAIN = "<|channel|>final<|message|>It is 42.<|return|>"
REMOTE = '<|channel|>commentary to=notes.read <|constrain|>json<|message|>{"id":3}<|call|>'


def test_web_search_with_citations(make_server, client_for):
    browser = Stand(BROWSER, "[0] Tides ...")
    app = serve(make_server, lambda prompt: CITED if "[0] Tides" in prompt else SEARCH, web_search=browser)
    body = {"input": "Why tides?", "tools": [{"type": "web_search"}], "include": ["web_search_call.action.sources"]}
    once, events = post(client_for, app, body, {**body, "stream": True})
    call, answer = once["output"]
    assert call["action"] == {
        "type": "search",
        "query": "tides",
        "queries": ["tides"],
        "sources": [{"type": "url", "url": "https://moon.example/tides"}],
    }
    assert call["status"] == "completed"
    (annotation,) = answer["content"][0]["annotations"]
    text = answer["content"][0]["text"]
    assert text[annotation["start_index"] : annotation["end_index"]] == "【0†L1-L2】"
    assert (annotation["type"], annotation["url"]) == ("url_citation", "https://moon.example/tides")
    for kind in ("in_progress", "searching", "completed"):
        assert f"web_search_call.{kind}" in kinds(events)
    assert "output_text.annotation.added" in kinds(events)
    assert "namespace browser" in app.state.context.model.tokenizer.decode(
        app.state.context.engine.requests[0].prompt_ids
    )
    assert browser.is_closed
    assert once["usage"]["input_tokens"] == sum(len(r.prompt_ids) for r in app.state.context.engine.requests[:2])


def test_code_interpreter_and_history_by_id(make_server, client_for):
    python = Stand(PYTHON, "42\n")
    app = serve(make_server, lambda prompt: PLAIN if "42" in prompt else CODE, code_interpreter=python)
    tool = {"type": "code_interpreter", "container": {"type": "auto"}}
    body = {"input": "6*7?", "tools": [tool], "include": ["code_interpreter_call.outputs"]}
    once, events, _ = post(
        client_for,
        app,
        body,
        {**body, "stream": True},
        lambda answers: {"input": "And?", "previous_response_id": answers[0]["id"]},
    )
    call = once["output"][0]
    assert (call["code"], call["outputs"][0]) == ("print(6*7)", {"type": "logs", "logs": "42\n"})
    assert call["outputs"][1]["url"].startswith("data:image/png;base64,")
    deltas = "".join(e["delta"] for e in events if e["type"] == "response.code_interpreter_call_code.delta")
    assert deltas == "print(6*7)"
    prompt = app.state.context.engine.requests[-1].prompt_ids
    assert "It is 42." in app.state.context.model.tokenizer.decode(prompt)


def test_mcp_lists_its_tools_and_fails_in_the_item(make_server, client_for):
    space = ToolNamespace("notes", tools=(FunctionTool("read", description="Reads", parameters={"type": "object"}),))
    notes = Stand(space, "no such note", is_builtin=False, fails=True)
    app = serve(make_server, lambda prompt: PLAIN if "no such note" in prompt else REMOTE, mcp=notes)
    tool = {"type": "mcp", "server_label": "notes", "server_url": "https://notes.example", "require_approval": "never"}
    once, events = post(client_for, app, *({"input": "Read", "tools": [tool], "stream": s} for s in (False, True)))
    listed, call, _ = once["output"]
    assert (listed["type"], [t["name"] for t in listed["tools"]]) == ("mcp_list_tools", ["read"])
    assert (call["type"], call["server_label"], call["name"], call["arguments"]) == (
        "mcp_call",
        "notes",
        "read",
        '{"id":3}',
    )
    assert call["status"] == "failed"
    assert "no such note" in json.dumps(call["error"])
    assert "mcp_call.failed" in kinds(events)
    assert kinds(events)[2:6] == [
        "output_item.added",
        "mcp_list_tools.in_progress",
        "mcp_list_tools.completed",
        "output_item.done",
    ]


def test_a_clients_function_beside_a_hosted_tool_ends_the_run(make_server, client_for):
    browser = Stand(BROWSER, "[0] Tides")
    call = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
    app = serve(make_server, lambda prompt: call if "[0] Tides" in prompt else SEARCH, web_search=browser)
    tools = [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": {"type": "object"}}]
    (once,) = post(client_for, app, {"input": "x", "tools": tools})
    assert [item["type"] for item in once["output"]] == ["web_search_call", "function_call"]
    assert once["status"] == "completed"


def test_choices_reach_the_first_turn(make_server, client_for):
    app = serve(make_server, PLAIN, web_search=Stand(BROWSER, "x"))
    tools = [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": {"type": "object"}}]
    choices = ["required", {"type": "web_search_preview"}, {"type": "function", "name": "f"}, "none"]
    post(client_for, app, *({"input": "x", "tools": tools, "tool_choice": choice} for choice in choices))
    seen = [request.params.constraint for request in app.state.context.engine.requests]
    assert [c.tool_choice.value for c in seen] == ["required", "required", "required", "none"]
    assert seen[0].allowed_tools is None
    assert set(seen[1].allowed_tools) == {"browser.search", "browser.open", "browser.find"}
    assert seen[2].allowed_tools == ("functions.f",)


def test_max_tool_calls_is_kept(make_server, client_for):
    browser = Stand(BROWSER, "[0] Tides")
    app = serve(make_server, SEARCH, web_search=browser)
    (once,) = post(client_for, app, {"input": "x", "tools": [{"type": "web_search"}], "max_tool_calls": 2})
    assert browser.num_calls == 2
    assert once["status"] == "incomplete"


def test_cancelling_while_a_tool_works(make_server, client_for):
    browser = Stand(BROWSER, "[0] Tides")
    app = serve(make_server, SEARCH, web_search=browser)

    async def run():
        browser.waits = asyncio.Event()
        async with client_for(app) as client:
            body = {"input": "x", "tools": [{"type": "web_search"}], "background": True}
            made = (await client.post("/v1/responses", json=body)).json()
            while not browser.num_calls:
                await asyncio.sleep(0.005)
            ended = (await client.post(f"/v1/responses/{made['id']}/cancel")).json()
            assert ended["status"] == "cancelled"
            assert ended["output"][-1]["status"] == "incomplete"
            stored = await client.get(f"/v1/responses/{made['id']}?stream=true")
            check_events(events_of(stored.text))
            assert browser.is_closed
            assert not app.state.context.engine.open

    asyncio.run(run())


def test_a_label_names_one_server_and_nothing_else(make_server, client_for):
    app = make_server(PLAIN, tools=("mcp",))

    def mcp(label):
        return {"type": "mcp", "server_label": label, "server_url": "https://a.example", "require_approval": "never"}

    function = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    space = {"type": "namespace", "name": "agents", "description": "", "tools": [function]}
    cases = [([mcp("custom")], 0), ([mcp("functions"), function], 0), ([space, mcp("agents")], 1)]
    cases += [([mcp("notes"), mcp("notes")], 1)]

    async def run():
        async with client_for(app) as client:
            for tools, place in cases:
                answer = await client.post("/v1/responses", json={"input": "x", "tools": tools})
                assert answer.status_code == 400, answer.text
                assert answer.json()["error"]["param"] == f"tools[{place}].server_label"

    asyncio.run(run())


def test_tools_that_are_off_or_cannot_be_had(make_server, client_for):
    async def refuse(_):
        raise InvalidInputError("no documentation is installed", param="backend")

    app = serve(make_server, PLAIN, web_search=Stand(BROWSER, "x"))
    app.state.context.tool_makers["web_search"] = refuse

    async def run():
        async with client_for(app) as client:
            for tool, param in (({"type": "web_search"}, "tools[0]"), ({"type": "code_interpreter"}, "tools[0].type")):
                answer = await client.post("/v1/responses", json={"input": "x", "tools": [tool]})
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == param
                assert tool["type"] in answer.json()["error"]["message"]

    asyncio.run(run())


@pytest.mark.parametrize(
    "change",
    [
        {"server_url": None},
        {"connector_id": "connector_gmail"},
        {"tunnel_id": "t"},
        {"require_approval": "perhaps"},
        {"server_label": "python"},
        {"server_label": "a b"},
    ],
)
def test_mcp_servers_that_are_not_taken(make_server, client_for, change):
    app = make_server(PLAIN, tools=("mcp",))
    tool = {"type": "mcp", "server_label": "a", "server_url": "https://127.0.0.1:1", "require_approval": "never"}

    async def run():
        async with client_for(app) as client:
            answer = await client.post("/v1/responses", json={"input": "x", "tools": [tool | change]})
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"].startswith("tools[0]")

    asyncio.run(run())
