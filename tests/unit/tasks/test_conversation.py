from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import Channel, SystemContent
from ossia.harmony.message import Conversation, Effort, Message, Role
from ossia.harmony.parse import parse
from ossia.harmony.render import render, render_for_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.base import Call, Problem, Solution
from ossia.tasks.conversation import problem_messages, solution_messages, worked_conversation
from ossia.tasks.registry import TASKS

TOKENIZER = Tokenizer.o200k_harmony()
SYSTEM = SystemContent(date="2026-01-01")


def test_calls_come_first_and_wait_for_their_results() -> None:
    call = Call(
        recipient="python",
        content="print(1)",
        channel=Channel.ANALYSIS,
        content_type="code",
        analysis="I use python.",
        result="1",
    )
    messages = solution_messages(Solution(analysis="fits", final=("It is ", "1."), calls=(call,)))
    assert [(message.role, message.channel, message.recipient) for message in messages] == [
        (Role.ASSISTANT, "analysis", None),
        (Role.ASSISTANT, "analysis", "python"),
        (Role.TOOL, "analysis", "assistant"),
        (Role.ASSISTANT, "analysis", None),
        (Role.ASSISTANT, "final", None),
    ]
    assert messages[-1].content == ("It is ", "1.")


def test_built_in_tools_are_declared_in_the_system_message() -> None:
    problem = Problem(task="t", prompt="p", answer="a", builtin_tools=("python",))
    content = problem_messages(problem, system=SYSTEM)[0].content
    assert isinstance(content, SystemContent)
    assert [space.name for space in content.tools] == ["python"]
    with pytest.raises(InvalidInputError, match="no_such_tool"):
        problem_messages(Problem(task="t", prompt="p", answer="a", builtin_tools=("no_such_tool",)), system=SYSTEM)


def test_history_stands_between_developer_and_prompt() -> None:
    earlier = (Message(Role.USER, content="a"), Message(Role.ASSISTANT, content="b", channel="final"))
    problem = Problem(task="t", prompt="p", answer="a", history=earlier)
    assert [message.text for message in problem_messages(problem, system=SYSTEM)[1:]] == ["a", "b", "p"]
    assert problem.opening == "a\nb\np"


@pytest.mark.parametrize("name", list(TASKS))
@settings(max_examples=12)
@given(seed=st.integers(0, 2**64 - 1), effort=st.sampled_from(list(Effort)))
def test_solutions_survive_harmony(name: str, seed: int, effort: Effort) -> None:
    """What the assistant says is rendered, parsed without repair, and is the same."""
    rng = random.Random(seed)
    problem = TASKS[name].problem(rng, held_out=bool(seed % 2))
    solution = TASKS[name].solve(problem, effort=effort, rng=rng)
    before = problem_messages(problem, system=SYSTEM)
    whole = worked_conversation(problem, solution, system=SYSTEM)
    assert whole.messages[: len(before)] == before
    said = whole.messages[len(before) :]
    start = len(before)
    for place, message in enumerate(said, start=start):
        if message.role is Role.TOOL:
            continue
        prompt = render(Conversation(whole.messages[:place]), tokenizer=TOKENIZER, drop_analysis=False)
        ids = render(
            Conversation(whole.messages[: place + 1]), tokenizer=TOKENIZER, next_role=None, drop_analysis=False
        )
        parsed = parse(ids[len(prompt) :], tokenizer=TOKENIZER, role="assistant")
        (found,) = parsed.messages
        assert parsed.repairs == ()
        assert (found.text, found.channel, found.recipient) == (message.text, message.channel, message.recipient)
    tokens = render_for_training(whole, tokenizer=TOKENIZER)
    assert any(tokens.mask)
    assert len(tokens.ids) < 1024  # a row of nano's training
