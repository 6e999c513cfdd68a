from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.tasks.words import load_words
from ossia.training.data.filters.dedup import Deduplicator, normalize, shingles


def draw_text(rng: random.Random, num_words: int = 200) -> list[str]:
    return rng.choices(load_words().train, k=num_words)


def jaccard(one: list[str], other: list[str]) -> float:
    a, b = set(shingles(one)), set(shingles(other))
    return len(a & b) / len(a | b)


def edit(words: list[str], count: int, rng: random.Random) -> list[str]:
    edited = list(words)
    for _ in range(count):
        edited[rng.randrange(len(edited))] = rng.choice(load_words().train)
    return edited


def test_the_same_words_are_exact_duplicates() -> None:
    deduplicator = Deduplicator(near=0)
    assert deduplicator.reason_to_drop("A text, with marks — and Capitals.") is None
    assert deduplicator.reason_to_drop("a text with marks and capitals") == "exact duplicate"
    assert deduplicator.reason_to_drop("a text with marks and capital") is None


def test_near_duplicates_against_exact_jaccard() -> None:
    """Of pairs above 0.8, nearly all must be found; of those under 0.55, none: six standard errors of the estimate."""
    rng = random.Random(0)
    deduplicator = Deduplicator(near=0.7)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(300):
        words = draw_text(rng)
        assert deduplicator.reason_to_drop(" ".join(words)) is None
        other = edit(words, rng.choice([1, 2, 3, 16, 24]), rng)
        similarity = jaccard(words, other)
        if similarity > 0.8 or similarity < 0.55:
            found[similarity > 0.8].append(deduplicator.reason_to_drop(" ".join(other)) == "near duplicate")
    assert len(found[True]) > 80
    assert len(found[False]) > 80
    assert sum(found[True]) >= 0.99 * len(found[True])
    assert not any(found[False])


def test_a_dropped_document_is_not_remembered() -> None:
    """B is near A, C is near B but not near A: C stays, for B is gone."""
    rng = random.Random(1)
    words = draw_text(rng)
    b = [*words[:186], *draw_text(rng, 14)]
    c = [*draw_text(rng, 14), *b[14:]]
    assert jaccard(words, b) > 0.8
    assert jaccard(b, c) > 0.8
    assert jaccard(words, c) < 0.6 + 0.2
    deduplicator = Deduplicator(near=0.82)
    assert [deduplicator.reason_to_drop(" ".join(text)) for text in (words, b, c)] == [None, "near duplicate", None]


def test_near_can_be_off() -> None:
    rng = random.Random(2)
    words = draw_text(rng)
    deduplicator = Deduplicator(near=0)
    assert deduplicator.reason_to_drop(" ".join(words)) is None
    assert deduplicator.reason_to_drop(" ".join(edit(words, 1, rng))) is None


@given(st.text(max_size=60))
@settings(deadline=None)
def test_any_text_is_its_own_duplicate(text: str) -> None:
    deduplicator = Deduplicator(near=0.7)
    assert deduplicator.reason_to_drop(text) is None
    assert deduplicator.reason_to_drop(text) == "exact duplicate"
    assert deduplicator.reason_to_drop(f" {text}\n") == "exact duplicate"


@pytest.mark.parametrize(("text", "words"), [("It's ﬁne", ["it", "s", "fine"]), ("", []), ("ÄÖ ß", ["äö", "ss"])])
def test_normal_form(text: str, words: list[str]) -> None:
    assert normalize(text) == words
