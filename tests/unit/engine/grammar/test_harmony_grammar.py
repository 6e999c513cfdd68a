from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import (
    Choice,
    JsonObject,
    JsonSchema,
    Lark,
    OutputGrammar,
    Reasoning,
    Regex,
    ToolChoice,
    ToolGrammar,
    TurnConstraint,
)
from ossia.harmony.builtin_tools import BROWSER
from ossia.harmony.message import Channel
from ossia.harmony.parse import FinishReason, parse

WEATHER = ToolGrammar.function(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = ToolGrammar.function("get_time")
PYTHON = ToolGrammar.builtin("python")
SEARCH = ToolGrammar.builtin("browser.search", parameters=BROWSER.tools[0].parameters)
SUM = ToolGrammar.custom("custom.sum", grammar=Lark('start: NUM ("+" NUM){0,3}\nNUM: /[0-9]{1,3}/'))
TOOLS = (WEATHER, TIME, PYTHON, SEARCH, SUM)
NAMES = [tool.recipient for tool in TOOLS]
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
PREAMBLE = "<|channel|>commentary<|message|>I'll look it up.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It is sunny.<|return|>"
TIME_CALL = "<|channel|>commentary to=functions.get_time <|constrain|>json<|message|>{}<|call|>"
CITY_CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Rome"}<|call|>'
AUTO = TurnConstraint(tools=TOOLS)


@pytest.mark.parametrize(
    "text",
    [
        FINAL,
        THOUGHT + FINAL,
        THOUGHT + THOUGHT + PREAMBLE + FINAL,
        CITY_CALL,
        THOUGHT + PREAMBLE + THOUGHT + TIME_CALL,
        "<|channel|>commentary to=functions.get_time json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.get_time<|message|>{}<|call|>",
        " to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        THOUGHT + " to=functions.get_time<|channel|>commentary json<|message|>{}<|call|>",
        "<|channel|>analysis to=python code<|message|>print(1)\n<|call|>",
        " to=python<|channel|>analysis code<|message|><|call|>",
        "<|channel|>commentary to=python<|message|>print('<|call|>'[0])".replace("<|call|>'[0]", "x'[0]") + "<|call|>",
        '<|channel|>analysis to=browser.search code<|message|>{"query": "gpt-oss"}<|call|>',
        "<|channel|>commentary to=custom.sum<|message|>1+22+333<|call|>",
    ],
)
def test_what_a_turn_may_be(grammars: Any, text: str) -> None:
    matcher = grammars.compile(AUTO)
    assert grammars.takes(matcher, text)
    assert matcher.is_finished
    assert matcher.num_excess == 0
    assert parse(grammars.tokenizer.encode_with_specials(text), tokenizer=grammars.tokenizer, tools=NAMES).repairs == ()


@pytest.mark.parametrize(
    "text",
    [
        "It is sunny.",
        "<|message|>",
        "<|start|>assistant",
        "<|channel|>finale",
        "<|channel|><|message|>",
        "<|channel|>final <|constrain|>json<|message|>",  # the answer is not JSON
        "<|channel|>final<|message|>x<|end|>",
        "<|channel|>final<|message|>x<|call|>",
        "<|channel|>final<|message|>x<|endoftext|>",
        "<|channel|>analysis<|message|>x<|return|>",
        "<|channel|>analysis<|message|>x<|end|><|start|>user",
        "<|channel|>analysis<|message|>x<|end|><|channel|>",
        "<|channel|>analysis<|message|>x<|channel|>",
        "<|channel|>commentary json",
        "<|channel|>commentary to=functions.get_tim<",
        "<|channel|>commentary to=functions.other",
        "<|channel|>commentary to=get_time",
        "<|channel|>analysis to=functions.get_time",
        "<|channel|>commentary to=functions.get_time code",
        "<|channel|>commentary to=functions.get_time<|message|><|call|>",
        '<|channel|>commentary to=functions.get_time<|message|>{"a": 1}',
        '<|channel|>commentary to=functions.get_weather<|message|>{"town":',
        '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Rome"}<|end|>',
        "<|channel|>commentary to=functions.get_time<|message|>{}<|call|><|start|>",
        "<|channel|>commentary to=custom.sum<|message|>1+x",
        " to=functions.get_time<|channel|>analysis",
        " to=functions.get_time<|message|>",
    ],
)
def test_what_a_turn_may_not_be(grammars: Any, text: str) -> None:
    assert not grammars.takes(grammars.compile(AUTO), text)


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"tool_choice": ToolChoice.NONE}, [FINAL, THOUGHT + FINAL], [TIME_CALL, PREAMBLE, " to="]),
        ({"tool_choice": ToolChoice.REQUIRED}, [TIME_CALL, THOUGHT + PREAMBLE + CITY_CALL], [FINAL, THOUGHT + FINAL]),
        (
            {"tool_choice": ToolChoice.REQUIRED, "allowed_tools": ("functions.get_time",)},
            [TIME_CALL],
            [CITY_CALL, FINAL, "<|channel|>analysis to=python"],
        ),
        ({"allowed_tools": ("functions.get_time",)}, [TIME_CALL, FINAL], [CITY_CALL]),
        ({"reasoning": Reasoning.NONE}, [FINAL, TIME_CALL, PREAMBLE + TIME_CALL], [THOUGHT]),
        ({"reasoning": Reasoning.REQUIRED}, [THOUGHT + FINAL, THOUGHT + TIME_CALL], [FINAL, TIME_CALL, PREAMBLE]),
        ({"has_preambles": False}, [FINAL, THOUGHT + TIME_CALL], [PREAMBLE]),
        ({"tools": ()}, [FINAL, THOUGHT + FINAL], [TIME_CALL, PREAMBLE]),
        (
            {"response_format": JsonObject(), "tools": ()},
            ["<|channel|>final<|message|>{}<|return|>", "<|channel|>final <|constrain|>json<|message|>{}<|return|>"],
            [FINAL, "<|channel|>final json"],
        ),
        (
            {"response_format": Choice(("yes", "no"))},
            ["<|channel|>final<|message|>yes<|return|>", TIME_CALL],
            [FINAL, "<|channel|>final<|message|>yes, no", "<|channel|>final <|constrain|>json"],
        ),
    ],
)
def test_choices(grammars: Any, fields: dict[str, Any], good: list[str], bad: list[str]) -> None:
    constraint = TurnConstraint(**{"tools": TOOLS, **fields})
    for text in good:
        matcher = grammars.compile(constraint)
        assert grammars.takes(matcher, text), text
        assert matcher.is_finished
    for text in bad:
        assert not grammars.takes(grammars.compile(constraint), text), text


