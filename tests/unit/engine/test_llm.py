from __future__ import annotations

import pytest

from ossia.core.errors import InvalidInputError
from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import FinishReason, SamplingParams
from ossia.harmony.message import Channel, Conversation, Effort, Message, Role
from ossia.harmony.render import render
from ossia.model.generate import GenerationOptions, generate
from ossia.model.loading import LoadedModel

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)


@pytest.fixture
def llm(loaded: LoadedModel) -> LLM:
    return LLM(loaded, config=EngineConfig(num_pages=128, page_size=4, max_queue=3))


def test_completions_come_in_the_order_of_the_prompts_even_if_the_queue_is_short(llm: LLM, loaded: LoadedModel) -> None:
    prompts = [f"text number {index}" for index in range(10)]
    done = llm.generate(prompts, GREEDY, progress=False)
    for prompt, completion in zip(prompts, done, strict=True):
        ids = tuple(loaded.tokenizer.encode(prompt))
        assert completion.prompt_ids == ids
        options = GenerationOptions(temperature=0.0, max_tokens=6, stop_ids=loaded.stop_ids)
        assert completion.token_ids == tuple(generate(loaded.model, ids, options=options))


def test_prompts_may_be_ids_and_params_one_for_each(llm: LLM) -> None:
    first, second = llm.generate([[50, 51], (60,)], [GREEDY, SamplingParams(temperature=0.0, max_tokens=2)])
    assert first.prompt_ids == (50, 51)
    assert len(second.token_ids) == 2


def test_without_params_the_models_defaults_count(llm: LLM) -> None:
    (done,) = llm.generate(["Hello"], progress=False)
    assert len(done.token_ids) <= 8  # max_new_tokens of the model's generation config
    assert llm.default_params().temperature == 0.0


def test_what_looks_like_a_control_token_in_a_text_is_text(llm: LLM, loaded: LoadedModel) -> None:
    (done,) = llm.generate(["<|return|>"], GREEDY)
    assert loaded.tokenizer.return_ not in done.prompt_ids


def test_chat_renders_a_question_with_the_models_own_opening(llm: LLM, loaded: LoadedModel) -> None:
    question = Message(role=Role.USER, content="Hi")
    opening = loaded.opening(effort=Effort.HIGH, instructions="Be brief.")
    ids = render(Conversation((*opening, question)), tokenizer=loaded.tokenizer, next_role="assistant")
    (by_question,) = llm.chat(["Hi"], GREEDY, effort="high", instructions="Be brief.")
    (by_conversation,) = llm.chat([Conversation((*opening, question))], GREEDY)
    assert by_question.usage.num_prompt == len(ids)
    assert by_question.messages == by_conversation.messages
    assert by_question.engine_finish is FinishReason.LENGTH


def test_repairs_of_chats_are_counted(llm: LLM) -> None:
    turns = llm.chat(["a", "b"], SamplingParams(temperature=1.0, seed=1, max_tokens=20))
    assert sum(llm.engine.snapshot().parser_repairs.values()) == sum(len(turn.repairs) for turn in turns)


@pytest.mark.parametrize("params", [[GREEDY], [GREEDY] * 3])
def test_params_of_another_number_than_prompts_are_refused(llm: LLM, params: list[SamplingParams]) -> None:
    with pytest.raises(InvalidInputError, match="2 prompts"):
        llm.generate(["a", "b"], params)


def test_one_bad_prompt_refuses_the_call_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidInputError, match="vocabulary"):
        llm.generate([[5], [10**6]], GREEDY)
    assert llm.engine.snapshot().num_requests == 0


def test_an_interrupted_call_leaves_the_engine_clean(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm.engine.step
    calls = iter(range(100))

    def interrupted() -> object:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], GREEDY)
    assert not llm.engine.has_work
    assert len(llm.generate(["a"], GREEDY)) == 1


def test_nano_answers_a_question() -> None:
    llm = LLM("nano", device="cpu", config=EngineConfig(num_pages=512))
    (turn,) = llm.chat(["What is 17 + 25?"], SamplingParams(temperature=0.0, max_tokens=200), progress=False)
    assert "42" in turn.text
    assert turn.reasoning
    assert turn.messages[-1].channel is Channel.FINAL
    assert not turn.repairs
    assert 0 < turn.usage.num_reasoning < turn.usage.num_output
