from __future__ import annotations

import pytest

from ossia.engine.output_event import OutputEvent
from ossia.engine.request import FinishReason as EngineFinish
from ossia.engine.turn import TurnReader, finish_turn
from ossia.harmony.events import ContentDelta, FinishReason, MessageEnd, MessageStart
from ossia.harmony.tokenizer import Tokenizer

SAID = (
    "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
    '<|constrain|>json<|message|>{"a": 2}<|call|>'
)
ANSWERED = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"


def events_of(tokenizer: Tokenizer, text: str, *, size: int, end: EngineFinish | None) -> list[OutputEvent]:
    ids = tokenizer.encode_with_specials(text)
    events = [OutputEvent("r", 0, tuple(ids[i : i + size]), num_cached=16) for i in range(0, len(ids), size)]
    if end is not None:
        events[-1] = events[-1]._replace(finish_reason=end)
    return events


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_events_become_messages_whatever_steps_they_came_in(tokenizer: Tokenizer, size: int) -> None:
    reader = TurnReader(tokenizer, num_prompt=20, tools=["functions.add"])
    said = [
        part for event in events_of(tokenizer, SAID, size=size, end=EngineFinish.STOP) for part in reader.push(event)
    ]
    turn = finish_turn(reader)
    assert [type(part) for part in said if not isinstance(part, ContentDelta)] == [MessageStart, MessageEnd] * 2
    assert turn.reasoning == "Two and two."
    assert [call.recipient for call in turn.calls] == ["functions.add"]
    assert turn.finish_reason is FinishReason.TOOL_CALL
    assert turn.engine_finish is EngineFinish.STOP
    assert turn.repairs == ()


def test_usage_counts_reasoning_with_its_headers(tokenizer: Tokenizer) -> None:
    reader = TurnReader(tokenizer, num_prompt=20)
    for event in events_of(tokenizer, ANSWERED, size=1, end=EngineFinish.STOP):
        reader.push(event)
    ids = tokenizer.encode_with_specials(ANSWERED)
    num_reasoning = ids.index(tokenizer.end) + 1
    # The channel's name is read before anyone can know that it is reasoning: the message counts from `<|message|>` on.
    counted = reader.usage.num_reasoning
    assert num_reasoning - ids.index(tokenizer.message) == counted
    assert reader.usage[:3] == (20, 16, len(ids))
    assert finish_turn(reader).text == "It is 4."
    assert reader.is_done


def test_a_turn_cut_off_keeps_what_was_said(tokenizer: Tokenizer) -> None:
    reader = TurnReader(tokenizer, num_prompt=20)
    for event in events_of(tokenizer, ANSWERED[:-20], size=3, end=EngineFinish.LENGTH):
        reader.push(event)
    turn = finish_turn(reader)
    assert turn.finish_reason is FinishReason.LENGTH
    assert turn.reasoning == "Hm."


def test_an_error_of_the_engine_is_kept(tokenizer: Tokenizer) -> None:
    reader = TurnReader(tokenizer, num_prompt=20)
    reader.push(OutputEvent("r", 0, finish_reason=EngineFinish.ERROR, error="the logits hold NaN"))
    turn = finish_turn(reader)
    assert turn.engine_finish is EngineFinish.ERROR
    assert turn.error == "the logits hold NaN"
    assert turn.messages == ()
