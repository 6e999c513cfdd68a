"""Rows of JSON as conversations: forms that are taken, and what is wrong with those that are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import Effort
from ossia.harmony.message import Message
from ossia.harmony.render import render_text
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.training.data.chat.rows import read_row

TOKENIZER = Tokenizer.o200k_harmony()
IDENTITY = Identity(model_identity="You are a test.", knowledge_cutoff=None)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ASK = {"role": "user", "content": "Rain in Oslo?"}
ANSWER = {"role": "assistant", "content": "No."}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "dry"}


def shown(*messages: Any, **more: Any) -> list[tuple[Any, ...]]:
    """What is learned, as (channel, recipient, text)."""
    row = read_row({"messages": list(messages), **more})
    return [(m.channel, m.recipient, m.text) for i, m in enumerate(row.messages) if i in row.learned]


def test_all_that_an_answer_with_calls_holds() -> None:
    calling = {"role": "assistant", "reasoning": "I look.", "content": "One moment.", "tool_calls": [CALL]}
    row = {"messages": [ASK, calling, RESULT, {**ANSWER, "reasoning_content": "Dry."}], "tools": [TOOL]}
    assert shown(*row["messages"], tools=row["tools"]) == [
        ("analysis", None, "I look."),
        ("commentary", None, "One moment."),
        ("commentary", "functions.weather", '{"city":"Oslo"}'),
        ("analysis", None, "Dry."),
        ("final", None, "No."),
    ]
    read = read_row({**row, "reasoning_effort": "low"})
    conversation, learned = read.conversation(IDENTITY, effort=Effort.HIGH, date="2026-11-24")
    text = render_text(conversation, tokenizer=TOKENIZER, next_role=None)
    assert text.startswith(
        "<|start|>system<|message|>You are a test.\nCurrent date: 2026-11-24\n\nReasoning: low\n\n# Valid channels"
    )
    assert "type weather = (_: {\ncity?: string,\n}) => any;" in text
    assert [conversation.messages[i].role for i in sorted(learned)] == ["assistant"] * 5


@pytest.mark.parametrize(
    ("message", "thought"),
    [
        ({"reasoning": "r"}, "r"),
        ({"reasoning_content": "r"}, "r"),
        ({"thinking": "r"}, "r"),
        ({"thinking": "r", "reasoning": None}, "r"),
        ({"thinking": None}, None),
        ({"thinking": ""}, None),
    ],
)
def test_reasoning_by_any_name(message: dict[str, Any], thought: str | None) -> None:
    expected = [("final", None, "No.")]
    assert shown(ASK, {**ANSWER, **message}) == ([("analysis", None, thought)] if thought else []) + expected


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"function": {"name": "weather", "arguments": {"city": "Oslo"}}},
        {"name": "weather", "arguments": {"city": "Oslo"}},
        {"id": None, "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
    ],
)
@pytest.mark.parametrize(
    "result", [RESULT, {"role": "tool", "content": "dry"}, {"role": "tool", "name": "weather", "content": "dry"}]
)
def test_liberties_with_calls(call: dict[str, Any], result: dict[str, Any]) -> None:
    if "tool_call_id" in result and call.get("id") is None:
        call = {**call, "id": "c1"}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    for tools in ([TOOL], [TOOL["function"]], json.dumps([TOOL])):
        row = read_row({"messages": [ASK, calling, result, ANSWER], "tools": tools})
        assert (
            row.messages[1:3] == read_row({"messages": [ASK, CALLING, RESULT, ANSWER], "tools": [TOOL]}).messages[1:3]
        )


CALLING = {"role": "assistant", "tool_calls": [CALL]}


def test_results_go_to_the_calls_of_their_name_or_in_order() -> None:
    other = {"type": "function", "function": {"name": "time"}}
    calls = [{"name": "weather", "arguments": {}}, {"name": "time", "arguments": ""}]
    calling = {"role": "assistant", "tool_calls": calls}
    for results in (
        [{"role": "tool", "content": "dry"}, {"role": "tool", "content": "noon"}],
        [{"role": "tool", "name": "time", "content": "noon"}, {"role": "tool", "content": {"sky": "dry"}}],
    ):
        row = read_row({"messages": [ASK, calling, *results, ANSWER], "tools": [TOOL, other]})
        said = [(m.name, m.text) for m in row.messages if m.role == "tool"]
        assert {name for name, _ in said} == {"functions.weather", "functions.time"}
        assert dict(said)["functions.time"] == "noon"
    assert row.messages[2].text == "{}"
    assert dict(said)["functions.weather"] == '{"sky":"dry"}'


def test_pairs() -> None:
    assert read_row({"question": "q", "answer": "a"}) == read_row({"prompt": "q", "completion": "a"})
    row = read_row({"prompt": "q", "completion": "a", "system": "s", "reasoning": "r", "id": 7})
    assert [(m.role, m.channel, m.text) for m in row.messages] == [
        ("system", None, "s"),
        ("user", None, "q"),
        ("assistant", "analysis", "r"),
        ("assistant", "final", "a"),
    ]
    row = read_row({"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]})
    assert row.learned == {3}


def test_a_weight_of_0_leaves_a_message_unlearned() -> None:
    row = read_row({"messages": [ASK, {**ANSWER, "weight": 0}, ASK, {**ANSWER, "weight": 1}]})
    assert row.learned == {3}


def test_system_texts_become_the_developers() -> None:
    row = read_row({"messages": [{"role": "system", "content": "Be brief."}, ASK, ANSWER]})
    conversation, learned = row.conversation(IDENTITY, effort=Effort.MEDIUM, date=None)
    text = render_text(conversation, tokenizer=TOKENIZER, next_role=None)
    assert "<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>" in text
    assert learned == {3}


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ({"type": "json_object"}, '# Response Formats\n\n## json_object\n\n{"type":"object"}'),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "number"}, "strict": None}},
            '# Response Formats\n\n## n\n\n{"type":"number"}',
        ),
    ],
)
def test_response_formats(form: dict[str, Any], shown: str) -> None:
    row = read_row({"messages": [ASK, ANSWER], "response_format": form})
    conversation, _ = row.conversation(IDENTITY, effort=Effort.MEDIUM, date=None)
    assert shown in render_text(conversation, tokenizer=TOKENIZER)


def with_arguments(text: Any) -> dict[str, Any]:
    calling = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": text}}]}
    return {"messages": [ASK, calling], "tools": [TOOL]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (3, "int in place of an object; a row is"),
        ([], "list in place of an object"),
        ({}, "the keys none; a row is an object with messages, with prompt and completion"),
        ({"text": "x"}, "the keys 'text'; a row is"),
        ({"messages": []}, "messages is no array of messages, or empty"),
        ({"messages": "hi"}, "messages is no array"),
        ({"messages": ["hi"]}, r"messages\[0\] is str; a message is an object"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\].role is 'None'; use 'developer', 'system', 'user'"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\].role is 'bot'"),
        ({"messages": [ASK]}, "nothing to learn"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, "nothing to learn"),
        ({"messages": [ASK, {**ANSWER, "weight": 0.5}]}, r"messages\[1\].weight is 0.5; use 0 or 1"),
        ({"messages": [ASK, {"role": "assistant"}]}, "neither content nor tool_calls"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, "an empty answer"),
        ({"messages": [ASK, {"role": "assistant", "content": None, "reasoning": "r"}]}, "nothing but reasoning"),
        ({"messages": [ASK, {"role": "assistant", "content": 3}]}, "neither text nor a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "reads text only"),
        ({"messages": [ASK, CALLING, RESULT, ANSWER]}, "a call of 'functions.weather', which is not declared"),
        (
            {"messages": [ASK, CALLING, {**RESULT, "tool_call_id": "c9"}, ANSWER], "tools": [TOOL]},
            "no call with the id",
        ),
        ({"messages": [ASK, {"role": "tool", "content": "x"}, ANSWER]}, "no call before it waits for one"),
        (with_arguments("{"), "arguments is no JSON object: '{'"),
        (with_arguments("[1]"), "arguments is no JSON object"),
        (with_arguments(3), "arguments is no JSON object"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": "f()"}]}, "tool_calls is no array"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": ["f"]}]}, "a call is an object"),
        ({"messages": [ASK, ANSWER], "tools": "["}, "tools is text, but no JSON"),
        ({"messages": [ASK, ANSWER], "tools": {"f": 1}}, "tools is no array"),
        ({"messages": [ASK, ANSWER], "tools": [3]}, "a tool is an object"),
        ({"messages": [ASK, ANSWER], "tools": [{"type": "mcp"}]}, "type is 'mcp'"),
        ({"messages": [ASK, ANSWER], "tools": [{"type": "function"}]}, "None cannot be the name of a tool"),
        ({"messages": [ASK, ANSWER], "response_format": {"type": "xml"}}, "response_format is none of"),
        ({"messages": [ASK, ANSWER], "reasoning_effort": "huge"}, "unknown reasoning effort 'huge'"),
        ({"question": "q", "answer": 3}, "answer is int; give text or a list"),
        ({"question": None, "answer": "a"}, "the keys 'answer'"),
    ],
)
def test_what_is_no_conversation(row: Any, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        read_row(row)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
message_keys = st.sampled_from(
    ["role", "content", "reasoning", "thinking", "tool_calls", "tool_call_id", "name", "weight", "function_call"]
)
odd_messages = st.dictionaries(
    message_keys,
    json_values | st.sampled_from(["user", "assistant", "tool", [CALL], [{"name": "weather", "arguments": "{}"}]]),
    max_size=5,
)
row_keys = st.sampled_from(["messages", "tools", "prompt", "completion", "response_format", "reasoning_effort"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(row_keys, json_values | st.lists(odd_messages, max_size=3) | st.just([TOOL]), max_size=5))
def test_any_json_is_read_or_refused(row: dict[str, Any]) -> None:
    """Nothing but InvalidInputError comes of bad rows, and what is read can be rendered."""
    try:
        found = read_row(row)
    except InvalidInputError:
        return
    conversation, learned = found.conversation(IDENTITY, effort=Effort.LOW, date=None)
    assert learned
    assert all(isinstance(message, Message) for message in conversation)
    render_text(conversation, tokenizer=TOKENIZER)
