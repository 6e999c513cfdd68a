from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.harmony.prune import count_tokens, prune_vocabulary
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import SPECIAL_TOKENS, ControlToken, o200k_harmony_vocabulary, recover_merges

GOLDEN = Path(__file__).parents[2] / "golden" / "harmony"
FORCED = ["analysis", " commentary", "antidisestablishmentarianism", "1234", "٣٤"]
SIZE = 1024


@pytest.fixture(scope="module")
def o200k() -> Tokenizer:
    return Tokenizer.o200k_harmony()


@pytest.fixture(scope="module")
def counts(o200k: Tokenizer) -> Counter[int]:
    lines = (GOLDEN / "render.jsonl").read_text("utf-8").splitlines()
    return count_tokens((json.loads(line)["text"] for line in lines), o200k)


@pytest.fixture(scope="module")
def pruned(counts: Counter[int]) -> Tokenizer:
    return Tokenizer(prune_vocabulary(counts, size=SIZE, forced=FORCED))


def test_counts_include_the_tokens_on_the_way(o200k) -> None:
    token = o200k.encode(" hello")
    assert len(token) == 1
    counts = count_tokens([" hello", " hello"], o200k)
    assert counts[token[0]] == 2
    assert sum(count for rank, count in counts.items() if rank < 256) == 2 * len(" hello")
    left, right = o200k.merges[b" hello"]
    assert counts[o200k.vocabulary.ranks[left]] >= 2 <= counts[o200k.vocabulary.ranks[right]]
    assert count_tokens([], o200k) == Counter()


def test_counts_split_numbers_to_single_digits(o200k) -> None:
    counts = count_tokens(["777"], o200k)
    assert counts[o200k.encode("777")[0]] == 1
    assert counts[o200k.encode("7")[0]] == 3


def test_the_size_and_the_ids(pruned) -> None:
    vocabulary = pruned.vocabulary
    assert pruned.vocab_size == SIZE
    ids = [*vocabulary.ranks.values(), *vocabulary.specials.values()]
    assert ids == list(range(SIZE))
    assert len(vocabulary.specials) == 16
    assert set(ControlToken) <= vocabulary.specials.keys()


def test_every_id_maps_to_the_same_token_of_o200k_in_the_same_order(pruned, o200k) -> None:
    o200k_ids = pruned.vocabulary.o200k_ids
    assert o200k_ids == tuple(sorted(set(o200k_ids)))
    assert [pruned.token_bytes(i) for i in range(SIZE)] == [o200k.token_bytes(i) for i in o200k_ids]
    assert all(SPECIAL_TOKENS[name] == o200k_ids[i] for name, i in pruned.vocabulary.specials.items())


def test_every_byte_is_kept_and_merges_are_closed(pruned) -> None:
    ranks = pruned.vocabulary.ranks
    assert {bytes([i]) for i in range(256)} <= ranks.keys()
    full = recover_merges(o200k_harmony_vocabulary().ranks)
    assert all(part in ranks for token in ranks if len(token) > 1 for part in full[token])
    assert recover_merges(ranks) == {token: full[token] for token in ranks if len(token) > 1}


def test_no_token_joins_digits(pruned) -> None:
    texts = [token.decode("utf-8", errors="ignore") for token in pruned.vocabulary.ranks]
    assert not [text for text in texts if sum(map(str.isnumeric, text)) > 1]
    assert [pruned.decode([i]) for i in pruned.encode("sum 12345")] == [*_pieces(pruned, "sum "), *"12345"]


def test_forced_strings_encode_as_in_o200k_but_for_numbers(pruned, o200k) -> None:
    for text in FORCED[:3]:
        assert _pieces(pruned, text) == _pieces(o200k, text)
    assert _pieces(pruned, "1234") == list("1234")
    assert "".join(_pieces(pruned, "٣٤")) == "٣٤"


def test_the_most_used_tokens_are_kept(pruned, counts, o200k) -> None:
    kept = set(pruned.vocabulary.o200k_ids)
    free = [i for i in counts if i >= 256 and not any(char.isnumeric() for char in o200k.decode([i]))]
    forced = {i for text in FORCED for i in o200k.encode(text)}
    dropped = max(counts[i] for i in free if i not in kept)
    # Forced tokens bring parts of their own, so only what is kept on its merits is bounded from below.
    kept_on_merit = sorted((counts[i] for i in free if i in kept and i not in forced), reverse=True)
    assert kept_on_merit[len(kept_on_merit) * 9 // 10] >= dropped
    assert all(i in kept for i in free if counts[i] > dropped)


def test_unused_places_go_to_the_earliest_merges() -> None:
    vocabulary = prune_vocabulary({}, size=300)
    assert vocabulary.o200k_ids is not None
    assert vocabulary.o200k_ids[: 300 - 16] == tuple(range(300 - 16))


@given(st.text(max_size=40))
def test_a_pruned_vocabulary_still_encodes_any_text(pruned, text) -> None:
    assert pruned.decode(pruned.encode(text)) == text


def test_more_reserved_tokens_can_be_asked_for() -> None:
    vocabulary = prune_vocabulary({}, size=400, num_specials=32)
    assert len(vocabulary.specials) == 32
    assert len(vocabulary.ranks) == 368


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"size": 271}, "size"),
        ({"size": 272, "forced": [" hello"]}, "size"),
        ({"size": 200_000}, "size"),
        ({"size": 400, "num_specials": 9}, "num_specials"),
        ({"size": 400, "num_specials": 2000}, "num_specials"),
    ],
)
def test_impossible_sizes_are_refused(options, param) -> None:
    with pytest.raises(InvalidInputError) as caught:
        prune_vocabulary({}, **options)
    assert caught.value.param == param


def test_the_smallest_vocabulary_is_bytes_and_specials() -> None:
    vocabulary = prune_vocabulary({}, size=272)
    assert len(vocabulary.ranks) == 256


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]
