"""The loop with a model that follows a script: what is appended, what ends a run, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.agent.conftest import (
    HANG,
    FakeTool,
    MakeStage,
    Stage,
    add,
    answer_with,
    assert_nothing_left,
    call,
    calls,
    final,
    think,
)

from ossia.agent.events import (
    AgentEvent,
    CallEnded,
    CallProgressed,
    CallStarted,
    RunEnded,
    StopReason,
    TurnDelta,
    TurnEnded,
    TurnStarted,
)
from ossia.agent.loop import Limits, grammars_of
from ossia.agent.turns import Sampling
from ossia.core.errors import ContextLengthError, EngineDeadError, EngineOverloadedError, InvalidInputError
from ossia.engine.constraint import JsonObject, ToolChoice, TurnConstraint
from ossia.engine.output_event import OutputEvent
from ossia.engine.request import FinishReason
from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.harmony.events import ContentDelta
from ossia.harmony.message import Channel, Message, Role
from ossia.tools.base import FailureKind, ToolContext, ToolProgress, ToolResult, reply
from ossia.tools.functions import FunctionsTool

ADD = call("functions.add", '{"a": 2, "b": 3}')
DO = call("fake.do", '{"n": 1}')


def of_type(events: list[AgentEvent], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def texts(end: RunEnded) -> list[str]:
    return [message.text for message in end.conversation.messages]


def test_an_answer_without_tools(make_stage: MakeStage) -> None:
    stage = make_stage(think("easy") + final("5."), tools=[])
    events, end = stage.run()
    assert end.reason is StopReason.ANSWERED
    assert texts(end)[-2:] == ["easy", "5."]
    assert (end.num_turns, end.num_calls, end.pending, end.error) == (1, 0, (), None)
    assert end.usage.num_output == sum(len(message.token_ids or ()) for message in end.conversation.messages)
    assert 0 < end.usage.num_reasoning < end.usage.num_output
    assert stage.engine.requests[0].params.constraint is None
    assert [type(event) for event in events if not isinstance(event, TurnDelta)] == [TurnStarted, TurnEnded, RunEnded]


def test_a_call_its_result_and_the_answer(make_stage: MakeStage) -> None:
    stage = make_stage(think("I should add") + ADD, final("5."))
    events, end = stage.run()
    kinds = [type(event) for event in events if not isinstance(event, TurnDelta)]
    assert kinds == [TurnStarted, TurnEnded, CallStarted, CallEnded, TurnStarted, TurnEnded, RunEnded]
    assert end.reason is StopReason.ANSWERED
    assert (end.num_turns, end.num_calls) == (2, 1)
    thought, asked, told, answer = end.conversation.messages[-4:]
    assert (thought.text, asked.recipient, told.role, told.text, answer.text) == (
        "I should add",
        "functions.add",
        Role.TOOL,
        "5",
        "5.",
    )
    (ended,) = of_type(events, CallEnded)
    assert (ended.number, ended.call, ended.result.failure) == (0, asked, None)
    assert events[-1] is end


def test_every_step_is_told_with_its_tokens(make_stage: MakeStage) -> None:
    stage = make_stage(think("hm") + ADD, final("It is 5."), tokens_per_event=2)
    events, end = stage.run()
    for index in (0, 1):
        deltas = [event for event in of_type(events, TurnDelta) if event.index == index]
        counts = [delta.usage.num_output for delta in deltas]
        assert counts == sorted(counts)
        ended = of_type(events, TurnEnded)[index]
        assert deltas[-1].usage == ended.turn.usage
    said = "".join(
        part.text for delta in of_type(events, TurnDelta) for part in delta.events if isinstance(part, ContentDelta)
    )
    assert said == 'hm{"a": 2, "b": 3}It is 5.'
    assert end.usage.num_output == sum(event.turn.usage.num_output for event in of_type(events, TurnEnded))


def test_reasoning_stays_while_it_calls_and_goes_behind_an_answer(make_stage: MakeStage) -> None:
    stage = make_stage(think("I should add") + ADD, think("so it is five") + final("5."), final("You are welcome."))
    _, end = stage.run()
    stage.run(stage.conversation("Thanks.", after=end.conversation))
    second, third = stage.prompts[1], stage.prompts[2]
    assert "I should add" in second
    assert second.endswith("<|end|><|start|>assistant")
    assert "I should add" not in third
    assert "so it is five" not in third
    assert "<|message|>5.<|end|>" in third


def test_what_was_sampled_goes_back_in_as_sampled(make_stage: MakeStage) -> None:
    odd = '<|channel|>commentary to=functions.add json<|message|>{ "a":2,"b":3 }<|call|>'
    stage = make_stage(odd, final("5."))
    stage.run()
    assert odd in stage.prompts[1]


def test_parallel_calls_run_together_and_their_results_keep_the_order(make_stage: MakeStage) -> None:
    first_done = asyncio.Event()

    async def do(message: Message, context: ToolContext) -> ToolResult:
        if "slow" in message.text:
            await first_done.wait()
        else:
            first_done.set()
        return ToolResult(messages=(reply(message, message.text),))

    tool = FakeTool(do)
    stage = make_stage(calls(("fake.do", '{"slow": 1}'), ("fake.do", '{"quick": 1}')), final("ok"), tools=[tool])
    rules = TurnConstraint(tools=grammars_of(stage.tools), parallel_calls=True)
    events, end = stage.run(rules=rules)
    assert [event.number for event in of_type(events, CallStarted)] == [0, 1]
    assert [event.number for event in of_type(events, CallEnded)] == [1, 0]
    assert texts(end)[-3:-1] == ['{"slow": 1}', '{"quick": 1}']
    assert end.num_calls == 2


def test_no_more_calls_at_once_than_allowed(make_stage: MakeStage) -> None:
    tool = FakeTool(answer_with("done"))
    stage = make_stage(calls(*[("fake.do", "{}")] * 5), final("ok"), tools=[tool])
    rules = TurnConstraint(tools=grammars_of(stage.tools), parallel_calls=True)
    stage.run(rules=rules, limits=Limits(max_parallel=2))
    assert tool.most_running == 2


def test_progress_of_a_tool_is_told_between_its_start_and_end(make_stage: MakeStage) -> None:
    stage = make_stage(DO, final("ok"), tools=[FakeTool(answer_with("done"))])
    events, _ = stage.run()
    order = [type(event) for event in events if isinstance(event, CallStarted | CallProgressed | CallEnded)]
    assert order == [CallStarted, CallProgressed, CallEnded]
    (progress,) = of_type(events, CallProgressed)
    assert (progress.number, progress.progress.text) == (0, 'working on {"n": 1}')


# What a model does wrong


def test_a_tool_that_does_not_exist(make_stage: MakeStage) -> None:
    stage = make_stage(call("functions.subtract", "{}"), final("I cannot."))
    events, end = stage.run(is_constrained=False)
    (ended,) = of_type(events, CallEnded)
    assert ended.result.failure is FailureKind.NO_SUCH_TOOL
    assert "functions.subtract" in texts(end)[-2]
    assert "these exist: functions.add" in texts(end)[-2]
    assert end.reason is StopReason.ANSWERED


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [('{"a": 2}', "b: "), ('{"a": "two", "b": 3}', "a: "), ("not json", "not valid JSON"), ("[1]", "an array")],
)
def test_wrong_arguments_are_answered_with_what_is_wrong(make_stage: MakeStage, arguments: str, complaint: str) -> None:
    stage = make_stage(call("functions.add", arguments), ADD, final("5."))
    events, end = stage.run(is_constrained=False)
    first, second = of_type(events, CallEnded)
    assert first.result.failure is FailureKind.INVALID_ARGUMENTS
    assert complaint in first.result.text
    assert (second.result.failure, second.result.text) == (None, "5")
    assert end.reason is StopReason.ANSWERED


def test_a_tool_that_breaks_is_answered_so(make_stage: MakeStage) -> None:
    async def do(message: Message, context: ToolContext) -> ToolResult:
        raise RuntimeError("secret path")

    stage = make_stage(DO, final("Sorry."), tools=[FakeTool(do)])
    events, end = stage.run()
    (ended,) = of_type(events, CallEnded)
    assert ended.result.failure is FailureKind.FAILED
    assert "secret path" not in ended.result.text
    assert end.reason is StopReason.ANSWERED


def test_a_tool_that_cancels_itself_does_not_stop_the_run(make_stage: MakeStage) -> None:
    async def do(message: Message, context: ToolContext) -> ToolResult:
        raise asyncio.CancelledError

    events, end = make_stage(DO, final("Sorry."), tools=[FakeTool(do)]).run()
    assert of_type(events, CallEnded)[0].result.failure is FailureKind.FAILED
    assert end.reason is StopReason.ANSWERED


@pytest.mark.parametrize("num_tokens", [24, 26])
@pytest.mark.parametrize("whose", ["turn", "run"])
def test_a_call_that_is_cut_off_is_not_made(make_stage: MakeStage, num_tokens: int, whose: str) -> None:
    tool = FakeTool(answer_with("done"))
    stage = make_stage(
        call("fake.do", '{"command": "delete everything but nothing else, and then do it all over again"}'),
        tools=[tool],
    )
    limits = Limits(max_tokens=num_tokens if whose == "run" else None)
    events, end = stage.run(limits=limits, sampling=Sampling(max_tokens=num_tokens))
    assert end.reason is StopReason.MAX_TOKENS
    assert end.conversation.messages[-1].is_call
    assert (of_type(events, CallStarted), end.num_calls) == ([], 0)


# Limits


def test_the_last_turn_may_not_call(make_stage: MakeStage) -> None:
    stage = make_stage(ADD, ADD, final("5."))
    stage.run(limits=Limits(max_turns=3))
    choices = [request.params.constraint.tool_choice for request in stage.engine.requests]  # type: ignore[union-attr]
    assert choices == [ToolChoice.AUTO, ToolChoice.AUTO, ToolChoice.NONE]


def test_a_call_in_the_last_turn_ends_the_run(make_stage: MakeStage) -> None:
    stage = make_stage(ADD, ADD)
    events, end = stage.run(limits=Limits(max_turns=2))
    assert (end.reason, end.num_turns, len(of_type(events, CallEnded))) == (StopReason.MAX_TURNS, 2, 1)


def test_calls_are_counted(make_stage: MakeStage) -> None:
    stage = make_stage(ADD, final("5."))
    _, end = stage.run(limits=Limits(max_calls=1))
    assert end.reason is StopReason.ANSWERED
    assert stage.engine.requests[1].params.constraint.tool_choice is ToolChoice.NONE  # type: ignore[union-attr]
    _, end = make_stage(ADD, ADD).run(limits=Limits(max_calls=1), is_constrained=False)
    assert end.reason is StopReason.MAX_CALLS


def test_calls_beyond_the_limit_in_one_turn_are_refused(make_stage: MakeStage) -> None:
    tool = FakeTool(answer_with("done"))
    stage = make_stage(calls(*[("fake.do", "{}")] * 3), final("ok"), tools=[tool])
    rules = TurnConstraint(tools=grammars_of(stage.tools), parallel_calls=True)
    events, end = stage.run(rules=rules, limits=Limits(max_calls=2))
    failures = {event.number: event.result.failure for event in of_type(events, CallEnded)}
    assert failures == {0: None, 1: None, 2: FailureKind.DENIED}
    assert "may make 2" in texts(end)[-2]


def test_the_tokens_of_all_turns_are_counted(make_stage: MakeStage) -> None:
    stage = make_stage(ADD, final("one two three four five six seven eight nine ten eleven twelve"))
    _, end = stage.run(limits=Limits(max_tokens=30))
    assert end.reason is StopReason.MAX_TOKENS
    assert end.usage.num_output == 30
    first, second = stage.engine.requests
    assert first.params.max_tokens == 30
    assert second.params.max_tokens == 30 - len(end.conversation.messages[-3].token_ids or ())


def test_a_turn_has_its_own_limit_too(make_stage: MakeStage) -> None:
    stage = make_stage(final("one two three four five six seven"))
    _, end = stage.run(sampling=Sampling(max_tokens=5), limits=Limits(max_tokens=100))
    assert (end.reason, end.usage.num_output) == (StopReason.MAX_TOKENS, 5)


@pytest.mark.parametrize("name", ["max_turns", "max_calls", "max_tokens", "max_parallel", "max_seconds"])
def test_limits_that_allow_nothing(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Limits(**{name: 0})
    assert caught.value.param == name


def test_the_time_of_a_run_ends_its_turn(make_stage: MakeStage) -> None:
    stage = make_stage(final("one two three four"), seconds_per_event=0.05)
    _, end = stage.run(limits=Limits(max_seconds=0.12))
    assert end.reason is StopReason.DEADLINE


def test_the_time_of_a_run_ends_its_calls(make_stage: MakeStage) -> None:
    async def do(message: Message, context: ToolContext) -> ToolResult:
        await asyncio.sleep(HANG)
        raise AssertionError

    tool = FakeTool(do)
    events, end = make_stage(DO, final("late"), tools=[tool]).run(limits=Limits(max_seconds=0.2))
    assert of_type(events, CallEnded)[0].result.failure is FailureKind.TIMEOUT
    assert end.reason is StopReason.DEADLINE
    assert tool.running == 0


# Approval


def test_approval_is_asked_with_name_and_arguments(make_stage: MakeStage) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    async def approve(name: str, arguments: dict[str, object]) -> bool:
        asked.append((name, arguments))
        return True

    stage = make_stage(ADD, call("functions.add", "no json"), final("5."))
    events, _ = stage.run(approve=approve, is_constrained=False)
    assert asked == [("functions.add", {"a": 2, "b": 3}), ("functions.add", {"input": "no json"})]
    assert of_type(events, CallEnded)[0].result.text == "5"


def test_a_call_is_told_before_approval_is_asked(make_stage: MakeStage) -> None:
    order: list[object] = []

    async def approve(name: str, arguments: dict[str, object]) -> bool:
        order.append("asked")
        return True

    stage = make_stage(ADD, final("5."))

    async def work() -> None:
        nonlocal order
        async for event in stage.loop(approve=approve).run(stage.conversation()):
            order += [type(event)]

    asyncio.run(work())
    assert [item for item in order if item in (CallStarted, "asked", CallEnded)] == [CallStarted, "asked", CallEnded]


def test_a_denied_call_is_not_made_and_the_model_is_told(make_stage: MakeStage) -> None:
    async def approve(name: str, arguments: dict[str, object]) -> bool:
        return False

    tool = FakeTool(answer_with("done"))
    events, end = make_stage(DO, final("As you wish."), tools=[tool]).run(approve=approve)
    assert tool.most_running == 0
    assert of_type(events, CallEnded)[0].result.failure is FailureKind.DENIED
    assert "did not allow" in texts(end)[-2]
    assert end.reason is StopReason.ANSWERED


def test_whoever_cannot_be_asked_has_not_allowed_it(make_stage: MakeStage, caplog: pytest.LogCaptureFixture) -> None:
    async def approve(name: str, arguments: dict[str, object]) -> bool:
        raise OSError("no terminal")

    tool = FakeTool(answer_with("done"))
    events, _ = make_stage(DO, final("ok"), tools=[tool]).run(approve=approve)
    assert (tool.most_running, of_type(events, CallEnded)[0].result.failure) == (0, FailureKind.DENIED)
    assert "asking for approval" in caplog.text


def test_an_unknown_tool_needs_no_approval(make_stage: MakeStage) -> None:
    async def approve(name: str, arguments: dict[str, object]) -> bool:
        raise AssertionError

    events, _ = make_stage(call("functions.x", "{}"), final("ok")).run(approve=approve, is_constrained=False)
    assert of_type(events, CallEnded)[0].result.failure is FailureKind.NO_SUCH_TOOL


# Tools that are the caller's


def test_a_required_call_is_required_once(make_stage: MakeStage) -> None:
    stage = make_stage(ADD, final("5."))
    rules = TurnConstraint(
        tools=grammars_of(stage.tools), tool_choice=ToolChoice.REQUIRED, response_format=JsonObject()
    )
    stage.run(rules=rules)
    first, second = (request.params.constraint for request in stage.engine.requests)
    assert isinstance(first, TurnConstraint)
    assert isinstance(second, TurnConstraint)
    assert (first.tool_choice, second.tool_choice) == (ToolChoice.REQUIRED, ToolChoice.AUTO)
    assert second.response_format == JsonObject()


# Faults of the engine


def test_a_first_prompt_that_does_not_fit_raises(make_stage: MakeStage) -> None:
    stage = make_stage(final("never"), context_length=60)
    with pytest.raises(ContextLengthError):
        stage.run(stage.conversation("word " * 200))
    assert stage.engine.requests == []


def test_a_context_that_overflows_later_ends_the_run_with_all_that_was_said(make_stage: MakeStage) -> None:
    stage = make_stage(DO, tools=[FakeTool(answer_with("word " * 500))], context_length=300)
    _, end = stage.run()
    assert end.reason is StopReason.ERROR
    assert "fit this model's context" in (end.error or "")
    assert texts(end)[-1] == "word " * 500


def test_a_full_queue_raises_at_first_and_ends_the_run_later(make_stage: MakeStage) -> None:
    stage = make_stage(final("5."), max_open=0)
    with pytest.raises(EngineOverloadedError):
        stage.run()

    def close_the_door(_: str) -> str:
        stage.engine.max_open = 0
        return ADD

    stage = make_stage(close_the_door)
    _, end = stage.run()
    assert (end.reason, end.num_calls) == (StopReason.ERROR, 1)
    assert "wait for the engine" in (end.error or "")


def test_an_engine_that_dies(make_stage: MakeStage) -> None:
    stage = make_stage(lambda _: stage.engine.die() or final("5."))
    with pytest.raises(EngineDeadError):
        stage.run()
    later = make_stage(ADD, lambda _: later.engine.die() or final("5."))
    _, end = later.run()
    assert end.reason is StopReason.ERROR
    assert "the engine died" in (end.error or "")


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (FinishReason.ERROR, StopReason.ERROR),
        (FinishReason.DEADLINE, StopReason.DEADLINE),
        (FinishReason.CANCELLED, StopReason.CANCELLED),
    ],
)
def test_a_turn_that_the_engine_ends(
    make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch, finish: FinishReason, reason: StopReason
) -> None:
    stage = make_stage(ADD)
    ids = stage.engine.tokenizer.encode_with_specials(ADD)

    def say(request: Any, index: int, text: str) -> list[OutputEvent]:
        event = OutputEvent(request.id, index, tuple(ids))
        return [event, OutputEvent(request.id, index, finish_reason=finish, error="NaN logits")]

    monkeypatch.setattr(stage.engine, "_say", say)
    events, end = stage.run()
    assert (end.reason, end.error) == (reason, "NaN logits")
    assert of_type(events, CallStarted) == []


# Cancelling


def close_at(stage: Stage, is_moment: Callable[[AgentEvent], bool], **options: Any) -> list[AgentEvent]:
    """Close a run's iterator behind the first event that fits; nothing may be left then."""
    seen: list[AgentEvent] = []

    async def work() -> None:
        async with contextlib.aclosing(stage.loop(**options).run(stage.conversation())) as events:
            async for event in events:
                seen.append(event)
                if is_moment(event):
                    break
        assert_nothing_left(stage)

    asyncio.run(asyncio.wait_for(work(), HANG))
    return seen


