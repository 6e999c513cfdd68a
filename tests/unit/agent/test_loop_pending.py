"""Calls that the loop does not make: the caller's own, and those that it holds until somebody has allowed them."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.unit.agent.conftest import FakeTool, MakeStage, Stage, add, answer_with, call, calls, final

from ossia.agent.events import CallEnded, CallProgressed, CallStarted, StopReason, TurnStarted
from ossia.agent.loop import Limits, grammars_of
from ossia.engine.constraint import ToolChoice, ToolGrammar, TurnConstraint
from ossia.harmony.message import Conversation
from ossia.tools.base import reply
from ossia.tools.functions import FunctionsTool


def external(stage: Stage, **options: Any) -> TurnConstraint:
    return TurnConstraint(tools=(*grammars_of(stage.tools), ToolGrammar.function("theirs", parameters={})), **options)


def test_the_callers_calls_end_the_run(make_stage: MakeStage) -> None:
    stage = make_stage(call("functions.theirs", '{"x": 1}'))
    events, end = stage.run(rules=external(stage))
    assert end.reason is StopReason.CALLS_PENDING
    assert [message.text for message in end.pending] == ['{"x": 1}']
    assert (end.num_calls, [event for event in events if isinstance(event, CallStarted)]) == (0, [])
    assert end.conversation.messages[-1] == end.pending[0]


def test_of_mixed_calls_the_loop_makes_its_own(make_stage: MakeStage) -> None:
    stage = make_stage(calls(("functions.theirs", "{}"), ("functions.add", '{"a": 2, "b": 3}')), final("done"))
    _, end = stage.run(rules=external(stage, parallel_calls=True))
    assert end.reason is StopReason.CALLS_PENDING
    assert [message.recipient for message in end.pending] == ["functions.theirs"]
    assert end.conversation.messages[-1].text == "5"
    answer = reply(end.pending[0], "their answer")
    _, end = stage.run(Conversation((*end.conversation.messages, answer)), rules=external(stage))
    assert end.reason is StopReason.ANSWERED


def test_held_calls_end_the_run_and_are_made_by_the_next(make_stage: MakeStage) -> None:
    """Somebody is asked in between. The prompts are those of a run that asked nobody."""
    both = calls(("functions.add", '{"a": 2, "b": 3}'), ("fake.do", '{"n": 1}'))
    tools = [FunctionsTool([add]), FakeTool(answer_with("did it"))]
    stage = make_stage(both, final("done"), tools=tools)
    rules = TurnConstraint(tools=grammars_of(stage.tools), parallel_calls=True)
    first, end = stage.run(held=["fake.do"], rules=rules)
    assert (end.reason, [m.recipient for m in end.pending]) == (StopReason.CALLS_PENDING, ["fake.do"])
    assert (end.num_calls, end.conversation.messages[-1].text) == (1, "5")
    assert "fake.do" not in [event.call.recipient for event in first if isinstance(event, CallStarted)]
    events = asyncio.run(collect_all(stage, end.conversation, calls=end.pending, rules=rules))
    assert [type(event) for event in events[:4]] == [CallStarted, CallProgressed, CallEnded, TurnStarted]
    after = events[-1]
    assert (after.reason, after.num_calls) == (StopReason.ANSWERED, 1)
    assert [message.text for message in after.conversation.messages[-3:]] == ["5", "did it", "done"]
    whole = make_stage(both, final("done"), tools=[FunctionsTool([add]), FakeTool(answer_with("did it"))])
    whole.run(rules=rules)
    assert whole.prompts == stage.prompts


async def collect_all(stage: Stage, conversation: Conversation, *, calls: Any, **options: Any) -> list[Any]:
    return [event async for event in stage.loop(**options).run(conversation, calls=calls)]


def test_the_callers_tools_may_be_called_in_the_last_turn(make_stage: MakeStage) -> None:
    stage = make_stage(call("functions.theirs", "{}"))
    _, end = stage.run(rules=external(stage), limits=Limits(max_turns=1))
    constraint = stage.engine.requests[0].params.constraint
    assert isinstance(constraint, TurnConstraint)
    assert (constraint.tool_choice, constraint.allowed_tools) == (ToolChoice.AUTO, ("functions.theirs",))
    assert end.reason is StopReason.CALLS_PENDING
