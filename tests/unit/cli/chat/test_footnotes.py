from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ossia.cli.chat.footnotes import Footnotes
from ossia.tools.base import Source

SOURCES = [
    Source(cursor=0, url="https://example.org/a", title="A"),
    Source(cursor=1, url="https://example.org/b", title="B"),
    Source(cursor=2, url="https://example.org/a", title="A"),
]
TEXT = "One【1†L3】, two【0†L1-L4】【2†L9】 and three【7†L1】; 【1†L3】 again, 【not one."


def make() -> Footnotes:
    notes = Footnotes()
    notes.add_sources(SOURCES)
    return notes


def test_a_page_has_one_number_and_its_places_are_gathered() -> None:
    notes = make()
    assert notes.feed(TEXT) + notes.end() == "One[1], two[2][2] and three【7†L1】; [1] again, 【not one."
    assert notes.take_notes() == [
        "[1] B, https://example.org/b, line 3",
        "[2] A, https://example.org/a, lines 1-4, line 9",
    ]
    assert notes.take_notes() == []


def test_the_next_answer_counts_anew_and_knows_the_pages() -> None:
    notes = make()
    notes.feed(TEXT)
    notes.take_notes()
    assert notes.feed("See 【0†L1】.") == "See [1]."


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_any_cutting_gives_the_same(cuts: list[int]) -> None:
    notes = make()
    places = [0, *sorted(cuts), len(TEXT)]
    shown = "".join(notes.feed(TEXT[a:b]) for a, b in pairwise(places)) + notes.end()
    whole = make()
    assert shown == whole.feed(TEXT) + whole.end()
    assert notes.take_notes() == whole.take_notes()
