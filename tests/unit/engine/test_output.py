from __future__ import annotations

import codecs
import itertools
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.engine.output import OutputDelta, SequenceOutput, StopMatcher
from ossia.engine.output_event import TokenLogprob
from ossia.engine.request import FinishReason, SamplingParams
from ossia.harmony.tokenizer import Tokenizer

TOKENIZER = Tokenizer.o200k_harmony()
END = TOKENIZER.end
RANKS = TOKENIZER.vocabulary.ranks
# Letters and pairs for stop strings to overlap in, parts of characters, and control tokens.
POOL = [RANKS[t] for t in (b"a", b"b", b"c", b"aa", b"ab", b"ba", b"bc", b"abc", b" a")]
POOL += [RANKS[bytes([byte])] for byte in "é😀".encode()] + [RANKS["é".encode()]]
POOL += [TOKENIZER.message, END, TOKENIZER.vocab_size - 1]


def output_of(max_tokens: int = 1000, stop_ids: tuple[int, ...] = (), **params: Any) -> SequenceOutput:
    return SequenceOutput(
        tokenizer=TOKENIZER, params=SamplingParams(**params), stop_ids=stop_ids, max_tokens=max_tokens
    )


class Wanted(NamedTuple):
    text: str
    num_tokens: int
    reason: FinishReason | None
    stop: str | int | None


class Case(NamedTuple):
    """Everything that decides where an answer ends."""

    tokens: list[int]
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    min_tokens: int
    ignore_eos: bool
    max_tokens: int


def in_python(case: Case) -> Wanted:
    """Character by character, looking at all of the text each time."""
    text = segment = ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for place, token in enumerate(case.tokens):
        count = place + 1
        if token in case.stop_ids and not case.ignore_eos and place >= case.min_tokens:
            return Wanted(text + segment + decoder.decode(b"", True), count, FinishReason.STOP, token)
        if TOKENIZER.is_special(token):
            text, segment = text + segment + decoder.decode(b"", True), ""
            decoder.reset()
        else:
            for char in decoder.decode(TOKENIZER.token_bytes(token)):
                segment += char
                met = [stop for stop in case.stops if segment.endswith(stop)]
                if met and count >= case.min_tokens:
                    longest = max(met, key=len)
                    return Wanted(text + segment.removesuffix(longest), count, FinishReason.STOP, longest)
        if count >= case.max_tokens:
            return Wanted(text + segment + decoder.decode(b"", True), count, FinishReason.LENGTH, None)
    return Wanted(text + segment + decoder.decode(b"", True), len(case.tokens), None, None)


def num_held_in_python(segment: str, stops: tuple[str, ...]) -> int:
    return max(
        (size for stop in stops for size in range(1, len(stop)) if segment.endswith(stop[:size])),
        default=0,
    )


stops_strategy = st.lists(
    st.text(alphabet="abc", min_size=1, max_size=5) | st.sampled_from(["é", "a😀", "\ufffd", "ab ab", "<|end|>"]),
    max_size=4,
).map(tuple)
cases = st.builds(
    Case,
    tokens=st.lists(st.sampled_from(POOL), max_size=30),
    stops=stops_strategy,
    stop_ids=st.sampled_from([(), (), (END,), (RANKS[b"c"],)]),
    min_tokens=st.sampled_from([0, 0, 1, 5]),
    ignore_eos=st.booleans(),
    max_tokens=st.sampled_from([5, 12, 100]),
)


@settings(max_examples=400, deadline=None)
@given(case=cases, cuts=st.lists(st.integers(0, 30), max_size=8))
def test_any_split_ends_where_plain_python_says(case: Case, cuts: list[int]) -> None:
    output = output_of(
        case.max_tokens,
        case.stop_ids,
        stop=case.stops,
        min_tokens=case.min_tokens,
        ignore_eos=case.ignore_eos,
    )
    wanted = in_python(case)
    borders = sorted({0, *cuts, len(case.tokens)})
    text, counted, last = "", 0, OutputDelta()
    for begin, end in itertools.pairwise(borders):
        part = case.tokens[begin:end]
        last = output.push(part)
        assert list(last.token_ids) == part[: last.num_counted]
        text, counted = text + last.text, counted + last.num_counted
        assert wanted.text.startswith(text)
        if last.finish_reason is not None:
            break
    assert (last.finish_reason, last.stop) == (wanted.reason, wanted.stop)
    if wanted.reason is None:
        text += output.finish(FinishReason.CANCELLED).text
    assert (text, counted) == (wanted.text, wanted.num_tokens)
    assert output.text == text
    assert output.push(case.tokens).num_counted == 0
    assert output.finish(FinishReason.ERROR).text == ""


@settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.sampled_from(POOL), max_size=25), stops=stops_strategy)
def test_no_more_is_held_back_than_must_be(tokens: list[int], stops: tuple[str, ...]) -> None:
    # min_tokens is out of reach: a complete stop string is passed over, and an ending of it may begin another.
    output = output_of(stop=stops, min_tokens=50)
    given_out = all_text = segment = ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        given_out += output.push([token]).text
        if TOKENIZER.is_special(token):
            all_text, segment = all_text + decoder.decode(b"", True), ""
            decoder.reset()
        else:
            new = decoder.decode(TOKENIZER.token_bytes(token))
            all_text, segment = all_text + new, segment + new
        held = num_held_in_python(segment, stops)
        assert given_out == all_text[: len(all_text) - held]


def test_a_character_comes_whole() -> None:
    output = output_of()
    parts = [RANKS[bytes([byte])] for byte in "😀".encode()]
    assert [output.push([part]).text for part in parts] == ["", "", "", "😀"]
    output.push(parts[:2])
    assert output.finish(FinishReason.DEADLINE).text == "\ufffd"


def test_a_stop_inside_accepted_drafts_cuts_off_the_rest() -> None:
    output = output_of(stop=("b",))
    tokens = [RANKS[b"a"], RANKS[b"b"], RANKS[b"c"]]
    entries = [TokenLogprob(token, -1.0, 1, ()) for token in tokens]
    assert output.push(tokens, entries) == OutputDelta(
        tuple(tokens[:2]), "a", tuple(entries[:2]), FinishReason.STOP, "b"
    )


def test_control_tokens_show_their_names_if_asked() -> None:
    tokens = [TOKENIZER.message, RANKS[b"a"], END]
    shown = SequenceOutput(
        tokenizer=TOKENIZER, params=SamplingParams(), stop_ids=(), max_tokens=9, has_control_tokens=True
    )
    assert shown.push(tokens).text == "<|message|>a<|end|>"
    assert output_of().push(tokens).text == "a"


def test_stop_strings_do_not_reach_across_a_control_token() -> None:
    output = output_of(stop=("ab",))
    assert output.push([RANKS[b"a"]]).text == ""
    assert output.push([TOKENIZER.message]).text == "a"
    assert output.push([RANKS[b"b"]]).text == "b"


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.ERROR, FinishReason.STOP])
def test_an_end_from_outside_gives_out_what_was_held(reason: FinishReason) -> None:
    output = output_of(stop=("abc",))
    output.push([RANKS[b"ab"]])
    assert output.finish(reason) == OutputDelta(text="ab", finish_reason=reason)
    assert output.text == "ab"


def test_a_matcher_can_be_shared() -> None:
    matcher = StopMatcher(("ab",))
    params = SamplingParams(stop=("ab",))
    first, second = (
        SequenceOutput(tokenizer=TOKENIZER, params=params, stop_ids=(), max_tokens=9, matcher=matcher) for _ in range(2)
    )
    first.push([RANKS[b"a"]])
    assert second.push([RANKS[b"b"]]).text == "b"
    assert first.push([RANKS[b"b"]]).stop == "ab"


def test_very_long_stop_strings() -> None:
    stop = "ab" * 5000 + "c"
    matcher = StopMatcher((stop,))
    state, found, _ = matcher.feed("ab" * 7000, state=0)
    assert found is None
    assert matcher.num_held(state) == 10_000
    assert matcher.feed("xc", state=state)[1] is None
    assert matcher.feed("c..", state=state) == (len(stop), stop, 1)
