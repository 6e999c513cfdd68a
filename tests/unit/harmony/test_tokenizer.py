from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import openai_harmony
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError, VocabularyError
from ossia.harmony import tokenizer as tokenizer_module
from ossia.harmony.tokenizer import Detokenizer, Tokenizer
from ossia.harmony.vocab import CONTROL_TOKEN_IDS, O200K_VOCAB_SIZE, SPECIAL_TOKENS, Vocabulary

GOLDEN = Path(__file__).parents[2] / "golden" / "harmony"
RECORDS = [json.loads(line) for line in (GOLDEN / "tokenizer.jsonl").read_text("utf-8").splitlines()]
DECODE_RECORDS = [json.loads(line) for line in (GOLDEN / "tokenizer_decode.jsonl").read_text("utf-8").splitlines()]
BLANKS = tokenizer_module._BLANKS

# Text that leans on the hard places: control-token look-alikes, white space of all kinds, surrogates, emoji, digits.
hard_text = st.lists(
    st.one_of(
        st.sampled_from(
            ["<|start|>", "<|end|>", "<|", "|>", "<|reserved_200000|>", "12345", "'s", "'LL", "\r\n", "👩‍👩‍👧"]
        ),
        st.text(max_size=8),
        st.text(alphabet=BLANKS + "\r\n", max_size=8),
        st.text(alphabet="\ud800\udbff\udc00\udfff" + "a", max_size=4),
    )
).map("".join)
byte_vocabulary = Vocabulary(
    ranks={bytes([i]): i for i in range(256)},
    specials={name: 256 + i for i, name in enumerate(CONTROL_TOKEN_IDS)},
    size=300,
)


def o200k() -> Tokenizer:
    return Tokenizer.o200k_harmony()


def as_utf8(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
def test_encoding_conforms(record) -> None:
    assert o200k().encode(record["text"]) == record["ids"]
    assert o200k().encode_with_specials(record["text"]) == record.get("ids_special", record["ids"])


@pytest.mark.parametrize("record", DECODE_RECORDS, ids=lambda record: record["name"])
def test_decoding_conforms(record) -> None:
    assert o200k().decode_bytes(record["ids"]) == bytes.fromhex(record["bytes_hex"])
    assert o200k().decode(record["ids"]) == record["text_replace"]


def test_the_golden_files_are_all_there() -> None:
    assert (len(RECORDS), len(DECODE_RECORDS)) == (113, 10)


@given(hard_text)
def test_text_survives_the_round_trip_and_never_becomes_a_control_token(text) -> None:
    ids = o200k().encode(text)
    assert o200k().decode(ids) == as_utf8(text)
    assert not any(map(o200k().is_special, ids))


@given(st.lists(st.one_of(st.sampled_from(sorted(CONTROL_TOKEN_IDS)), st.text(max_size=6))))
def test_trusted_text_may_hold_special_tokens(parts) -> None:
    text = as_utf8("".join(parts))
    ids = o200k().encode_with_specials(text)
    assert o200k().decode(ids) == text
    specials = [o200k().decode([i]) for i in ids if o200k().is_special(i)]
    assert specials == [part for part in parts if part in SPECIAL_TOKENS]


def test_every_special_token_encodes_to_its_id() -> None:
    assert o200k().encode_with_specials("".join(SPECIAL_TOKENS)) == list(SPECIAL_TOKENS.values())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\ud800", "a\ufffd"),
        ("\udc00b", "\ufffdb"),
        ("\ud83d\ude00", "😀"),  # a pair, as json.loads never leaves it but a careless caller may
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ufeffx\ud800", "\ufeffx\ufffd"),  # a leading byte order mark is text like any other
    ],
)
def test_lone_surrogates_become_replacement_characters(text, shown) -> None:
    assert o200k().encode(text) == o200k().encode(shown)
    assert o200k().decode(o200k().encode(text)) == shown


@given(st.text(alphabet=BLANKS + "\n\r" + "a!1'\ud800", max_size=40))
def test_cutting_out_long_runs_of_blanks_changes_no_id(text) -> None:
    whole = o200k()._encode_ordinary(as_utf8(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "_PROBE_STEP", 2)
        assert o200k().encode(text) == whole


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("a", "b"), ("\n", "\n"), ("!\n", "!"), ("1", "2"), ("\n", "'s")]
)
def test_a_million_blanks_encode_as_fewer_would(before, after) -> None:
    # tiktoken 0.14 panics on 999,999 and more. 128 spaces are o200k's longest such token, so the middle of a long run
    # is a repetition, and runs whose lengths differ by whole tokens end alike.
    short, long = (o200k().encode(before + " " * length + after) for length in (128 * 10 + 77, 128 * 8000 + 77))
    assert o200k().decode(long) == before + " " * (128 * 8000 + 77) + after
    start, end = len(o200k().encode(before)), len(short) - len(o200k().encode(after)) - 2
    assert long[:start] == short[:start]
    assert long[-(len(short) - end) :] == short[end:]
    assert len(long) - len(short) == 7990


