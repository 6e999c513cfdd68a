"""Calls of the server's own tools, and how they go back in: as the model saw them, by whatever way clients go on."""

from __future__ import annotations

import json

import pytest
from tests.unit.server.hosted import Stand, post, serve

from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.content import FunctionTool, ToolNamespace

NEXT = "<|start|>assistant"
SEARCH = '<|channel|>analysis to=browser.search<|message|>{"query":"tides"}'
CODE = "<|channel|>analysis to=python code<|message|>print(6*7)"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
DONE = "<|channel|>final<|message|>Done.<|return|>"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
TOOLS = [{"type": "web_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}, FUNCTION]
QUESTION = {"role": "user", "content": "Look and compute."}
FIRST = {"input": [QUESTION], "tools": TOOLS, "include": ["code_interpreter_call.outputs"]}


def script(prompt: str) -> str:
    """Two calls of the server's tools in one turn, then one of the client's."""
    if "functions.f to=assistant" in prompt:
        return DONE
    return CALL if "[0] Tides" in prompt else f"{SEARCH}<|end|>{NEXT}{CODE}<|call|>"


def prompts(app) -> list[str]:
    context = app.state.context
    return [context.model.tokenizer.decode(request.prompt_ids) for request in context.engine.requests]


def result_for(answers):
    return {"type": "function_call_output", "call_id": answers[0]["output"][-1]["call_id"], "output": "7"}


def by_id(answers):
    return {"previous_response_id": answers[0]["id"], "input": [result_for(answers)], "tools": TOOLS}


def by_items(answers):
    return {"input": [QUESTION, *answers[0]["output"], result_for(answers)], "tools": TOOLS}


def by_references(answers):
    known = [{"type": "item_reference", "id": item["id"]} for item in answers[0]["output"]]
    return {"input": [QUESTION, *known, result_for(answers)], "tools": TOOLS}


@pytest.mark.parametrize(
    ("go_on", "is_stored"), [(by_id, True), (by_items, True), (by_items, False), (by_references, True)]
)
def test_calls_of_one_turn_stand_before_their_results(make_server, client_for, go_on, is_stored):
    app = serve(make_server, script, web_search=Stand(BROWSER, "[0] Tides"), code_interpreter=Stand(PYTHON, "42"))
    (first, _) = post(client_for, app, FIRST | {"store": is_stored}, go_on)
    assert [i["type"] for i in first["output"]] == ["web_search_call", "code_interpreter_call", "function_call"]
    asked, looked, after = prompts(app)
    result = "<|start|>{} to=assistant<|channel|>analysis<|message|>{}<|end|>"
    results = result.format("browser.search", "[0] Tides") + result.format("python", "42")
    assert looked == f"{asked}{SEARCH}<|end|>{NEXT}{CODE}<|call|>{results}{NEXT}"
    assert after.startswith(looked + CALL)


def test_what_is_not_known_here_is_told_as_the_items_tell_it(make_server, client_for):
    """Items of another server, or of one that has forgotten them."""
    app = make_server(DONE)
    items = [
        {"role": "user", "content": "Look."},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {
            "type": "code_interpreter_call", "id": "ci_1", "status": "completed", "container_id": "c", "code": "6*7",
            "outputs": [{"type": "logs", "logs": "42"}],
        },
        {"type": "code_interpreter_call", "id": "ci_2", "status": "completed", "container_id": "c", "code": "7*7"},
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "notes", "tools": []},
        {
            "type": "mcp_call", "id": "mcp_1", "server_label": "notes", "name": "read", "arguments": "{}",
            "output": "milk is out",
        },
        {
            "type": "mcp_call", "id": "mcp_2", "server_label": "notes", "name": "read", "arguments": '{"id":1}',
            "error": {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no such note"}]},
        },
        {"type": "mcp_call", "id": "mcp_3", "server_label": "notes", "name": "read", "arguments": "{}"},
        {"role": "user", "content": "Once more."},
    ]  # fmt: skip
    post(client_for, app, {"input": items})
    (prompt,) = prompts(app)
    said = [
        "<|start|>assistant to=python<|channel|>analysis code<|message|>6*7<|call|>",
        "<|start|>python to=assistant<|channel|>analysis<|message|>42<|end|>",
        "<|start|>assistant to=notes.read<|channel|>commentary json<|message|>{}<|call|>",
        "<|start|>notes.read to=assistant<|channel|>commentary<|message|>milk is out<|end|>",
        '<|start|>assistant to=notes.read<|channel|>commentary json<|message|>{"id":1}<|call|>',
        "<|start|>notes.read to=assistant<|channel|>commentary<|message|>no such note<|end|>",
        "<|start|>user<|message|>Once more.<|end|><|start|>assistant",
    ]
    assert prompt.split("Look.<|end|>")[1] == "".join(said)


def test_a_tool_that_does_not_exist_is_the_servers_to_answer(make_server, client_for):
    """An engine holds models to the tools that there are; should one get past, the client is not asked to run it."""
    unknown = '<|channel|>commentary to=functions.unknown <|constrain|>json<|message|>{"a":1}<|call|>'
    notes = Stand(
        ToolNamespace("notes", tools=(FunctionTool("read", description="", parameters={"type": "object"}),)),
        "milk is out",
        is_builtin=False,
    )
    read = "<|channel|>commentary to=notes.read <|constrain|>json<|message|>{}<|call|>"

    def say(prompt: str) -> str:
        if "There is no tool" not in prompt:
            return unknown
        return DONE if "milk is out" in prompt else read

    app = serve(make_server, say, mcp=notes)
    tool = {"type": "mcp", "server_label": "notes", "server_url": "https://notes.example", "require_approval": "never"}
    (once, _) = post(client_for, app, *({"input": "x", "tools": [tool], "stream": s} for s in (False, True)))
    _, failed, call, _ = once["output"]
    assert (failed["type"], failed["status"], failed["name"]) == ("mcp_call", "failed", "unknown")
    assert "notes.read" in json.dumps(failed["error"])
    assert (call["name"], call["output"]) == ("read", "milk is out")


def test_what_was_said_outlives_the_process_in_the_database(make_server, client_for, tmp_path):
    """Reasoning that a client drops between a call and its output is put back from the database after a restart."""
    url = f"sqlite:///{tmp_path / 'kept.db'}"
    think = f"<|channel|>analysis<|message|>I need f.<|end|>{NEXT}"
    first = make_server(think + CALL, database_url=url)
    answers = post(client_for, first, {"input": [QUESTION], "tools": [FUNCTION]})
    call = answers[0]["output"][-1]
    second = make_server(DONE, database_url=url)
    post(client_for, second, {"input": [QUESTION, call, result_for(answers)], "tools": [FUNCTION]})
    assert prompts(second)[0].startswith(prompts(first)[0] + think + CALL)
