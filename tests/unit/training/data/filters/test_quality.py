from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.training.data.filters.quality import RULES, STOP_WORDS, c4, fineweb, gopher, gopher_repetition, judge
from ossia.training.data.filters.repetition import duplicate_ngram_characters, top_ngram_characters

rng = random.Random(0)
VOCABULARY = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(3, 8))) for _ in range(400)]
GOOD = "The story of the river and that of the hill. " + " ".join(
    " ".join(rng.choice(VOCABULARY) for _ in range(9)) + "." for _ in range(20)
)


def test_a_good_text_passes_all() -> None:
    assert judge(GOOD, rules=tuple(RULES)).text == GOOD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ".join(GOOD.split()[:49]), "50"),
        ("the of and to " * 20, "mean word length"),
        ("extraordinarily-long " * 60, "mean word length"),
        (GOOD + " #" * 40, "symbol"),
        (GOOD + " wait... " * 40, "symbol"),
        ("\n".join(f"- {line}" for line in GOOD.split(".") if line), "bullets"),
        ("\n".join(" ".join(rng.choices(VOCABULARY, k=20)) + "…" for _ in range(9)), "ellipsis"),
        (GOOD + " 1234" * 100, "have a letter"),
        (" ".join(word for word in GOOD.split() if word.lower() not in STOP_WORDS), "stop words"),
    ],
)
def test_gopher(text: str, reason: str) -> None:
    verdict = gopher(text)
    assert verdict.text is None
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a line\n" * 5 + GOOD, "duplicate lines"),
        (GOOD.replace(". ", ".\n") + ("\n" + " ".join(VOCABULARY[:120])) * 2, "characters in duplicate lines"),
        (GOOD + " again and" * 60, "most frequent 2-gram"),
        (GOOD + (" " + " ".join(VOCABULARY[:12])) * 4, "characters in duplicate 6-grams"),
    ],
)
def test_gopher_repetition(text: str, reason: str) -> None:
    verdict = gopher_repetition(text)
    assert verdict.text is None
    assert reason in verdict.reason


words_of_few = st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=30)


@given(words=words_of_few, size=st.integers(2, 5))
def test_duplicate_ngrams_against_the_plain_count(words: list[str], size: int) -> None:
    """Mark the characters of each n-gram that came before, then count the marks."""
    is_marked = [False] * len(words)
    seen: set[tuple[str, ...]] = set()
    for place in range(len(words) - size + 1):
        ngram = tuple(words[place : place + size])
        if ngram in seen:
            is_marked[place : place + size] = [True] * size
        seen.add(ngram)
    expected = sum(len(word) for word, marked in zip(words, is_marked, strict=True) if marked)
    assert duplicate_ngram_characters(words, size=size) == expected


@given(words=words_of_few, size=st.integers(2, 5))
def test_top_ngrams_against_the_plain_count(words: list[str], size: int) -> None:
    ngrams = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
    expected = max(
        (ngrams.count(ngram) * sum(map(len, ngram)) for ngram in ngrams if ngrams.count(ngram) > 1), default=0
    )
    assert top_ngram_characters(words, size=size) == expected


def test_c4_keeps_whole_sentences() -> None:
    text = (
        "A menu without an end\nThe first sentence stays here. So does the second.\nToo short.\n\n"
        "Please enable JavaScript to see this page.\nWe have a privacy policy that you should read.\n"
        "This one trails off somewhere...\n\n\n\nThe last sentence is here, too!"
    )
    assert c4(text).text == "The first sentence stays here. So does the second.\n\nThe last sentence is here, too!"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD + " Lorem ipsum dolor.", "lorem ipsum"),
        (GOOD + " if (x) { y }.", "curly"),
        ("One sentence of five words. And two of five words.", "3 sentences"),
    ],
)
def test_c4_drops(text: str, reason: str) -> None:
    assert reason in c4(text).reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join(f"a line without an end number {number}" for number in range(20)), "punctuation"),
        ("A line that comes again and again and again.\n" * 3 + GOOD[:300], "repeated lines"),
        ("\n".join(f"Short line {number}." for number in range(9)), "shorter than 30"),
        ("", "no lines"),
    ],
)
def test_fineweb(text: str, reason: str) -> None:
    assert reason in fineweb(text).reason


@given(st.text(max_size=300))
def test_no_text_breaks_a_rule(text: str) -> None:
    for rule in RULES.values():
        verdict = rule(text)
        assert (verdict.text is None) == bool(verdict.reason)