@pytest.fixture
def peer(tmp_path, monkeypatch) -> openai_harmony.HarmonyEncoding:
    """openai-harmony's encoder, fed offline with our own ranks in tiktoken's file format (whose hash it checks)."""
    ranks = o200k().vocabulary.ranks.items()
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks)
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"".join(lines))
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    return openai_harmony.load_harmony_encoding("HarmonyGptOss")


def test_ids_equal_those_of_openai_harmony_on_long_runs(peer) -> None:
    # Shorter than the panic, so that the peer can take them too; long enough for the merge heap of the engine.
    for text in [
        "a" * 3000,
        " " * 9000 + "x",
        "中文" * 500,
        "\n \n" * 2000,
        "1234567890" * 400,
        "😀" * 800,
        "=" * 5000,
    ]:
        assert o200k().encode(text) == peer.encode(text, disallowed_special=())


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "A",
        "aB",
        "'s",
        "7",
        " ",
        "\n",
        "\r\n",
        " \n",
        "\t",
        "\u3000",
        "中",
        "한국",
        "😀",
        "e\u0301",
        "!",
        "<|",
        "\0",
    ],
)
def test_a_million_characters_of_one_kind(unit) -> None:
    text = (unit * 1_000_000)[:1_000_000]
    assert o200k().decode(o200k().encode(text)) == text
    assert o200k().decode(o200k().encode_with_specials(text)) == text


@pytest.mark.parametrize("token_id", [-1, O200K_VOCAB_SIZE, 2**31, 2**40, -(2**70), 1.5, "7", None])
def test_an_id_outside_the_vocabulary_is_named_with_the_range(token_id) -> None:
    for attempt in (
        lambda: o200k().decode([1, token_id]),
        lambda: o200k().decode_bytes([token_id]),
        lambda: o200k().token_bytes(token_id),
        lambda: Detokenizer(o200k()).push(token_id),
    ):
        with pytest.raises(InvalidInputError, match=f"{token_id!r} is no token id.*0 to 201087") as caught:
            attempt()
        assert caught.value.param == "ids"


def test_ids_may_come_in_any_container() -> None:
    ids = o200k().encode("any container")
    assert o200k().decode(tuple(ids)) == "any container"
    assert o200k().decode(iter(ids)) == "any container"  # pyright: ignore[reportArgumentType]
    assert o200k().decode([]) == ""


def test_padding_ids_decode_to_nothing() -> None:
    padded = Tokenizer(byte_vocabulary)
    assert padded.decode([97, 299, 98, padded.end]) == "ab<|end|>"
    assert not padded.is_special(299)
    with pytest.raises(InvalidInputError, match="0 to 299"):
        padded.decode([300])


def test_control_tokens_are_known_by_attribute() -> None:
    tokenizer = o200k()
    attributes = (tokenizer.start, tokenizer.end, tokenizer.message, tokenizer.channel)
    assert attributes == (200_006, 200_007, 200_008, 200_005)
    attributes = (tokenizer.constrain, tokenizer.return_, tokenizer.call, tokenizer.endoftext)
    assert attributes == (200_003, 200_002, 200_012, 199_999)
    assert tokenizer.vocab_size == O200K_VOCAB_SIZE
    assert Tokenizer(byte_vocabulary).start == byte_vocabulary.specials["<|start|>"]


def test_missing_control_tokens_and_bad_patterns_are_refused() -> None:
    with pytest.raises(VocabularyError, match=r"'<\|start\|>'"):
        Tokenizer(replace(byte_vocabulary, specials={}))
    with pytest.raises(VocabularyError, match="pattern"):
        Tokenizer(replace(byte_vocabulary, pattern="("))
    with pytest.raises(VocabularyError, match="no special token"):
        o200k().special_id("<|nonesuch|>")


any_ids = st.lists(
    st.one_of(
        st.integers(0, O200K_VOCAB_SIZE - 1), st.sampled_from(o200k().encode("👩‍👩‍👧é한\ufffd")), st.integers(94, 255)
    )
)


@given(any_ids)
def test_streamed_text_is_the_decoded_text(ids) -> None:
    detokenizer = Detokenizer(o200k())
    pieces = [detokenizer.push(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.finish() == o200k().decode(ids)
    assert detokenizer.finish() == ""


@given(hard_text)
def test_streaming_sound_text_never_shows_half_a_character(text) -> None:
    text = as_utf8(text)
    detokenizer = Detokenizer(Tokenizer(byte_vocabulary))
    shown = ""
    for byte in text.encode():  # ids are bytes here: the finest chunks there are
        shown += detokenizer.push(byte)
        assert text.startswith(shown)
    assert (shown, detokenizer.finish()) == (text, "")


def test_a_character_cut_off_at_the_end_is_replaced() -> None:
    detokenizer = Detokenizer(Tokenizer(byte_vocabulary))
    assert [detokenizer.push(byte) for byte in b"a\xf0\x9f\x98"] == ["a", "", "", ""]
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push(98) == "b"
