"""Citations become annotations, whole or streamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tools.browser.citations import CitationStream, CitationStyle, CitedPage, annotate

PAGES = {
    0: CitedPage(url="https://a.example/x", title="A", lines=("zero", "one", "two", "three")),
    3: CitedPage(url="https://b.example/(y)", title="B"),
}


def test_ranges_and_quotes() -> None:
    text = "It is so 【0†L1-L2】, and so 【3†L7】. Not 【9†L1】."
    found = annotate(text, PAGES)
    assert found.text == text
    first, second = found.annotations
    assert text[first.start : first.end] == "【0†L1-L2】"
    assert (first.url, first.title, first.first_line, first.last_line) == ("https://a.example/x", "A", 1, 2)
    assert first.quote == "one\ntwo"
    assert text[second.start : second.end] == "【3†L7】"
    assert first.to_dict() == {
        "type": "url_citation",
        "start_index": 9,
        "end_index": 18,
        "url": "https://a.example/x",
        "title": "A",
    }


def test_links_and_removal() -> None:
    link = annotate("x【3†L7】.", PAGES, style=CitationStyle.LINK)
    assert link.text == "x ([b.example](https://b.example/%28y%29))."
    assert link.text[link.annotations[0].start : link.annotations[0].end] == " ([b.example](https://b.example/%28y%29))"
    removed = annotate("x【3†L7】.", PAGES, style=CitationStyle.REMOVE)
    assert removed.text == "x."
    assert removed.annotations[0].start == removed.annotations[0].end == 1


@pytest.mark.parametrize(
    ("marker", "lines"),
    [
        ("【0†L1】", (1, 1)),
        ("【0†L1-2】", (1, 2)),
        ("【0†L2-L1】", (2, 2)),
        ("【0†L1–L3】", (1, 3)),
        ("【0†A title】", (None, None)),
        ("【0†L1†a.example】", (1, 1)),
        ("【0†】", (None, None)),
    ],
)
def test_the_forms_that_models_write(marker: str, lines: tuple[int | None, int | None]) -> None:
    (annotation,) = annotate(marker, PAGES).annotations
    assert (annotation.first_line, annotation.last_line) == lines


def test_what_is_no_citation_is_text() -> None:
    for text in ("【", "【0", "【0†L1", "【x†y】", "【0】", "【0†L1【0†L2】", "】【"):
        assert annotate(text, {}, style=CitationStyle.REMOVE).text == text


@given(
    st.lists(
        st.sampled_from(["【0†L1-L2】", "【3†x†y】", "【9†L1】", "【", "】", "†", "0", "L1", " text ", "é"]),
        max_size=12,
    ),
    st.sampled_from(list(CitationStyle)),
    st.data(),
)
def test_any_cutting_gives_the_same(pieces: list[str], style: CitationStyle, data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stream = CitationStream(PAGES, style=style)
    parts = [stream.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parts.append(stream.end())
    whole = annotate(text, PAGES, style=style)
    assert "".join(part.text for part in parts) == whole.text
    assert tuple(item for part in parts for item in part.annotations) == whole.annotations
