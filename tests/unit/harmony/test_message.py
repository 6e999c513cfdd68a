from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.message import (
    Conversation,
    DeveloperContent,
    Effort,
    FunctionTool,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
    ToolNamespace,
    conversation_from_dict,
    conversation_to_dict,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "harmony"
RECORDS = {r["name"]: r for r in map(json.loads, (GOLDEN / "render.jsonl").read_text("utf-8").splitlines())}


def user(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **fields}]}


@pytest.mark.parametrize("name", RECORDS)
def test_json_round_trip(name: str) -> None:
    conversation = conversation_from_dict(RECORDS[name]["conversation"])
    data = json.loads(json.dumps(conversation_to_dict(conversation)))
    assert conversation_from_dict(data) == conversation


def test_json_round_trip_of_what_is_ours() -> None:
    conversation = Conversation(
        (
            Message(Role.SYSTEM, content=SystemContent(channels=None, effort=None, tools=(PYTHON, BROWSER))),
            Message(
                Role.DEVELOPER,
                content=DeveloperContent.with_functions(
                    [FunctionTool("f", parameters=True)],
                    response_formats=[ResponseFormat("r", schema={"const": 1.0}, description="d")],
                ),
            ),
            Message(Role.ASSISTANT, channel="final", content=("a", "b"), token_ids=(1, 2)),
        )
    )
    data = json.loads(json.dumps(conversation_to_dict(conversation)))
    assert conversation_from_dict(data, trust_token_ids=True) == conversation
    untrusted = conversation_from_dict(data)
    assert untrusted.messages[:2] == conversation.messages[:2]
    assert untrusted.messages[2].token_ids is None


def test_absent_fields_take_defaults_and_null_leaves_out() -> None:
    def read(content: dict[str, Any]) -> Any:
        data = {"messages": [{"role": "system", "content": [{"type": "system_content", **content}]}]}
        return conversation_from_dict(data).messages[0].content

    assert read({}) == SystemContent()
    nothing = read(dict.fromkeys(["model_identity", "reasoning_effort", "knowledge_cutoff", "channel_config"]))
    assert nothing == SystemContent(model_identity=None, effort=None, knowledge_cutoff=None, channels=None)
    assert read({"reasoning_effort": "High"}).effort is Effort.HIGH


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the conversation is list"),
        ({}, "messages is NoneType"),
        ({"messages": ["hi"]}, r"messages\[0\] is str"),
        (user("hi", colour="red"), r"messages\[0\] has an unknown field 'colour'"),
        (user(None), r"messages\[0\]\.content is NoneType"),
        (user([{"type": "image"}]), r"messages\[0\]\.content\[0\] is of the kind 'image'"),
        (user([{"type": "text", "text": 3}]), r"messages\[0\]\.content\[0\]\.text is 3"),
        (user("hi", channel=3), r"messages\[0\]\.channel is int"),
        ({"messages": [{"role": "boss", "content": ""}]}, r"messages\[0\]: unknown role 'boss'"),
        ({"messages": [{"role": "tool", "content": ""}]}, r"messages\[0\]: a tool's message has no name"),
        (user([{"type": "system_content"}]), "only the role 'system' may"),
        (user([{"type": "developer_content"}]), "only the role 'developer' may"),
    ],
)
def test_json_that_cannot_be_read(data: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        conversation_from_dict(data)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([], "give an object"),
        ({"a": {"name": "b", "tools": []}}, "key and name must agree"),
        ({"a": {"name": "a", "tools": [{"name": "f"}, {"name": "f"}]}}, "two tools .* are named 'f'"),
        ({"a": {"name": "a", "tools": [{"description": "no name"}]}}, "cannot be the name of a tool"),
        (
            {"a": {"name": "a", "tools": [{"name": "f", "parameters": {"$ref": "#/x"}}]}},
            "tool 'f': the reference '#/x'",
        ),
        ({"a": {"name": "a", "tools": [{"name": "f", "parameters": 3}]}}, "tool 'f': int stands where"),
    ],
)
def test_tools_that_cannot_be_read(tools: Any, words: str) -> None:
    data = {"messages": [{"role": "developer", "content": [{"type": "developer_content", "tools": tools}]}]}
    with pytest.raises(InvalidInputError, match=words):
        conversation_from_dict(data)


