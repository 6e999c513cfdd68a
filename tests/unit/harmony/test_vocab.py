from __future__ import annotations

import hashlib
import lzma
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from ossia.core.errors import VocabularyError
from ossia.harmony import vocab
from ossia.harmony.vocab import (
    CONTROL_TOKEN_IDS,
    O200K_MERGES_SHA256,
    O200K_TIKTOKEN_SHA256,
    O200K_VOCAB_SIZE,
    SPECIAL_TOKENS,
    ControlToken,
    Vocabulary,
    load_o200k_ranks,
    o200k_harmony_vocabulary,
    recover_merges,
    tiktoken_sha256,
    unpack_merges,
)

BYTES = {bytes([i]): i for i in range(256)}
DATA = Path(str(resources.files("ossia.harmony").joinpath("data", "o200k_base.merges.xz")))


def test_the_packaged_ranks_are_those_of_o200k_base() -> None:
    ranks = load_o200k_ranks()
    assert list(ranks.values()) == list(range(199_998))
    assert tiktoken_sha256(ranks) == O200K_TIKTOKEN_SHA256


def test_the_packaged_merges_are_those_that_bpe_makes() -> None:
    # Ties the shipped pairs to the ranks by an independent path: re-encoding every token below its own rank.
    packed = lzma.decompress(DATA.read_bytes())
    numbers = vocab._decode_leb128(packed[256:])
    half = len(numbers) // 2
    ranks = o200k_harmony_vocabulary().ranks
    recovered = [(ranks[left], ranks[right]) for left, right in recover_merges(ranks).values()]
    assert recovered == list(zip(numbers[:half], numbers[half:], strict=True))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "cannot be read"),
        (lambda path: path.write_bytes(b"not xz at all"), "cannot be read"),
        (lambda path: path.write_bytes(lzma.compress(bytes(range(256)) + b"\x20\x20")), "SHA-256"),
    ],
    ids=["missing", "truncated", "not xz", "other merges"],
)
def test_damaged_package_data_are_reported(tmp_path, monkeypatch, damage, message) -> None:
    path = tmp_path / "data" / DATA.name
    path.parent.mkdir()
    shutil.copy(DATA, path)
    monkeypatch.setattr(vocab.resources, "files", lambda package: tmp_path)
    assert len(load_o200k_ranks()) == 199_998  # the copy itself is sound
    damage(path)
    with pytest.raises(VocabularyError, match=message):
        load_o200k_ranks()


def test_unpacking_merges() -> None:
    packed = bytes(range(256)) + bytes([97, 0x80, 2]) + bytes([98, 99])  # a+b, then token 256 + c
    ranks = unpack_merges(packed, sha256=hashlib.sha256(packed).hexdigest())
    assert ranks == BYTES | {b"ab": 256, b"abc": 257}
    with pytest.raises(VocabularyError, match=O200K_MERGES_SHA256):
        unpack_merges(packed, sha256=O200K_MERGES_SHA256)


def test_special_tokens_fill_the_ids_behind_the_ordinary_ones() -> None:
    assert list(SPECIAL_TOKENS.values()) == list(range(199_998, O200K_VOCAB_SIZE))
    assert {name: SPECIAL_TOKENS[name] for name in ControlToken} == CONTROL_TOKEN_IDS
    assert SPECIAL_TOKENS["<|start|>"] == 200_006
    assert SPECIAL_TOKENS["<|reserved_201087|>"] == 201_087
    assert "<|reserved_200006|>" not in SPECIAL_TOKENS


def test_o200k_harmony_maps_to_itself() -> None:
    vocabulary = o200k_harmony_vocabulary()
    assert vocabulary is o200k_harmony_vocabulary()
    assert vocabulary.size == O200K_VOCAB_SIZE
    assert vocabulary.o200k_ids == tuple(range(O200K_VOCAB_SIZE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": {t: r for t, r in BYTES.items() if t != b"\xff"}}, "0xff"),
        ({"specials": {"<|start|>": 255}}, "share an id"),
        ({"size": 256}, "0 to 255"),
        ({"specials": {"<|start|>": -1}}, "from -1"),
        ({"o200k_ids": (1, 2, 3)}, "3 entries"),
    ],
)
def test_contradictory_vocabularies_are_refused(changes, message) -> None:
    sound = Vocabulary(ranks=BYTES, specials={"<|start|>": 256}, size=300)
    with pytest.raises(VocabularyError, match=message):
        replace(sound, **changes)


def test_recovering_merges_follows_rank_not_position() -> None:
    ranks = BYTES | {b"bc": 256, b"ab": 257, b"abc": 258}
    assert recover_merges(ranks) == {b"bc": (b"b", b"c"), b"ab": (b"a", b"b"), b"abc": (b"a", b"bc")}


@pytest.mark.parametrize(
    "extra",
    [
        {b"abc": 256},  # neither half exists
        {b"abc": 256, b"ab": 257},  # its half comes after it
        {b"bc": 256, b"ab": 257, b"abcd": 258},  # b+c always merges first, and then a+bc does not exist
    ],
)
def test_ranks_that_merging_cannot_make_are_refused(extra) -> None:
    with pytest.raises(VocabularyError):
        recover_merges(BYTES | extra)
