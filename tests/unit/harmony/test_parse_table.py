"""Each oddity seen from the models, by name: what the parser makes of it and which repair it counts."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from ossia.harmony.parse import FinishReason, RepairKind, parse
from ossia.harmony.tokenizer import Tokenizer

TOOLS = ("functions.f", "functions.g", "functions.shell", "functions.Web Search", "get_weather", "browser.search")
R = RepairKind


class Case(NamedTuple):
    """A completion, its messages as (channel, recipient, content type, content), its repairs and its finish."""

    text: str
    messages: list[tuple[str, str | None, str | None, str]]
    repairs: list[RepairKind]
    finish: str = "stop"


CALL = ("commentary", "functions.f", None, "{}")
ANSWER = ("final", None, None, "x")
CASES = {
    "json_without_recipient_is_a_preamble": Case(
        '<|channel|>commentary json<|message|>{"a":1}<|call|>',
        [("commentary", None, "json", '{"a":1}')],
        [R.CALL_WITHOUT_RECIPIENT],
    ),
    "constrain_without_recipient_is_a_content_type": Case(
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>", [("final", None, "<|constrain|>json", "{}")], []
    ),
    "constrain_with_any_word_is_a_content_type": Case(
        "<|channel|>commentary <|constrain|>response<|message|>x<|return|>",
        [("commentary", None, "<|constrain|>response", "x")],
        [],
    ),
    "recipient_in_the_role": Case(" to=functions.f<|channel|>commentary<|message|>{}<|call|>", [CALL], [], "tool_call"),
    "recipient_after_the_channel": Case(
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>", [CALL], [], "tool_call"
    ),
    "recipient_behind_a_written_role": Case(
        "<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        [CALL],
        [R.REPEATED_START],
        "tool_call",
    ),
    "name_ends_at_a_control_token": Case(
        "<|channel|>commentary to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        [CALL],
        [R.REPEATED_CHANNEL],
        "tool_call",
    ),
    "name_ends_at_a_reserved_token": Case(
        "<|channel|>commentary to=functions.f<|reserved_200017|>g<|message|>{}<|call|>",
        [CALL],
        [R.STRAY_TOKEN, R.HEADER_TEXT],
        "tool_call",
    ),
    "name_with_a_space": Case(
        "<|channel|>commentary to=functions.Web Search json<|message|>{}<|call|>",
        [("commentary", "functions.Web Search", "json", "{}")],
        [R.RECIPIENT_MATCHED],
        "tool_call",
    ),
    "name_with_json_glued": Case(
        "<|channel|>commentary to=functions.shelljson<|message|>{}<|call|>",
        [("commentary", "functions.shell", "json", "{}")],
        [R.RECIPIENT_MATCHED],
        "tool_call",
    ),
    "bare_function_name": Case(
        "<|channel|>commentary to=get_weather<|message|>{}<|call|>",
        [("commentary", "functions.get_weather", None, "{}")],
        [R.RECIPIENT_MATCHED],
        "tool_call",
    ),
    "call_on_analysis": Case(
        "<|channel|>analysis to=functions.f<|message|>{}<|call|>",
        [("analysis", "functions.f", None, "{}")],
        [],
        "tool_call",
    ),
    "call_without_channel": Case(" to=functions.f<|message|>{}<|call|>", [CALL], [R.MISSING_CHANNEL], "tool_call"),
    "call_ended_by_end": Case(
        "<|channel|>commentary to=functions.f<|message|>{}<|end|>", [CALL], [R.CALL_NOT_CLOSED], "tool_call"
    ),
    "call_ended_by_return": Case(
        "<|channel|>commentary to=functions.f<|message|>{}<|return|>", [CALL], [R.CALL_NOT_CLOSED], "tool_call"
    ),
    "call_with_an_empty_body": Case(
        "<|channel|>commentary to=functions.f<|message|><|call|>", [CALL], [R.EMPTY_ARGUMENTS], "tool_call"
    ),
    "call_of_a_builtin_tool_with_an_empty_body": Case(
        "<|channel|>analysis to=python code<|message|><|call|>", [("analysis", "python", "code", "")], [], "tool_call"
    ),
    "call_to_nobody": Case(
        "<|channel|>commentary to=assistant<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>x<|return|>",
        [("commentary", None, None, "x"), ANSWER],
        [R.NO_TOOL_RECIPIENT],
    ),
    "two_recipients": Case(
        "<|channel|>commentary to=functions.zzz to=functions.f<|message|>{}<|call|>",
        [CALL],
        [R.REPEATED_RECIPIENT],
        "tool_call",
    ),
    "doubled_channel": Case(
        "<|channel|>analysis<|channel|>final<|message|>x<|return|>", [ANSWER], [R.REPEATED_CHANNEL]
    ),
    "empty_channel": Case("<|channel|><|message|>x<|return|>", [ANSWER], [R.MISSING_CHANNEL]),
    "comment_channel": Case(
        "<|channel|>comment<|message|>x<|return|>", [("commentary", None, None, "x")], [R.UNKNOWN_CHANNEL]
    ),
    "stuttered_channel": Case(
        "<|channel|>commentary?commentary?<|message|>x<|return|>",
        [("commentary", None, None, "x")],
        [R.UNKNOWN_CHANNEL],
    ),
    "dashes_before_the_channel": Case("<|channel|>––final<|message|>x<|return|>", [ANSWER], [R.UNKNOWN_CHANNEL]),
    "free_text_after_the_channel": Case(
        "<|channel|>final and now the answer<|message|>x<|return|>", [ANSWER], [R.HEADER_TEXT]
    ),
    "free_text_in_place_of_the_channel": Case(
        "<|channel|>We need to think<|message|>x<|return|>",
        [("analysis", None, None, "x")],
        [R.MISSING_CHANNEL, R.HEADER_TEXT],
    ),
    "start_final": Case(
        "<|channel|>analysis<|message|>r<|end|><|start|>final<|message|>x<|return|>",
        [("analysis", None, None, "r"), ANSWER],
        [R.ROLE_IS_CHANNEL],
    ),
    "assistantassistant": Case(
        "<|channel|>analysis<|message|>r<|end|><|start|>assistantassistant<|channel|>final<|message|>x<|return|>",
        [("analysis", None, None, "r"), ANSWER],
        [R.REPEATED_ROLE],
    ),
    "assistant_behind_the_prompts_assistant": Case(
        "assistant<|channel|>final<|message|>x<|return|>", [ANSWER], [R.REPEATED_ROLE]
    ),
    "start_start": Case(
        "<|channel|>analysis<|message|>r<|end|><|start|><|start|>assistant<|channel|>final<|message|>x<|return|>",
        [("analysis", None, None, "r"), ANSWER],
        [R.REPEATED_START],
    ),
    "refusal_in_the_header": Case(
        "<|channel|>final Sorry, no.<|return|>", [("final", None, None, "Sorry, no.")], [R.MISSING_MESSAGE]
    ),
    "reasoning_in_the_header_stays_private": Case(
        "<|channel|>analysis They ask for x.<|end|><|start|>assistant<|channel|>final<|message|>x<|return|>",
        [("analysis", None, None, "They ask for x."), ANSWER],
        [R.MISSING_MESSAGE],
    ),
    "no_header_at_all": Case("Finally: no.<|return|>", [("final", None, None, "Finally: no.")], [R.MISSING_MESSAGE]),
    "call_without_message_token": Case(
        '<|channel|>commentary to=functions.f <|constrain|>json{"a":1}<|call|>',
        [("commentary", "functions.f", "<|constrain|>json", '{"a":1}')],
        [R.MISSING_MESSAGE],
        "tool_call",
    ),
    "nothing_but_a_stop_token": Case("<|return|>", [], [R.MISSING_MESSAGE]),
    "nothing": Case("", [], [], "length"),
    "cut_in_a_header": Case("<|channel|>commentary to=functions.f", [], [R.TRUNCATED_HEADER], "length"),
    "cut_in_a_role": Case(
        "<|channel|>analysis<|message|>r<|end|><|start|>assist",
        [("analysis", None, None, "r")],
        [R.TRUNCATED_HEADER],
        "length",
    ),
    "cut_in_a_refusal_without_header": Case(
        "Sorry, I can", [("final", None, None, "Sorry, I can")], [R.TRUNCATED_HEADER], "length"
    ),
    "cut_in_a_body": Case("<|channel|>final<|message|>x", [ANSWER], [], "length"),
    "cut_in_arguments": Case(
        '<|channel|>commentary to=functions.f<|message|>{"a',
        [("commentary", "functions.f", None, '{"a')],
        [],
        "length",
    ),
    "cut_behind_reasoning": Case(
        "<|channel|>analysis<|message|>r<|end|>", [("analysis", None, None, "r")], [], "length"
    ),
    "missing_start": Case(
        "<|channel|>analysis<|message|>r<|end|><|channel|>final<|message|>x<|return|>",
        [("analysis", None, None, "r"), ANSWER],
        [R.MISSING_START],
    ),
    "missing_start_with_a_recipient_in_the_role": Case(
        "<|channel|>analysis<|message|>r<|end|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        [("analysis", None, None, "r"), CALL],
        [R.MISSING_START],
        "tool_call",
    ),
    "missing_end": Case(
        "<|channel|>analysis<|message|>r<|start|>assistant<|channel|>final<|message|>x<|return|>",
        [("analysis", None, None, "r"), ANSWER],
        [R.MISSING_END],
    ),
    "text_after_the_end": Case("<|channel|>final<|message|>x<|end|> more", [ANSWER], [R.TEXT_BETWEEN_MESSAGES]),
    "end_after_the_end": Case("<|channel|>final<|message|>x<|end|><|end|>", [ANSWER], [R.STRAY_TOKEN]),
    "return_after_the_end": Case("<|channel|>final<|message|>x<|end|><|return|>", [ANSWER], [R.STRAY_TOKEN]),
    "anything_after_return": Case(
        "<|channel|>final<|message|>x<|return|><|start|>assistant<|channel|>final<|message|>y<|return|>",
        [ANSWER],
        [R.TAIL_DROPPED],
    ),
    "filler_between_calls": Case(
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
        "commentary<|channel|>commentary to=functions.g<|message|>{}<|call|>",
        [CALL, ("commentary", "functions.g", None, "{}")],
        [R.MISSING_START, R.TEXT_BETWEEN_MESSAGES],
        "tool_call",
    ),
    "endoftext_in_a_body": Case("<|channel|>final<|message|>x<|endoftext|>y", [ANSWER], [R.ENDOFTEXT, R.TAIL_DROPPED]),
    "control_token_in_a_body": Case(
        "<|channel|>final<|message|>a<|channel|>b<|return|>",
        [("final", None, None, "a<|channel|>b")],
        [R.CONTROL_IN_BODY],
    ),
    "invalid_arguments": Case(
        '<|channel|>commentary to=functions.f<|message|>{"a":<|call|>',
        [("commentary", "functions.f", None, '{"a":')],
        [R.INVALID_ARGUMENTS],
        "tool_call",
    ),
}
MADE_UP = [
    "<|start|>user<|message|>",
    "<|start|>user:ann<|message|>",
    "<|start|>system<|message|>",
    "<|start|>developer<|message|>",
    "<|start|>tool<|message|>",
    "<|start|>functions.f to=assistant<|channel|>commentary<|message|>",
    "<|start|>browser.search<|channel|>commentary<|message|>",
    "<|start|>python<|message|>",
    "<|start|>anything to=assistant<|channel|>commentary<|message|>",
    "<|start|>user hello<|end|>",
    "user<|message|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.o200k_harmony()


@pytest.mark.parametrize("name", CASES)
def test_seen_from_the_models(name: str, tokenizer: Tokenizer) -> None:
    case = CASES[name]
    result = parse(tokenizer.encode_with_specials(case.text), tokenizer=tokenizer, tools=TOOLS)
    assert [(m.channel, m.recipient, m.content_type, m.content) for m in result.messages] == case.messages
    assert [repair.kind for repair in result.repairs] == case.repairs
    assert result.finish == case.finish


@pytest.mark.parametrize("turn", MADE_UP)
def test_made_up_turn(turn: str, tokenizer: Tokenizer) -> None:
    text = f"<|channel|>analysis<|message|>r<|end|>{turn}fake<|end|><|start|>assistant<|channel|>final<|message|>x"
    result = parse(tokenizer.encode_with_specials(text), tokenizer=tokenizer, tools=TOOLS)
    assert [message.content for message in result.messages] == ["r"]
    assert RepairKind.MADE_UP_TURN in [repair.kind for repair in result.repairs]
    assert result.finish is FinishReason.STOP


def test_every_kind_of_repair_is_shown_here() -> None:
    shown = {kind for case in CASES.values() for kind in case.repairs}
    # The two that need more than text: ids outside the vocabulary (test_parse.py) and the turns above.
    assert shown | {R.UNKNOWN_TOKEN, R.MADE_UP_TURN} == set(RepairKind)


@pytest.mark.parametrize("body", ["[" * 100_000, "NaN", "{'a': 1}", '{"a": 1} {'])
def test_arguments_that_are_not_json_are_a_warning(body: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_specials("<|channel|>commentary to=functions.f<|message|>")
    result = parse([*ids, *tokenizer.encode(body), tokenizer.call], tokenizer=tokenizer)
    assert result.messages[0].content == body
    assert [repair.kind for repair in result.repairs] == [RepairKind.INVALID_ARGUMENTS]
    assert len(result.repairs[0].detail) <= 200


def test_long_numbers_are_json(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_specials("<|channel|>commentary to=functions.f<|message|>")
    assert parse([*ids, *tokenizer.encode("[" + "1" * 5000 + "]"), tokenizer.call], tokenizer=tokenizer).repairs == ()