def test_several_calls(grammars: Any) -> None:
    constraint = TurnConstraint(tools=TOOLS, parallel_calls=True, max_calls=3)
    again = TIME_CALL + "<|start|>assistant"
    for text in (TIME_CALL, again + CITY_CALL):
        matcher = grammars.compile(constraint)
        assert grammars.takes(matcher, text)
        assert matcher.is_accepting
        assert not matcher.is_finished
        # The model may wait for the results: the tool's message would come next.
        assert grammars.takes(matcher, "<|start|>")
        assert matcher.advance(grammars.tokenizer.encode("functions.get_time")[0])
        assert matcher.is_finished
        assert matcher.num_excess == 2
    matcher = grammars.compile(constraint)
    assert grammars.takes(matcher, again + again + CITY_CALL)
    assert matcher.is_finished
    assert matcher.num_excess == 0
    assert not grammars.takes(grammars.compile(constraint), again + FINAL)
    assert not grammars.takes(grammars.compile(constraint), again + THOUGHT)


def test_headers_are_cut_into_tokens_as_the_tokenizer_cuts_them(grammars: Any) -> None:
    letter = grammars.tokenizer.encode("a")[0]
    matcher = grammars.compile(AUTO)
    assert grammars.takes(matcher, "<|channel|>")
    assert letter not in grammars.allowed(matcher)
    firsts = {grammars.tokenizer.encode(channel)[0] for channel in Channel}
    assert grammars.allowed(matcher) == firsts
    # In bodies any cut will do.
    assert grammars.takes(matcher, "commentary to=functions.get_weather<|message|>")
    for byte in b'{"city":"Rome"}':
        token_id = grammars.tokenizer.vocabulary.ranks[bytes([byte])]
        assert token_id in grammars.allowed(matcher)
        assert matcher.advance(token_id)


@pytest.mark.parametrize("name", ["to=x", "a/to=functions.b"])
def test_names_that_the_parser_would_misread(grammars: Any, name: str) -> None:
    with pytest.raises(InvalidInputError, match="misread") as caught:
        grammars.compile(TurnConstraint(tools=(ToolGrammar.function(name),)))
    assert caught.value.param == "tools"


def test_names_that_contain_one_another(grammars: Any) -> None:
    tools = tuple(ToolGrammar.function(name) for name in ("f", "f.g", "f_json", "fjson", "f-1"))
    for tool in tools:
        text = f"<|channel|>commentary to={tool.recipient} <|constrain|>json<|message|>{{}}<|call|>"
        assert grammars.takes(grammars.compile(TurnConstraint(tools=tools)), text)


