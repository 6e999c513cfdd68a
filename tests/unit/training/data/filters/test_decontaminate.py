from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.tasks.words import load_words
from ossia.training.data.filters.decontaminate import MIN_WORDS, Decontaminator, held_out_prompts, read_evaluation_file
from ossia.training.data.filters.dedup import normalize

WORDS = random.Random(0).sample(load_words().train, 60)


def test_thirteen_words_in_a_row() -> None:
    checker = Decontaminator([" ".join(WORDS[:30])], size=13)
    assert checker.overlap(f"before {' '.join(WORDS[5:18])} after") == " ".join(WORDS[5:18])
    assert checker.overlap(f"before {' '.join(WORDS[5:17])} after") is None
    assert checker.overlap(" ".join([*WORDS[5:11], "x", *WORDS[11:18]])) is None


def test_marks_and_capitals_make_no_difference() -> None:
    checker = Decontaminator([" ".join(WORDS[:13])], size=13)
    assert checker.overlap(", ".join(word.upper() for word in WORDS[:13]) + "!")


def test_short_texts() -> None:
    checker = Decontaminator([" ".join(WORDS[:9]), "What is 2 + 2?"], size=13)
    assert (checker.num_texts, checker.num_too_short) == (1, 1)
    assert checker.overlap(f"x {' '.join(WORDS[:9])} y")
    assert checker.overlap(" ".join(WORDS[:8])) is None
    assert checker.overlap("What is 2 + 2?") is None


def test_held_out_problems_are_those_that_evaluation_asks() -> None:
    prompts = list(held_out_prompts(per_task=20))
    assert prompts == list(held_out_prompts(per_task=20))
    checker = Decontaminator(prompts, size=13)
    long = next(prompt for prompt in prompts if len(normalize(prompt)) >= 8)
    assert checker.overlap(f"Somebody asked: {long}")


def test_evaluation_files(tmp_path: Path) -> None:
    rows = tmp_path / "e.jsonl"
    rows.write_text(json.dumps({"q": "one", "options": ["two", {"x": "three"}], "n": 4}) + "\n\n")
    assert read_evaluation_file(rows) == ["one", "two", "three"]
    (tmp_path / "e.txt").write_text("one\nline\n\ntwo\n\n")
    assert read_evaluation_file(tmp_path / "e.txt") == ["one\nline", "two"]
    rows.write_text('{"q": 1}\n{')
    with pytest.raises(InvalidInputError, match="line 2"):
        read_evaluation_file(rows)
    rows.write_text('{"q": 1}\n')
    with pytest.raises(InvalidInputError, match="has no text"):
        read_evaluation_file(rows)
    with pytest.raises(InvalidInputError, match="no evaluation file"):
        read_evaluation_file(tmp_path / "none.jsonl")


@given(
    texts=st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=4),
    document=st.lists(st.sampled_from("abc"), max_size=30),
    size=st.integers(2, 10),
)
def test_overlap_against_the_plain_search(texts: list[list[str]], document: list[str], size: int) -> None:
    """Every run of the wanted length of every text, looked for as a string."""
    needed = min(size, MIN_WORDS)
    runs: set[str] = set()
    for text in texts:
        length = min(size, len(text))
        if length >= needed:
            runs |= {" ".join(text[start : start + length]) for start in range(len(text) - length + 1)}
    expected = any(f" {run} " in f" {' '.join(document)} " for run in runs)
    checker = Decontaminator((" ".join(text) for text in texts), size=size)
    assert (checker.overlap(" ".join(document)) is not None) == expected
