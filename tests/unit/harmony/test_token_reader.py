"""Ids looked up for the parser."""

from __future__ import annotations

from ossia.harmony.header import Section
from ossia.harmony.token_reader import token_reader
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import ControlToken

TOKENIZER = Tokenizer.o200k_harmony()
READER = token_reader(TOKENIZER)


def test_sections_of_a_header() -> None:
    ids = TOKENIZER.encode_with_specials(
        "<|start|>assistant to=f<|reserved_200017|>g<|channel|><|constrain|>json<|message|>"
    )
    assert READER.sections(ids) == [
        Section(None, "assistant to=f"),
        Section(ControlToken.ENDOFPROMPT, "g"),
        Section(ControlToken.CHANNEL, ""),
        Section(ControlToken.CONSTRAIN, "json"),
    ]
    assert READER.sections([]) == [Section(None, "")]


def test_ids_outside_the_vocabulary_are_replacement_characters() -> None:
    assert READER.decode_plain([-1, 64, TOKENIZER.vocab_size]) == "\ufffda\ufffd"
    assert READER.knows(TOKENIZER.vocab_size - 1)
    assert not READER.knows(TOKENIZER.vocab_size)


def test_only_whole_texts_are_remembered() -> None:
    byte = TOKENIZER.vocabulary.ranks[b"\xf0"]
    READER.remember(byte)
    READER.remember(64)
    assert byte not in READER.texts
    assert READER.texts[64] == "a"


def test_a_tokenizer_has_one_reader() -> None:
    assert token_reader(TOKENIZER) is READER
