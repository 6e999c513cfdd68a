from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ossia.agent.loop import AgentLoop, Limits
from ossia.agent.turns import Sampling
from ossia.cli.turn import Delta, Kind, Run, require_text
from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Conversation, Effort, Message, Role
from ossia.tools.functions import FunctionsTool
from ossia.tools.registry import ToolSet

ADD = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 17, "b": 25}<|call|>'


def add(a: int, b: int) -> int:
    return a + b


class Watched:
    """A run that was followed to its end, or to a number of events, with all pieces of text."""

    def __init__(self, script: Any, *, num_events: int = 10_000, tools: ToolSet | None = None, **sampling: Any) -> None:
        self.run = Run()
        self.deltas: list[Delta] = []
        first = script.loaded.opening(effort=Effort.HIGH, date="2026-01-02", instructions="Be brief.")
        conversation = Conversation((*first, Message(Role.USER, content="What is 17 + 25?")))
        loop = AgentLoop(
            script.backend.turns, tools=tools or ToolSet(), sampling=Sampling(**sampling), limits=Limits(max_turns=3)
        )

        async def follow() -> None:
            left = num_events
            async for event in loop.run(conversation):
                self.deltas += self.run.take(event)
                left -= 1
                if left == 0:
                    break

        asyncio.run(follow())

    def text(self, kind: Kind) -> str:
        return "".join(delta.text for delta in self.deltas if delta.kind is kind)


def test_reasoning_and_answer(script: Any) -> None:
    watched = Watched(script)
    run = watched.run
    assert watched.text(Kind.REASONING) == run.text_of(Kind.REASONING) == "17+25 is 42"
    assert watched.text(Kind.ANSWER) == run.answer == "17 + 25 = 42."
    assert run.finish_reason == "stop"
    assert run.num_tokens == len(script.loaded.tokenizer.encode_with_specials(script.said[0]))
    assert 0 < run.num_reasoning_tokens < run.num_tokens
    assert 0 < run.seconds_to_first <= run.seconds
    assert run.num_prompt_tokens == len(script.requests[0].prompt_ids)
    assert (run.num_repairs, run.is_worth_keeping) == (0, True)


def test_several_messages_in_one_event_are_told_apart(script: Any) -> None:
    script.engine.tokens_per_event = 100
    watched = Watched(script)
    assert (watched.text(Kind.REASONING), watched.text(Kind.ANSWER)) == ("17+25 is 42", "17 + 25 = 42.")


def test_a_call_its_result_and_the_answer(script: Any) -> None:
    script.completions.insert(0, ADD)
    watched = Watched(script, tools=ToolSet([FunctionsTool([add])]))
    run = watched.run
    assert watched.text(Kind.CALL) == run.text_of(Kind.CALL) == '{"a": 17, "b": 25}'
    assert run.text_of(Kind.RESULT) == "42"
    assert [message.role for message in run.messages] == [Role.ASSISTANT, Role.TOOL, Role.ASSISTANT, Role.ASSISTANT]
    assert run.end is not None
    assert run.messages == run.end.conversation.messages[-4:]
    assert run.num_tokens == run.end.usage.num_output


def test_a_preamble_is_neither_reasoning_nor_answer(script: Any) -> None:
    script.completions[:] = [
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    ]
    watched = Watched(script)
    assert (watched.text(Kind.PREAMBLE), watched.text(Kind.ANSWER)) == ("Let me see.", "Hi")
    assert watched.run.num_reasoning_tokens == 0


def test_an_answer_without_a_header_comes_when_the_turn_ends(script: Any) -> None:
    script.completions[:] = ["I would rather not say<|return|>"]
    watched = Watched(script)
    assert watched.text(Kind.ANSWER) == watched.run.answer == "I would rather not say"


def test_cut_off_by_the_token_limit(script: Any) -> None:
    run = Watched(script, max_tokens=4).run
    assert (run.finish_reason, run.num_tokens, run.answer, run.is_worth_keeping) == ("length", 4, "", False)


def test_a_run_that_was_stopped_in_its_answer_keeps_what_is_there(script: Any) -> None:
    script.completions[:] = [ADD, "<|channel|>final<|message|>one two three<|return|>"]
    num_call = len(script.loaded.tokenizer.encode_with_specials(ADD))
    # turn started, its tokens, turn ended, call started, call ended, turn started, header of 3, two words
    watched = Watched(script, num_events=1 + num_call + 1 + 2 + 1 + 3 + 2, tools=ToolSet([FunctionsTool([add])]))
    run = watched.run
    assert run.end is None
    assert run.is_worth_keeping
    assert [message.text for message in run.messages] == ['{"a": 17, "b": 25}', "42", "one two"]
    assert run.answer == "one two"


@pytest.mark.parametrize("num_events", [1, 5])
def test_a_run_that_was_stopped_before_its_answer_leaves_nothing(script: Any, num_events: int) -> None:
    run = Watched(script, num_events=num_events).run
    assert (run.end, run.is_worth_keeping, run.answer) == (None, False, "")


def test_an_empty_question() -> None:
    assert require_text(" a b\n", what="question") == "a b"
    with pytest.raises(InvalidInputError, match="question is empty"):
        require_text(" \n\t", what="question")