def never_ending_tool() -> FakeTool:
    async def do(message: Message, context: ToolContext) -> ToolResult:
        assert context.report is not None
        context.report(ToolProgress(tool="fake", text=message.text))
        await asyncio.Event().wait()
        raise AssertionError

    return FakeTool(do)


@pytest.mark.parametrize("kind", [TurnStarted, TurnDelta, TurnEnded, CallStarted, CallProgressed])
def test_closing_the_iterator_at_any_moment_leaves_nothing(make_stage: MakeStage, kind: type[Any]) -> None:
    tool = never_ending_tool()
    stage = make_stage(think("hm") + DO, tools=[tool])
    seen = close_at(stage, lambda event: isinstance(event, kind))
    assert isinstance(seen[-1], kind)
    assert tool.running == 0
    is_in_turn = kind in (TurnStarted, TurnDelta)
    assert stage.engine.cancelled == ([stage.engine.requests[0].id] if is_in_turn else [])


@pytest.mark.parametrize("num_calls", [1, 3])
@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
def test_cancelling_the_task_leaves_nothing(make_stage: MakeStage, num_calls: int, seconds: float) -> None:
    tool = never_ending_tool()
    script = think("hm") + calls(*[("fake.do", "{}")] * num_calls)
    stage = make_stage(script, tools=[tool], seconds_per_event=0.005)
    rules = TurnConstraint(tools=grammars_of(stage.tools), parallel_calls=True)

    async def consume() -> None:
        async with contextlib.aclosing(stage.loop(rules=rules).run(stage.conversation())) as events:
            async for _ in events:
                pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.sleep(seconds)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert tool.running == 0
        assert_nothing_left(stage)

    asyncio.run(main())


