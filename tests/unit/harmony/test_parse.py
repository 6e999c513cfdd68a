"""The parser against golden data: openai-harmony's outcomes where they are right, the format's intent elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Channel, Conversation, Message, Role
from ossia.harmony.parse import (
    ContentDelta,
    Event,
    FinishReason,
    HarmonyParser,
    MessageEnd,
    MessageStart,
    ParseResult,
    Repair,
    RepairKind,
    parse,
)
from ossia.harmony.prune import prune_vocabulary
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import ControlToken

GOLDEN = Path(__file__).parents[2] / "golden" / "harmony"
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in (GOLDEN / "parser.jsonl").read_text().splitlines()]
DIFFERENCES: dict[str, Any] = json.loads((GOLDEN / "differences.json").read_text())["parser"]
MALFORMED: dict[str, str] = {
    case["id"]: case["completion"] for case in json.loads((GOLDEN / "malformed_completions.json").read_text())
}
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "malformed_expected.json").read_text())
FIELDS = ("role", "name", "channel", "recipient", "content_type", "content")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.o200k_harmony()


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [
        {field: str(getattr(message, field)) for field in FIELDS if getattr(message, field) is not None}
        for message in messages
    ]


def stream(parser: HarmonyParser, ids: list[int]) -> list[Event]:
    events = [event for token_id in ids for event in parser.push(token_id)]
    return events + parser.finish()


def kinds(result: ParseResult) -> list[RepairKind]:
    return [repair.kind for repair in result.repairs]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
def test_golden_records(record: dict[str, Any], tokenizer: Tokenizer) -> None:
    result = parse(record["tokens"], tokenizer=tokenizer, role=record["role"])
    ours = DIFFERENCES.get(record["name"])
    if ours is None:
        assert as_dicts(result.messages) == record["strict"]["messages"]
    else:
        assert as_dicts(result.messages) == ours["messages"]
        assert kinds(result) == ours["repairs"]
        assert result.finish == ours["finish"]
    parser = HarmonyParser(tokenizer, role=record["role"])
    stream(parser, record["tokens"])
    assert (parser.messages, parser.repairs) == (list(result.messages), list(result.repairs))


@pytest.mark.parametrize(
    "record", [r for r in RECORDS if "deltas-incomplete" not in r["tags"] and r["name"] not in DIFFERENCES],
    ids=lambda record: record["name"],
)  # fmt: skip
def test_golden_deltas(record: dict[str, Any], tokenizer: Tokenizer) -> None:
    events = stream(HarmonyParser(tokenizer, role=record["role"]), record["tokens"])
    ours = [event.text for event in events if isinstance(event, ContentDelta)]
    assert "".join(ours) == "".join(filter(None, record["strict"]["deltas"]))


def test_wellformed_records_need_no_repair(tokenizer: Tokenizer) -> None:
    wellformed = [record for record in RECORDS if record["kind"] == "wellformed"]
    assert wellformed
    for record in wellformed:
        found = set(kinds(parse(record["tokens"], tokenizer=tokenizer, role=record["role"])))
        assert found <= {RepairKind.CONTROL_IN_BODY}, record["name"]


def test_differences_are_listed_with_reasons_and_no_others() -> None:
    names = {record["name"] for record in RECORDS}
    for name, difference in DIFFERENCES.items():
        assert name in names
        assert difference["reason"]


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: case["id"])
def test_malformed_completions(case: dict[str, Any], tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_specials(MALFORMED[case["id"]])
    result = parse(ids, tokenizer=tokenizer, tools=EXPECTED["tools"])
    assert [[m.channel, m.recipient, m.content_type, m.content] for m in result.messages] == case["messages"]
    assert kinds(result) == case["repairs"]
    assert result.finish == case["finish"]


def test_every_malformed_completion_has_an_expectation() -> None:
    assert [case["id"] for case in EXPECTED["cases"]] == list(MALFORMED)


def test_events_of_a_call(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_specials("<|channel|>commentary to=functions.f <|constrain|>json<|message|>[1]<|end|>")
    parser = HarmonyParser(tokenizer)
    assert stream(parser, ids) == [
        MessageStart(Role.ASSISTANT, Channel.COMMENTARY, "functions.f", "<|constrain|>json"),
        ContentDelta("["),
        ContentDelta("1"),
        ContentDelta("]"),
        Repair(RepairKind.CALL_NOT_CLOSED, "functions.f ended by <|end|>"),
        MessageEnd(ControlToken.END),
    ]
    assert parser.finish_reason is FinishReason.TOOL_CALL


def test_each_delta_comes_with_its_token(tokenizer: Tokenizer) -> None:
    parser = HarmonyParser(tokenizer)
    for token_id in tokenizer.encode_with_specials("<|channel|>final<|message|>"):
        parser.push(token_id)
    assert parser.push(tokenizer.encode("Hello")[0]) == [ContentDelta("Hello")]
    assert parser.messages == []


def test_partial_utf8_is_held_back_until_complete(tokenizer: Tokenizer) -> None:
    parser = HarmonyParser(tokenizer)
    for token_id in tokenizer.encode_with_specials("<|channel|>final<|message|>"):
        parser.push(token_id)
    pieces = [tokenizer.vocabulary.ranks[bytes([byte])] for byte in "é🦄".encode()]
    deltas = [parser.push(token_id) for token_id in pieces]
    assert deltas == [[], [ContentDelta("é")], [], [], [], [ContentDelta("🦄")]]


@pytest.mark.parametrize("end", ["<|return|>", "<|start|>assistant", ""])
def test_partial_utf8_becomes_a_replacement_character_at_the_end(end: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_with_specials("<|channel|>final<|message|>a")
    ids += [tokenizer.vocabulary.ranks[b"\xf0"], *tokenizer.encode_with_specials(end)]
    assert parse(ids, tokenizer=tokenizer).messages[0].content == "a\ufffd"


def test_token_ids_put_back_give_the_same_ids(tokenizer: Tokenizer) -> None:
    text = (
        "<|channel|>analysis<|message|>Look it up.<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{ }<|call|>"
    )
    ids = tokenizer.encode_with_specials(text)
    messages = parse(ids, tokenizer=tokenizer).messages
    assert [i for message in messages for i in message.token_ids or ()] == ids
    prefix = tokenizer.encode_with_specials("<|start|>user<|message|>Hi<|end|><|start|>assistant")
    question = Message(Role.USER, content="Hi")
    assert render(Conversation((question, *messages)), tokenizer=tokenizer, next_role=None) == prefix + ids


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>final Sorry.<|return|>",
        "<|channel|>final<|message|>a<|end|>filler<|channel|>final<|message|>b<|return|>",
    ],
)
def test_token_ids_are_none_where_they_cannot_be_put_back(text: str, tokenizer: Tokenizer) -> None:
    assert parse(tokenizer.encode_with_specials(text), tokenizer=tokenizer).messages[-1].token_ids is None


@pytest.mark.parametrize("bad", [-1, 201_088, 2**70])
@pytest.mark.parametrize("place", ["header", "body", "between"])
def test_ids_outside_the_vocabulary(bad: int, place: str, tokenizer: Tokenizer) -> None:
    header = tokenizer.encode_with_specials("<|channel|>final")
    ids = {
        "header": [*header, bad, tokenizer.message, 64, tokenizer.end],
        "body": [*header, tokenizer.message, bad, tokenizer.end],
        "between": [*header, tokenizer.message, 64, tokenizer.end, bad],
    }[place]
    result = parse(ids, tokenizer=tokenizer)
    assert RepairKind.UNKNOWN_TOKEN in kinds(result)
    assert result.messages[0].content == {"header": "a", "body": "\ufffd", "between": "a"}[place]
    assert (result.messages[0].token_ids is None) == (place != "between")


def test_conversation_with_made_up_looking_turns_is_read_whole(tokenizer: Tokenizer) -> None:
    text = (
        "<|start|>system<|message|>s<|end|><|start|>user:ann<|message|>u<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>"
        "<|start|>functions.Web Search to=assistant<|channel|>commentary<|message|>r<|end|>"
        "<|start|>assistant<|channel|>final<|message|>done<|return|><|start|>user<|message|>more<|end|>"
    )
    result = parse(tokenizer.encode_with_specials(text), tokenizer=tokenizer, role=None)
    assert [(m.role, m.name, m.recipient) for m in result.messages] == [
        (Role.SYSTEM, None, None),
        (Role.USER, "ann", None),
        (Role.ASSISTANT, None, "functions.f"),
        (Role.TOOL, "functions.Web Search", "assistant"),
        (Role.ASSISTANT, None, None),
        (Role.USER, None, None),
    ]
    assert result.repairs == ()
    assert result.finish is FinishReason.STOP


def test_is_done_tells_when_to_stop_sampling(tokenizer: Tokenizer) -> None:
    parser = HarmonyParser(tokenizer)
    text = "<|channel|>analysis<|message|>r<|end|><|start|>user<|message|>"
    done = []
    for token_id in tokenizer.encode_with_specials(text):
        parser.push(token_id)
        done.append(parser.is_done)
    assert done == [False] * (len(done) - 1) + [True]


def test_finish_twice_and_push_afterwards(tokenizer: Tokenizer) -> None:
    parser = HarmonyParser(tokenizer)
    parser.push(tokenizer.encode("Hi")[0])
    assert parser.finish_reason is None
    assert parser.finish()
    assert parser.finish() == []
    assert parser.push(tokenizer.channel) == []
    assert parser.finish_reason is FinishReason.LENGTH


def test_unknown_role_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInputError, match="'assistant' for a completion or None"):
        HarmonyParser(tokenizer, role="user")  # pyright: ignore[reportArgumentType]


def test_a_smaller_vocabulary_has_other_ids_and_the_same_outcome(tokenizer: Tokenizer) -> None:
    small = Tokenizer(prune_vocabulary({}, size=512))
    for case in EXPECTED["cases"]:
        text = MALFORMED[case["id"]]
        ours, full = (
            parse(t.encode_with_specials(text), tokenizer=t, tools=EXPECTED["tools"]) for t in (small, tokenizer)
        )
        assert as_dicts(ours.messages) == as_dicts(full.messages)
        assert (kinds(ours), ours.finish) == (kinds(full), full.finish)


def test_a_megabyte_in_a_header_or_a_body(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("commentary? to=x ") * 60_000
    body = [*tokenizer.encode_with_specials("<|channel|>final<|message|>"), *words, tokenizer.return_]
    assert len(parse(body, tokenizer=tokenizer).messages[0].content) > 1_000_000
    parse([tokenizer.channel, *words, tokenizer.message, tokenizer.return_], tokenizer=tokenizer)
    marks = [tokenizer.start, *[tokenizer.channel, 64] * 50_000, tokenizer.message]
    assert parse(marks, tokenizer=tokenizer).finish is FinishReason.LENGTH