def test_many_tools(grammars: Any) -> None:
    tools = tuple(ToolGrammar.function(f"do_{i}_things", parameters=WEATHER.arguments.schema) for i in range(128))  # type: ignore[union-attr]
    matcher = grammars.compile(TurnConstraint(tools=tools))
    text = '<|channel|>commentary to=functions.do_127_things <|constrain|>json<|message|>{"city": "Rome"}<|call|>'
    assert grammars.takes(matcher, text)
    assert matcher.is_finished


# ---- random turns ----

FORMATS: list[OutputGrammar | None] = [None, JsonObject(), JsonSchema({"enum": ["a", 1, None]}), Regex("[a-c]{1,5}")]


@st.composite
def constraints(draw: st.DrawFn) -> TurnConstraint:
    tools = tuple(tool for tool in TOOLS if draw(st.booleans()))
    names = [tool.recipient for tool in tools]
    allowed = draw(st.none() | st.lists(st.sampled_from(names), min_size=1, unique=True)) if names else None
    choices = list(ToolChoice) if names else [ToolChoice.AUTO, ToolChoice.NONE]
    form = draw(st.sampled_from(FORMATS))
    return TurnConstraint(
        tools=tools,
        tool_choice=draw(st.sampled_from(choices)),
        allowed_tools=None if allowed is None else tuple(allowed),
        reasoning=draw(st.sampled_from(list(Reasoning))),
        has_preambles=draw(st.booleans()),
        parallel_calls=draw(st.booleans()),
        max_calls=draw(st.none() | st.integers(1, 3)),
        **({} if form is None else {"response_format": form}),
    )


def write_turn(grammars: Any, constraint: TurnConstraint, seed: int) -> tuple[list[int], Any]:
    """A random turn; control tokens, and what closes JSON, grow likelier with its length."""
    rng = np.random.default_rng(seed)
    tokenizer = grammars.tokenizer
    matcher = grammars.compile(constraint)
    ids: list[int] = []
    while not matcher.is_finished and len(ids) < 400:
        allowed = sorted(grammars.allowed(matcher))
        assert matcher.error is None
        specials = [i for i in allowed if tokenizer.is_special(i)]
        closing = [i for i in allowed if set(tokenizer.token_bytes(i)) <= set(b'"}]')]
        pool = specials if specials and rng.random() < 0.3 else allowed
        if len(ids) > 60:
            pool = specials or closing or allowed
            ends = [i for i in specials if i in (tokenizer.return_, tokenizer.call)]
            pool = ends or pool
        ids.append(int(rng.choice(pool)))
        assert matcher.advance(ids[-1]), "the mask allowed what the matcher refuses"
    return ids, matcher


@settings(max_examples=80, deadline=None)
@given(constraint=constraints(), seed=st.integers(0, 2**32))
def test_random_turns_parse_without_repair_and_keep_to_the_choice(
    grammars: Any, constraint: TurnConstraint, seed: int
) -> None:
    ids, matcher = write_turn(grammars, constraint, seed)
    if not matcher.is_finished:
        return
    ids = ids[: len(ids) - matcher.num_excess]
    names = [tool.recipient for tool in constraint.tools]
    result = parse(ids, tokenizer=grammars.tokenizer, tools=names)
    assert result.repairs == ()
    calls = [message for message in result.messages if message.is_call]
    channels = [message.channel for message in result.messages]
    assert result.finish is (FinishReason.TOOL_CALL if calls else FinishReason.STOP)
    # One way of ending a turn, and it stands at its end.
    assert bool(calls) == (Channel.FINAL not in channels)
    assert channels.count(Channel.FINAL) <= 1
    assert len(calls) <= constraint.num_calls
    if constraint.tool_choice is ToolChoice.REQUIRED:
        assert calls
    assert {call.recipient for call in calls} <= {tool.recipient for tool in constraint.callable_tools}
    thoughts = [m for m in result.messages if m.channel == Channel.ANALYSIS and not m.is_call]
    if constraint.reasoning is Reasoning.NONE:
        assert not thoughts
    if constraint.reasoning is Reasoning.REQUIRED:
        assert result.messages[0] in thoughts
    if not (constraint.has_preambles and constraint.num_calls):
        assert not [m for m in result.messages if m.channel == Channel.COMMENTARY and not m.is_call]
    for message in result.messages:
        assert "\ufffd" not in str(message.content) or "\ufffd".encode() in grammars.tokenizer.decode_bytes(ids)
        assert message.token_ids is not None  # it can be replayed
        grammar = next((t.arguments for t in constraint.tools if t.recipient == message.recipient), None)
        if message.channel == Channel.FINAL:
            grammar = constraint.response_format
        if isinstance(grammar, JsonSchema | JsonObject):
            json.loads(str(message.content))
