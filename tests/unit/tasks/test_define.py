from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ossia.tasks.base import Answer
from ossia.tasks.define import WAYS, Define, load_glossary
from ossia.tasks.patterns import expand, read_patterns


def test_the_glossary_is_whole() -> None:
    entries = load_glossary()
    assert len(entries) == 700
    assert all(word == word.lower() and entry.meaning and "\t" not in entry.meaning for word, entry in entries.items())
    assert {entry.part_of_speech for entry in entries.values()} == {"noun", "verb", "adjective"}
    assert len(WAYS.held_out) >= 2


@given(seed=st.integers(0, 2**64 - 1), held_out=st.booleans())
def test_made_up_meanings_are_wrong(seed: int, held_out: bool) -> None:
    problem = Define().problem(random.Random(seed), held_out=held_out)
    assert not Define().grade(problem, Answer(final=f"{problem.facts['word']}: a kind of cheese"))
    is_known = problem.facts["word"] in load_glossary()
    assert Define().grade(problem, Answer(final="I do not know that word.")) is not is_known
    assert problem.part == ("in the glossary" if is_known else "not in it")


def test_patterns_stand_for_all_their_texts() -> None:
    assert expand("plain (no choice)") == ["plain (no choice)"]
    assert expand("(Hello|Hi)( there|)!") == ["Hello there!", "Hello!", "Hi there!", "Hi!"]
    assert expand("(a|b(1|2))x") == ["ax", "b1x", "b2x"]
    many = expand("".join(f"({n}a|{n}b)" for n in range(12)), limit=50)
    assert len(set(many)) == 50
    assert many == expand("".join(f"({n}a|{n}b)" for n in range(12)), limit=50)


def test_pattern_files_are_read_in_sections() -> None:
    (one,) = read_patterns("# note\n= greet hello\n(Hi|Ho)!\n! Hello.\n~ hello\n")
    assert (one.group, one.name, one.prompts, one.answers, one.accept) == (
        "greet", "hello", ("Hi!", "Ho!"), ("Hello.",), "hello",
    )  # fmt: skip
