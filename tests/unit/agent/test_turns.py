"""The joint between conversations and the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from tests.unit.agent.conftest import HANG, IDENTITY, final, think

from ossia.agent.turns import RunningTurn, Sampling, ServedModel, TurnNews, Turns
from ossia.core.errors import ContextLengthError, EngineDeadError, EngineOverloadedError, InvalidInputError
from ossia.engine.request import FinishReason, SamplingParams
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.content import SystemContent
from ossia.harmony.events import ContentDelta
from ossia.harmony.message import Conversation, Message, Role
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import SamplingDefaults

QUESTION = Conversation((Message(Role.SYSTEM, content=SystemContent()), Message(Role.USER, content="Hello?")))


def make_turns(tokenizer: Tokenizer, says: str = final("Hello."), **engine: Any) -> tuple[Turns, ScriptedEngine]:
    scripted = ScriptedEngine(tokenizer, script=lambda _: says, **engine)
    model = ServedModel(
        name="m",
        tokenizer=tokenizer,
        identity=IDENTITY,
        context_length=scripted.context_length,
        sampling=SamplingDefaults(temperature=0.5, top_p=0.9, max_tokens=300),
    )
    return Turns(scripted, model=model), scripted


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, HANG))


async def start(turns: Turns, **sampling: Any) -> RunningTurn:
    prompt = await turns.encode(QUESTION)
    return await turns.start(turns.request(prompt, sampling=Sampling(**sampling), owner="me", request_id="1"))


def test_prompts_are_what_the_renderer_makes_also_long_ones(tokenizer: Tokenizer) -> None:
    turns, _ = make_turns(tokenizer, context_length=200_000)
    assert run(turns.encode(QUESTION)) == tuple(render(QUESTION, tokenizer=tokenizer))
    long = Conversation((*QUESTION.messages, Message(Role.USER, content="word " * 20_000)))
    assert run(turns.encode(long)) == tuple(render(long, tokenizer=tokenizer))


def test_a_prompt_must_leave_room_for_one_token(tokenizer: Tokenizer) -> None:
    size = len(render(QUESTION, tokenizer=tokenizer))
    assert len(run(make_turns(tokenizer, context_length=size + 1)[0].encode(QUESTION))) == size
    with pytest.raises(ContextLengthError) as caught:
        run(make_turns(tokenizer, context_length=size)[0].encode(QUESTION))
    assert (caught.value.num_tokens, caught.value.limit) == (size, size - 1)


def test_what_was_not_chosen_is_the_models_default() -> None:
    defaults = SamplingDefaults(temperature=0.5, top_p=0.9, max_tokens=300)
    assert Sampling().resolve(defaults, room=1000) == SamplingParams(temperature=0.5, top_p=0.9, max_tokens=300)
    chosen = Sampling(temperature=0.0, top_p=1.0, max_tokens=7, seed=3, stop=("x",), n=2)
    assert chosen.resolve(defaults, room=1000) == SamplingParams(
        temperature=0.0, top_p=1.0, max_tokens=7, seed=3, stop=("x",), n=2
    )


@pytest.mark.parametrize(("wanted", "default", "given"), [(None, None, 50), (80, None, 50), (None, 80, 50), (9, 80, 9)])
def test_the_number_of_tokens_is_clamped_to_the_room(wanted: int | None, default: int | None, given: int) -> None:
    assert Sampling(max_tokens=wanted).resolve(SamplingDefaults(max_tokens=default), room=50).max_tokens == given


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_tokens", "n"])
def test_a_value_out_of_range_names_the_parameter(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Sampling(**{name: -1}).resolve(SamplingDefaults(), room=10)  # type: ignore[arg-type] # each is a number
    assert caught.value.param == name


def test_a_request_belongs_to_its_owner_and_has_its_time(tokenizer: Tokenizer) -> None:
    turns, _ = make_turns(tokenizer)
    request = turns.request((1, 2), sampling=Sampling(), owner="me", request_id="7", deadline=5.0)
    assert (request.id, request.cache_salt, request.deadline, request.prompt_ids) == ("7", "me", 5.0, (1, 2))


def test_a_turn_from_its_start_to_its_result(tokenizer: Tokenizer) -> None:
    async def work() -> None:
        turns, engine = make_turns(tokenizer, think("hm") + final("Hello."), num_cached=5)
        async with await start(turns) as turn:
            news = [item async for item in turn]
            result = turn.result()
        said = "".join(part.text for item in news for part in item.events if isinstance(part, ContentDelta))
        assert said == "hmHello."
        assert [item.is_last for item in news] == [False] * (len(news) - 1) + [True]
        assert (result.text, result.reasoning, result.engine_finish) == ("Hello.", "hm", FinishReason.STOP)
        assert result.usage.num_cached == 5
        assert turn.num_tokens == result.usage.num_prompt + result.usage.num_output
        assert (engine.open, engine.cancelled) == (set(), [])

    run(work())


def test_leaving_early_cancels(tokenizer: Tokenizer) -> None:
    async def work() -> None:
        turns, engine = make_turns(tokenizer)
        async with await start(turns) as turn:
            await anext(turn)
        assert (engine.open, engine.cancelled) == (set(), ["1"])

    run(work())


def test_cancel_ends_the_turn_with_what_there_is(tokenizer: Tokenizer) -> None:
    async def work() -> None:
        turns, _ = make_turns(tokenizer, final("one two three four five"))
        async with await start(turns) as turn:
            async for item in turn:
                if any(isinstance(part, ContentDelta) for part in item.events):
                    turn.cancel()
            result = turn.result()
        assert result.engine_finish is FinishReason.CANCELLED
        assert result.text.startswith("one")
        assert "five" not in result.text

    run(work())


def test_several_answers_each_have_their_reader(tokenizer: Tokenizer) -> None:
    async def work() -> None:
        turns, _ = make_turns(tokenizer)
        async with await start(turns, n=3) as turn:
            news = [item async for item in turn]
        assert [item.answer for item in news if item.is_last] == [0, 1, 2]
        assert [turn.result(i).text for i in range(3)] == ["Hello."] * 3

    run(work())


def test_with_logprobs_each_token_has_its_own_news(tokenizer: Tokenizer) -> None:
    async def work() -> list[TurnNews]:
        turns, _ = make_turns(tokenizer, tokens_per_event=4)
        async with await start(turns, logprobs=2) as turn:
            return [item async for item in turn]

    news = run(work())
    ids = tokenizer.encode_with_specials(final("Hello."))
    assert [len(item.logprobs) for item in news] == [1] * len(ids)
    assert [item.logprobs[0].token_id for item in news] == ids


def test_a_model_that_speaks_for_the_user_is_stopped(tokenizer: Tokenizer) -> None:
    says = "<|channel|>final<|message|>Hi<|end|><|start|>user<|message|>And now something long " + "x " * 100

    async def work() -> None:
        turns, engine = make_turns(tokenizer, says)
        async with await start(turns) as turn:
            _ = [item async for item in turn]
            result = turn.result()
        assert (result.text, result.engine_finish) == ("Hi", FinishReason.STOP)
        assert result.usage.num_output < 12
        assert (engine.cancelled, engine.open) == (["1"], set())
        assert engine.repairs == {"made_up_turn": 1}

    run(work())


def test_what_is_wrong_is_told_before_the_first_token(tokenizer: Tokenizer) -> None:
    async def full() -> None:
        await start(make_turns(tokenizer, max_open=0)[0])

    async def dead() -> None:
        turns, engine = make_turns(tokenizer)
        engine.die()
        await start(turns)

    with pytest.raises(EngineOverloadedError):
        run(full())
    with pytest.raises(EngineDeadError):
        run(dead())


def test_an_engine_that_dies_during_a_turn(tokenizer: Tokenizer) -> None:
    async def work() -> None:
        turns, engine = make_turns(tokenizer)
        async with await start(turns) as turn:
            await anext(turn)
            engine.die()
            _ = [item async for item in turn]

    with pytest.raises(EngineDeadError):
        run(work())
