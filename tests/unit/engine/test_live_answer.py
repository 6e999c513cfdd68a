"""Turns with several calls, which end by a mark that must not be told, and what waits for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ossia.engine.completion import Collector
from ossia.engine.constraint import ToolChoice, ToolGrammar, TurnConstraint
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.engine.turn import TurnReader, finish_turn
from ossia.harmony.events import FinishReason as TurnFinish
from ossia.harmony.tokenizer import Tokenizer

TOOL = ToolGrammar.function("f", parameters={"type": "object", "properties": {}, "additionalProperties": False})


@pytest.mark.parametrize("seed", range(8))
def test_parallel_calls_of_random_weights_parse_without_repair(
    make_engine: Callable[..., Engine], tokenizer: Tokenizer, seed: int
) -> None:
    rules = TurnConstraint(
        tools=(TOOL,), tool_choice=ToolChoice.REQUIRED, parallel_calls=True, max_calls=3, has_preambles=False
    )
    # Random weights would hardly ever end their reasoning.
    params = SamplingParams(
        temperature=1.0,
        seed=seed,
        max_tokens=240,
        logprobs=0,
        logit_bias={tokenizer.end: 100.0, tokenizer.call: 100.0},
        constraint=rules,
    )
    engine = make_engine()
    request = Request(id="a", prompt_ids=(50, 51, 52), params=params)
    engine.add(request)
    collector, reader = Collector(request), TurnReader(tokenizer, num_prompt=3, tools=["functions.f"])
    while engine.has_work:
        for event in engine.step():
            collector.push(event)
            reader.push(event)
    answer = collector.result().answers[0]
    turn = finish_turn(reader)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    assert turn.repairs == () or answer.finish_reason is FinishReason.LENGTH
    if answer.finish_reason is FinishReason.STOP:
        assert 1 <= len(turn.calls) <= 3
        assert turn.finish_reason is TurnFinish.TOOL_CALL
        assert answer.token_ids[-1] == tokenizer.call