def test_a_cancelled_approval_is_cancelled(make_stage: MakeStage) -> None:
    asking = asyncio.Event()

    async def approve(name: str, arguments: dict[str, object]) -> bool:
        asking.set()
        await asyncio.Event().wait()
        return True

    stage = make_stage(ADD)

    async def consume() -> None:
        async for _ in stage.loop(approve=approve).run(stage.conversation()):
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asking.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(main(), HANG))


# What may be written


def test_the_grammars_of_tools(make_stage: MakeStage) -> None:
    class Raw(FakeTool):
        name = "python"
        is_builtin = True

        def declaration(self) -> Any:
            return ToolNamespace("python")

    class Browser(Raw):
        name = "browser"

        def declaration(self) -> Any:
            return ToolNamespace("browser", tools=(FunctionTool("back"),))

    do = answer_with("")
    stage = make_stage(tools=[FunctionsTool([add]), FakeTool(do), Raw(do), Browser(do)])
    found = {grammar.recipient: grammar for grammar in grammars_of(stage.tools)}
    assert list(found) == ["functions.add", "fake.do", "python", "browser.back"]
    assert list(found) == list(stage.tools.recipients())
    assert found["functions.add"].channels == found["fake.do"].channels == (Channel.COMMENTARY,)
    assert Channel.ANALYSIS in found["python"].channels
    assert not found["functions.add"].is_strict