def test_untrusted_token_ids_are_not_even_read() -> None:
    data = {"messages": [{"role": "assistant", "content": "", "token_ids": "nonsense"}]}
    assert conversation_from_dict(data).messages[0].token_ids is None
    with pytest.raises(InvalidInputError, match="token_ids is str"):
        conversation_from_dict(data, trust_token_ids=True)
    with pytest.raises(InvalidInputError, match="something else than integers"):
        conversation_from_dict({"messages": [{**data["messages"][0], "token_ids": [1, True]}]}, trust_token_ids=True)


@pytest.mark.parametrize("value", ["", "High", "max", None, 3])
def test_effort_names_its_three_values(value: object) -> None:
    with pytest.raises(InvalidInputError, match="use 'low', 'medium' or 'high'") as caught:
        Effort.parse(value)
    assert caught.value.param == "reasoning_effort"
    with pytest.raises(InvalidInputError):
        SystemContent(effort="extreme")  # type: ignore[arg-type]


def test_effort_parse() -> None:
    assert [Effort.parse(e) for e in ("low", "medium", Effort.HIGH)] == [Effort.LOW, Effort.MEDIUM, Effort.HIGH]


def test_roles_from_text() -> None:
    assert Message("user").role is Role.USER  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="'system', 'developer', 'user', 'assistant' or 'tool'"):
        Message("boss")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "bob to=functions.f", "a\nb"])
def test_an_author_cannot_write_header_fields_into_the_name(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Message(Role.USER, name=name)
    assert caught.value.param == "name"


def test_only_an_assistant_is_sampled() -> None:
    with pytest.raises(InvalidInputError, match="only an assistant's are sampled"):
        Message(Role.USER, token_ids=(1,))


@pytest.mark.parametrize("content", [3, None, ("a", 3)])
def test_content_of_another_kind(content: Any) -> None:
    with pytest.raises(InvalidInputError, match="the content of a message holds"):
        Message(Role.USER, content=content)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x\u2028y", "\x07", 3])
def test_tool_names_are_one_line(name: Any) -> None:
    for make in (FunctionTool, ToolNamespace, lambda n: ResponseFormat(n, schema={})):
        with pytest.raises(InvalidInputError, match="one line of printable text"):
            make(name)


def test_namespaces_must_differ() -> None:
    for make in (SystemContent, DeveloperContent):
        with pytest.raises(InvalidInputError, match="two tool namespaces are named 'python'"):
            make(tools=(PYTHON, PYTHON))


def test_response_format_must_be_json() -> None:
    with pytest.raises(InvalidInputError, match="a set is not JSON"):
        ResponseFormat("r", schema={"enum": {1}})  # type: ignore[dict-item]


def test_message_properties() -> None:
    mixed = Message(Role.SYSTEM, content=("a", SystemContent(), "b"))
    assert mixed.text == "ab"
    assert mixed.parts == ("a", SystemContent(), "b")
    assert Message(Role.USER, content="hi").parts == ("hi",)
    assert Message(Role.ASSISTANT, recipient="functions.f").is_call
    assert not Message(Role.ASSISTANT, recipient="all").is_call
    assert not Message(Role.TOOL, name="f", recipient="assistant").is_call


def test_conversation_is_a_sequence_that_grows_by_copies() -> None:
    empty = Conversation([])  # type: ignore[arg-type]
    hello = Message(Role.USER, content="hi")
    assert empty.messages == ()
    assert list(empty.append(hello)) == [hello]
    assert (len(empty), len(empty.append(hello, hello))) == (0, 2)
