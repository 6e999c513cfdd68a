"""Chat messages to harmony, with nothing known of what was sampled; tests of the server cover the rest."""

from __future__ import annotations

from typing import Any

import pytest

from ossia.agent.chat_history import Call, ChatHistory, Text, Thought, recipient_of
from ossia.agent.chat_messages import read_chat_messages
from ossia.agent.opening import compose_conversation
from ossia.core.errors import InvalidInputError
from ossia.harmony.content import DeveloperContent, SystemContent
from ossia.harmony.message import Message, Role

SYSTEM = SystemContent(model_identity="You are a test.")


def test_text_before_a_call_is_a_preamble_and_behind_the_last_the_answer() -> None:
    history = ChatHistory()
    history.add_assistant([Thought.of("hm"), Text("wait"), Call("1", recipient_of("f"), "{}"), Text("done")])
    history.add_assistant([Call("2", recipient_of("g", is_custom=True), "text")])
    assert [(m.channel, m.recipient, m.content_type, m.text) for m in history.messages] == [
        ("analysis", None, None, "hm"),
        ("commentary", None, None, "wait"),
        ("commentary", "functions.f", "json", "{}"),
        ("final", None, None, "done"),
        ("commentary", "custom.g", None, "text"),
    ]
    history.add_result("2", "ok", param="x")
    assert history.messages[-1].name == "custom.g"


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({}, "missing_required_parameter", "messages[0].role"),
        ({"role": []}, "invalid_value", "messages[0].role"),
        ({"role": "user", "content": [{"type": []}]}, "unsupported_value", "messages[0].content[0].type"),
        ({"role": "user", "content": 3}, "invalid_type", "messages[0].content"),
        ({"role": "tool", "content": "x", "tool_call_id": "c"}, "invalid_value", "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": 3}, "invalid_type", "messages[0].tool_calls"),
    ],
)
def test_a_fault_is_named_for_programs(message: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_chat_messages([message])
    assert (caught.value.code, caught.value.param) == (code, param)


def test_reasoning_may_be_left_out() -> None:
    message = {"role": "assistant", "content": "a", "reasoning": "r"}
    assert [m.text for m in read_chat_messages([message])] == ["r", "a"]
    assert [m.text for m in read_chat_messages([message], with_reasoning=False)] == ["a"]


def test_leading_instructions_are_one_developer_message_and_later_ones_their_own() -> None:
    said = [Message(role, content=role.value) for role in (Role.SYSTEM, Role.DEVELOPER, Role.USER, Role.SYSTEM)]
    first, developer, user, later = compose_conversation(said, system=SYSTEM, instructions="first")
    assert first == Message(Role.SYSTEM, content=SYSTEM)
    assert developer.content == DeveloperContent(instructions="first\n\nsystem\n\ndeveloper")
    assert user == said[2]
    assert later == Message(Role.DEVELOPER, content=DeveloperContent(instructions="system"))
    assert len(compose_conversation(said[2:3], system=SYSTEM)) == 2
