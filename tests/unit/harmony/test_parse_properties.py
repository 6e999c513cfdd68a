"""The parser is total, and however its ids are cut the outcome is one."""

from __future__ import annotations

from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.harmony.message import Role
from ossia.harmony.parse import ContentDelta, Event, HarmonyParser, MessageEnd, MessageStart, Repair, parse
from ossia.harmony.tokenizer import Tokenizer

TOKENIZER = Tokenizer.o200k_harmony()
STOPS = (TOKENIZER.end, TOKENIZER.return_, TOKENIZER.call, TOKENIZER.endoftext)
TOOLS = ("functions.f", "functions.Web Search", "python")
CONTROLS = [
    TOKENIZER.start,
    TOKENIZER.end,
    TOKENIZER.message,
    TOKENIZER.channel,
    TOKENIZER.constrain,
    TOKENIZER.return_,
    TOKENIZER.call,
    TOKENIZER.endoftext,
    TOKENIZER.special_id("<|endofprompt|>"),
    TOKENIZER.special_id("<|reserved_200017|>"),
]
WORDS = (
    "assistant|user|system|tool| to=|functions.f|functions.Web Search|=|analysis|commentary|final|json| json|{|}|?| "
)
PIECES = [ids for word in WORDS.split("|") if (ids := TOKENIZER.encode(word))]
BYTES = [[TOKENIZER.vocabulary.ranks[bytes([byte])]] for byte in (0x00, 0x80, 0xBD, 0xC3, 0xE4, 0xF0, 0x9F, 0xFF)]
GOOD = TOKENIZER.encode_with_specials(
    "<|channel|>analysis<|message|>Tæ🦄nk.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    '<|constrain|>json<|message|>{"a": 1}<|call|><|start|>assistant<|channel|>final<|message|>Done 中.<|return|>'
)

any_ids = st.lists(st.integers(-(2**65), 2**65) | st.integers(0, TOKENIZER.vocab_size + 5), max_size=30)
specials_heavy = st.lists(
    st.sampled_from(CONTROLS).map(lambda i: [i]) | st.sampled_from(PIECES) | st.sampled_from(BYTES), max_size=30
).map(lambda parts: [i for part in parts for i in part])


@st.composite
def mutated(draw: st.DrawFn) -> list[int]:
    """A good completion with ids dropped, doubled or exchanged for others."""
    ids = list(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(ids) - 1))
        ids[at : at + 1] = draw(st.sampled_from([[], [ids[at]] * 2, [draw(st.sampled_from(CONTROLS))], *BYTES]))
        ids = ids or list(GOOD)
    return ids


streams = any_ids | specials_heavy | mutated()
roles: st.SearchStrategy[Literal["assistant"] | None] = st.sampled_from(["assistant", None])


def joined(events: list[Event]) -> list[Event]:
    """The events with neighbouring deltas made one."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, ContentDelta) and result and isinstance(result[-1], ContentDelta):
            result[-1] = ContentDelta(result[-1].text + event.text)
        else:
            result.append(event)
    return result


def typed(events: list[Event]) -> list[tuple[type, Event]]:
    return [(type(event), event) for event in events]


@settings(max_examples=200, deadline=None)
@given(ids=streams, role=roles, data=st.data())
def test_any_chunking_gives_the_same(ids: list[int], role: Literal["assistant"] | None, data: st.DataObject) -> None:
    single = HarmonyParser(TOKENIZER, role=role, tools=TOOLS)
    one_by_one = [event for token_id in ids for event in single.push(token_id)]
    one_by_one += single.finish()
    chunked = HarmonyParser(TOKENIZER, role=role, tools=TOOLS)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    in_chunks: list[Event] = []
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        in_chunks += chunked.feed(ids[start:stop])
    in_chunks += chunked.finish()
    assert typed(joined(one_by_one)) == typed(joined(in_chunks))
    result = parse(ids, tokenizer=TOKENIZER, role=role, tools=TOOLS)
    assert list(result.messages) == single.messages == chunked.messages
    assert list(result.repairs) == single.repairs == chunked.repairs
    assert result.finish == single.finish_reason == chunked.finish_reason


@settings(max_examples=150, deadline=None)
@given(ids=streams, role=roles)
def test_events_tell_the_messages(ids: list[int], role: Literal["assistant"] | None) -> None:
    parser = HarmonyParser(TOKENIZER, role=role, tools=TOOLS)
    events = [event for token_id in ids for event in parser.push(token_id)] + parser.finish()
    told: list[tuple[MessageStart, str]] = []
    is_open = False
    for event in events:
        if isinstance(event, MessageStart):
            assert not is_open
            is_open = True
            told.append((event, ""))
        elif isinstance(event, ContentDelta):
            assert is_open
            assert event.text
            told[-1] = (told[-1][0], told[-1][1] + event.text)
        elif isinstance(event, MessageEnd):
            assert is_open
            is_open = False
    assert not is_open
    kept = [
        (MessageStart(Role(m.role), m.channel, m.recipient, m.content_type, m.name), m.content) for m in parser.messages
    ]
    assert told == kept
    assert [event for event in events if isinstance(event, Repair)] == parser.repairs


@settings(max_examples=150, deadline=None)
@given(ids=streams)
def test_a_completion_holds_only_the_assistants_messages_and_ids_that_occur(ids: list[int]) -> None:
    for message in parse(ids, tokenizer=TOKENIZER, tools=TOOLS).messages:
        assert message.role is Role.ASSISTANT
        assert message.channel in ("analysis", "commentary", "final")
        if message.token_ids is not None:
            size = len(message.token_ids)
            assert any(tuple(ids[i : i + size]) == message.token_ids for i in range(len(ids)))
            again = parse(message.token_ids, tokenizer=TOKENIZER, tools=TOOLS).messages
            assert [(m.channel, m.recipient) for m in again] == [(message.channel, message.recipient)]
            if message.token_ids[-1] in STOPS:  # else arguments that were cut off lack what an end adds
                assert again[0].content == message.content
