from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tasks import words
from ossia.tasks.base import is_held_out
from ossia.tasks.words import draw_letters, draw_word, load_common_words, load_words, quote, vary_case

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


def test_the_list_is_whole_and_split_in_two() -> None:
    split = load_words()
    train, held_out = set(split.train), set(split.held_out)
    assert len(train) + len(held_out) == len(split.train) + len(split.held_out) == 63_641
    assert not train & held_out
    assert 0.09 < len(held_out) / 63_641 < 0.11
    letters = set(string.ascii_lowercase)
    assert all(3 <= len(word) <= 16 and set(word) <= letters for word in train | held_out)


def test_strawberry_is_held_out() -> None:
    assert "strawberry" in load_words().held_out
    assert "strawberry" not in load_words().train


@given(seed=SEEDS)
def test_draws_come_from_their_side(seed: int) -> None:
    rng = random.Random(seed)
    assert draw_word(rng, held_out=True) in load_words().held_out
    drawn = draw_word(rng, held_out=False)
    assert not is_held_out(drawn)
    assert drawn != "strawberry"


@given(seed=SEEDS)
def test_random_letters_are_never_held_out(seed: int) -> None:
    word = draw_letters(random.Random(seed))
    assert 3 <= len(word) <= 14
    assert set(word) <= set(string.ascii_lowercase)
    assert not is_held_out(word)


def test_random_letters_avoid_the_words_always_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw_letters(random.Random(3))
    monkeypatch.setattr(words, "ALWAYS_HELD_OUT", frozenset({first}))
    assert draw_letters(random.Random(3)) != first


@given(seed=SEEDS, word=st.text(string.ascii_lowercase, min_size=1, max_size=16))
def test_case_and_quotes_keep_the_word(seed: int, word: str) -> None:
    rng = random.Random(seed)
    varied = vary_case(word, rng)
    assert varied in {word, word.capitalize(), word.upper()}
    quoted = quote(varied, rng)
    assert quoted.strip("'\"“”‘’`") == varied
    assert len(quoted) - len(varied) in {0, 2}


def test_common_words_are_words_to_train_on() -> None:
    common = set(load_common_words())
    assert 5_000 < len(common) < 40_000
    assert common <= set(load_words().train)
    assert "garden" in common
