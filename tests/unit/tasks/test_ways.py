from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.evals.ordinary import load_ordinary
from ossia.tasks.registry import TASKS
from ossia.tasks.ways import KNOWN, NEW, Ways, load_ways, number_words, plain, words_to_digits

SECTIONS = [name for name in load_ways() if name not in ("opening", "closing")]
TASKS_OF_WAYS = (
    "count_letters", "spell", "reverse", "add", "subtract", "compare", "multiply", "divide", "convert_units", "dates",
)  # fmt: skip
ROW = 5


def rows_of_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9{}']+", text.lower())
    rows = (tuple(words[i : i + ROW]) for i in range(len(words) - ROW + 1))
    return {row for row in rows if not any("{" in word for word in row)}


ORDINARY = {row for one in load_ordinary() for row in rows_of_words(one.question)}


@given(number=st.integers(0, 100))
def test_numbers_are_read_as_written_in_words(number: int) -> None:
    assert words_to_digits(f"What is {number_words(number)} plus 3?") == f"What is {number} plus 3?"


@pytest.mark.parametrize("name", SECTIONS)
def test_held_out_phrasings_are_none_of_training(name: str) -> None:
    ways = Ways(name)
    known = {plain(text) for texts in ways.known for text in texts}
    assert known
    assert ways.barred
    assert not known & ways.barred
    rng = random.Random(0)
    assert not {plain(ways.draw(rng)) for _ in range(2000)} & ways.barred


@pytest.mark.parametrize("name", SECTIONS)
def test_every_phrasing_has_the_same_places(name: str) -> None:
    ways = Ways(name)
    allowed = {"count_letters": [{"l", "w"}, {"ls", "w"}], "between": [{"a", "b"}]}
    for text in (text for texts in (*ways.known, *ways.new) for text in texts):
        places = set(re.findall(r"\{(\w+)\}", text))
        assert not re.search(r"[()|]", text)
        assert places in allowed.get(name, [set(re.findall(r"\{(\w+)\}", ways.known[0][0]))])


@pytest.mark.parametrize("name", TASKS_OF_WAYS)
def test_results_say_known_and_new(name: str) -> None:
    rng = random.Random(1)
    parts = {part for _ in range(200) for part in TASKS[name].problem(rng, held_out=True).part.split("; ")}
    assert {KNOWN, NEW} <= parts
    assert all(NEW not in TASKS[name].problem(rng, held_out=False).part for _ in range(200))


@pytest.mark.parametrize("name", SECTIONS)
def test_phrasings_share_no_row_of_words_with_the_ordinary_questions(name: str) -> None:
    ways = Ways(name)
    assert not {row for texts in (*ways.known, *ways.new) for text in texts for row in rows_of_words(text)} & ORDINARY
