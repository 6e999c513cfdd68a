"""Any script, any limits, stopped anywhere: what always holds of a run."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.agent.conftest import HANG, Stage, add, assert_nothing_left, call, final, think

from ossia.agent.events import AgentEvent, CallEnded, CallStarted, RunEnded, StopReason, TurnEnded, TurnStarted
from ossia.agent.loop import Limits, grammars_of
from ossia.agent.turns import Sampling
from ossia.engine.constraint import ToolGrammar, TurnConstraint
from ossia.harmony.message import Role
from ossia.harmony.tokenizer import Tokenizer
from ossia.tools.functions import FunctionsTool


def rarely(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    """None three times out of four: each of several limits hides what the others would bring about."""
    return st.integers(0, 3).flatmap(lambda n: strategy if n == 3 else st.none())


CALLS = st.sampled_from(
    [
        call("functions.add", '{"a": 2, "b": 3}'),
        call("functions.add", '{"a": "x"}'),
        call("functions.add", "not json"),
        call("functions.nothing", "{}"),
        call("theirs.tool", "{}"),
        "<|channel|>analysis to=python<|message|>print(1)<|call|>",
    ]
)
ENDS = st.sampled_from(
    [final("done"), "", "<|channel|>final<|message|>cut", "<|return|>", "no header at all<|return|>"]
)
TURNS = st.one_of(
    ENDS,
    st.builds(lambda thought, *said: think(thought) + "<|start|>assistant".join(said), st.just("hm"), CALLS),
    st.lists(CALLS, min_size=1, max_size=3).map("<|start|>assistant".join),
)
LIMITS = st.builds(
    Limits,
    max_turns=st.integers(1, 4),
    max_calls=rarely(st.integers(1, 3)),
    max_tokens=rarely(st.integers(1, 80)),
    max_parallel=st.integers(1, 2),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    says=st.lists(TURNS, max_size=4),
    limits=LIMITS,
    own_limit=rarely(st.integers(1, 40)),
    is_constrained=st.sampled_from([True, True, False]),
    stop_after=rarely(st.integers(1, 60)),
)
def test_what_always_holds(
    tokenizer: Tokenizer,
    says: list[str],
    limits: Limits,
    own_limit: int | None,
    is_constrained: bool,
    stop_after: int | None,
) -> None:
    stage = Stage(tokenizer, [*says, final("end")], tools=[FunctionsTool([add])])
    rules = TurnConstraint(tools=(*grammars_of(stage.tools), ToolGrammar.custom("theirs.tool")), parallel_calls=True)
    loop = stage.loop(
        rules=rules, limits=limits, sampling=Sampling(max_tokens=own_limit), is_constrained=is_constrained
    )
    before = stage.conversation()
    seen: list[AgentEvent] = []

    async def work() -> None:
        async with contextlib.aclosing(loop.run(before)) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == stop_after:
                    break
        assert_nothing_left(stage)

    asyncio.run(asyncio.wait_for(work(), HANG))
    if stop_after is None:
        check_whole_run(seen, num_before=len(before.messages), limits=limits, stage=stage)


def check_whole_run(seen: list[AgentEvent], *, num_before: int, limits: Limits, stage: Stage) -> None:
    def of_type(kind: type[Any]) -> list[Any]:
        return [event for event in seen if isinstance(event, kind)]

    end = seen[-1]
    assert isinstance(end, RunEnded)
    assert len(of_type(RunEnded)) == 1
    assert len(of_type(TurnStarted)) == len(of_type(TurnEnded)) == end.num_turns <= limits.max_turns
    assert [event.number for event in of_type(CallStarted)] == list(range(end.num_calls))
    assert sorted(event.number for event in of_type(CallEnded)) == list(range(end.num_calls))
    if limits.max_tokens is not None:
        assert end.usage.num_output <= limits.max_tokens
    said = [message for event in of_type(TurnEnded) for message in event.turn.messages]
    new = end.conversation.messages[num_before:]
    assert [message for message in new if message.role is Role.ASSISTANT] == said
    results = {event.number: event.result for event in of_type(CallEnded)}
    told = [message for message in new if message.role is Role.TOOL]
    assert told == [message for number in sorted(results) for message in results[number].messages]
    assert (end.reason is StopReason.CALLS_PENDING) == bool(end.pending)
    for first, second in zip(stage.engine.requests, stage.engine.requests[1:], strict=False):
        assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids, "within a run prompts only grow"
