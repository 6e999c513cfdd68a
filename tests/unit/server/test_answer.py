"""The parts of an answer: where they begin and end, where stop strings cut them, and what is remembered of them."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.agent.turns import TurnNews
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.output_event import OutputEvent, TokenLogprob
from ossia.engine.request import FinishReason
from ossia.engine.turn import TurnReader
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.server.conversation.answer import (
    AnswerReader,
    AnswerRules,
    Ending,
    Kind,
    PartDelta,
    PartEnd,
    PartStart,
    remember,
    text_key,
)
from ossia.server.errors import ApiError
from ossia.server.replay import ReplayCache
from ossia.server.settings import ReasoningPolicy

TOKENIZER = load_tokenizer(PACKAGE_ROOT / "nano")
NEXT = "<|start|>assistant"
THINK = "<|channel|>analysis<|message|>Hm.<|end|>" + NEXT
PREAMBLE = "<|channel|>commentary<|message|>Let me look.<|end|>" + NEXT
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'


def final(text: str) -> str:
    return f"<|channel|>final<|message|>{text}<|return|>"


def read(text, *, rules=None, size=1, finish=FinishReason.STOP, has_logprobs=False):
    """All parts of an answer that comes so many tokens at a time, and its reader."""
    turn = TurnReader(TOKENIZER, num_prompt=1, tools=["functions.f"])
    names = itertools.count()
    reader = AnswerReader(
        rules or AnswerRules(ReasoningPolicy.RAW),
        reader=turn,
        tokenizer=TOKENIZER,
        new_call_id=lambda: f"call_{next(names)}",
    )
    ids = TOKENIZER.encode_with_specials(text)
    chunks = [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
    parts = []
    for i, chunk in enumerate(chunks):
        is_last = i == len(chunks) - 1
        logprobs = tuple(TokenLogprob(token, -1.0, 1, ()) for token in chunk) if has_logprobs else None
        event = OutputEvent("r", 0, chunk, logprobs=logprobs, finish_reason=finish if is_last else None)
        parts += reader.read(TurnNews(0, turn.push(event), logprobs, is_last))
    return parts, reader


def text_of(parts, kind=Kind.TEXT) -> str:
    found, current = "", None
    for part in parts:
        if isinstance(part, PartStart):
            current = part.kind
        elif isinstance(part, PartDelta) and current is kind:
            found += part.text
    return found


@pytest.mark.parametrize("size", [1, 3, 100])
def test_parts_come_in_order_with_their_messages(size):
    parts, reader = read(THINK + PREAMBLE + CALL, size=size)
    kinds = [part.kind for part in parts if isinstance(part, PartStart)]
    assert kinds == [Kind.THOUGHT, Kind.TEXT, Kind.CALL]
    assert [part.message.text for part in parts if isinstance(part, PartEnd)] == ["Hm.", "Let me look.", '{"a":1}']
    assert text_of(parts, Kind.CALL) == '{"a":1}'
    assert [call_id for call_id, _ in reader.said] == ["", "", "call_0"]
    assert reader.ending is Ending.CALL


@pytest.mark.parametrize("policy", [ReasoningPolicy.HIDDEN, ReasoningPolicy.SUMMARY])
def test_thoughts_are_not_shown_unless_raw(policy):
    parts, _ = read(THINK + final("Hello"), rules=AnswerRules(policy))
    assert text_of(parts, Kind.THOUGHT) == ""
    assert text_of(parts) == "Hello"


def test_a_preamble_can_count_as_a_thought():
    parts, _ = read(PREAMBLE + final("{}"), rules=AnswerRules(ReasoningPolicy.HIDDEN, shows_preambles=False))
    assert text_of(parts) == "{}"


def test_one_call_ends_a_turn_without_parallel_calls():
    parts, reader = read(CALL + NEXT + CALL, rules=AnswerRules(ReasoningPolicy.RAW, is_parallel=False), size=100)
    assert len([part for part in parts if isinstance(part, PartStart)]) == 1
    assert reader.ending is Ending.CALL


@pytest.mark.parametrize(
    ("finish", "ending"),
    [(FinishReason.LENGTH, Ending.LENGTH), (FinishReason.ERROR, Ending.FAILED), (FinishReason.DEADLINE, Ending.FAILED)],
)
def test_how_answers_end(finish, ending):
    parts, reader = read("<|channel|>final<|message|>Hel", finish=finish)
    assert reader.ending is ending
    assert [part.is_whole for part in parts if isinstance(part, PartEnd)] == [finish is not FinishReason.LENGTH]
    if ending is Ending.FAILED:
        with pytest.raises(ApiError) as caught:
            reader.check()
        assert caught.value.info.status == 500
    else:
        reader.check()


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="ab n\U0001f600", max_size=30),
    st.lists(st.text(alphabet="ab n\U0001f600", min_size=1, max_size=4), max_size=3, unique=True),
    st.integers(1, 4),
)
def test_stop_strings_cut_where_the_first_is_complete(text, stops, size):
    rules = AnswerRules(ReasoningPolicy.RAW, stop=tuple(stops))
    parts, reader = read(final(text), rules=rules, size=size)
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if ends:
        end, length, stop = min(ends)
        assert (text_of(parts), reader.stop, reader.ending) == (text[: end + length], stop, Ending.STOP_STRING)
        assert not reader.said
    else:
        assert (text_of(parts), reader.stop, reader.ending) == (text, None, Ending.STOP)


def test_logprobs_follow_the_text_they_belong_to():
    rng = random.Random(1)
    for _ in range(50):
        text = "".join(rng.choice(["a", "b ", "snø", "\U0001f600"]) for _ in range(rng.randint(1, 8)))
        rules = AnswerRules(ReasoningPolicy.RAW, stop=("zz",) if rng.random() < 0.5 else ())
        parts, _ = read(THINK + final(text), rules=rules, has_logprobs=True)
        entries = [entry for part in parts if isinstance(part, PartDelta) for entry in part.logprobs]
        assert [entry.token_id for entry in entries] == list(TOKENIZER.encode(text))


def test_what_was_said_is_remembered_by_id_and_by_text():
    _, reader = read(THINK + PREAMBLE + CALL)
    cache = ReplayCache()
    remember(cache, owner="a", said=reader.said)
    found = cache.find("a", "call_0")
    assert [message.text for message in found.reasoning] == ["Hm.", "Let me look."]
    assert found.message.token_ids == tuple(TOKENIZER.encode_with_specials(NEXT + CALL))
    assert cache.find("b", "call_0") is None
    _, reader = read(THINK + final("Hello"))
    remember(cache, owner="a", said=reader.said)
    assert cache.find("a", text_key("Hello", is_final=True)).reasoning == ()
    assert cache.find("a", text_key("Hello", is_final=False)) is None
