"""Messages of the assistant from what clients send back: whole, in part, or changed."""

from __future__ import annotations

import pytest

from ossia.agent.chat_history import Call, Text, Thought, recipient_of
from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Channel, Message, Role
from ossia.server.conversation.answer import remember
from ossia.server.conversation.history import History
from ossia.server.replay import ReplayCache


def said(text: str, channel: Channel, *, recipient: str | None = None, ids: tuple[int, ...] = (1, 2)) -> Message:
    return Message(Role.ASSISTANT, content=text, channel=channel, recipient=recipient, token_ids=ids)


THOUGHT = said("Hm.", Channel.ANALYSIS)
PREAMBLE = said("Let me look.", Channel.COMMENTARY)
CALL = said('{"a": 1}', Channel.COMMENTARY, recipient="functions.f")
FINAL = said("Done.", Channel.FINAL)


@pytest.fixture
def history() -> History:
    cache = ReplayCache()
    remember(cache, owner="me", said=[("", THOUGHT), ("", PREAMBLE), ("c1", CALL)])
    remember(cache, owner="me", said=[("", FINAL)])
    return History(cache, owner="me")


@pytest.mark.parametrize(
    "blocks",
    [
        [Thought.of("Hm."), Text("Let me look."), Call("c1", "functions.f", '{"a": 1}')],
        [Thought.of("Hm."), Call("c1", "functions.f", '{"a": 1}')],
        [Text("Let me look."), Call("c1", "functions.f", '{"a": 1}')],
        [Call("c1", "functions.f", '{"a": 1}')],
        [Call("c1", "functions.f", '{"a":1}', {"a": 1})],
        [Call("", "functions.f", '{"a": 1}')],
    ],
)
def test_what_comes_back_in_whole_or_in_part_is_as_sampled(history, blocks):
    history.add_assistant(blocks)
    assert history.messages == [THOUGHT, PREAMBLE, CALL]


@pytest.mark.parametrize(
    "call",
    [
        Call("c1", "functions.f", '{"a":2}', {"a": 2}),
        Call("c1", "functions.g", '{"a": 1}'),
        Call("c2", "functions.f", '{"a": 1}'),
    ],
)
def test_another_call_is_rendered_anew(history, call):
    history.add_assistant([call])
    (message,) = history.messages
    assert (message.text, message.recipient, message.token_ids) == (call.content, call.recipient, None)
    assert message.content_type == "json"


def test_changed_reasoning_is_the_clients(history):
    history.add_assistant([Thought.of("No."), Call("c1", "functions.f", '{"a": 1}')])
    assert [message.text for message in history.messages] == ["No.", '{"a": 1}']
    assert history.messages[1] is CALL


def test_answers_are_known_by_their_text(history):
    history.add_assistant([Text("Done.")])
    history.add_assistant([Text("Done!")])
    assert history.messages[0] is FINAL
    assert history.messages[1].token_ids is None
    assert history.messages[1].channel == Channel.FINAL


def test_nothing_is_known_of_others(history):
    other = History(history._replay, owner="you")
    other.add_assistant([Call("c1", "functions.f", '{"a": 1}')])
    assert [message.token_ids for message in other.messages] == [None]


def test_results_follow_their_calls(history):
    custom = recipient_of("g", is_custom=True)
    history.add_assistant([Call("c9", custom, "text")])
    assert history.messages[0].content_type is None
    history.add_result("c9", "one", param="x")
    history.add_result("c1", "two", param="x")  # its call was dropped, but is known
    assert [message.name for message in history.messages[1:]] == ["custom.g", "functions.f"]
    with pytest.raises(InvalidInputError) as caught:
        history.add_result("c0", "three", param="messages[3].tool_call_id")
    assert caught.value.param == "messages[3].tool_call_id"
