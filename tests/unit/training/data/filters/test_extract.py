from __future__ import annotations

import pytest

from ossia.training.data.filters.extract import extract, extract_html, extract_prose, is_prose
from ossia.training.data.sources.document import Document
from ossia.training.data.sources.manifest import Source

MARKDOWN = """# A heading that is quite long.

The first paragraph is broken
over two lines, with a [link](https://example.org/x), **bold** words and `code`.

```python
def function(argument): return "This is code, even if it ends in a stop."
```

| a | table |
| --- | --- |
| with | words in it. |

    indented code is dropped too, though it reads well.

- A bullet that is a whole sentence stays.
- short
* Another bullet, which goes on
  over its line, stays as well.

See :func:`open` and ``read`` for the way in which it is done::

    f = open("x")

Menu | Home | About | Contact us.
"""


def test_prose_of_markdown_and_restructured_text() -> None:
    assert extract_prose(MARKDOWN).split("\n\n") == [
        "The first paragraph is broken over two lines, with a link, bold words and code.",
        "A bullet that is a whole sentence stays.",
        "Another bullet, which goes on over its line, stays as well.",
        "See open and read for the way in which it is done:",
    ]


def test_a_text_that_is_indented_as_a_whole() -> None:
    assert extract_prose("    All of it stands four to the right.\n\n    It stays, since it is the margin.") == (
        "All of it stands four to the right.\n\nIt stays, since it is the margin."
    )


PAGE = """<html><head><title>t</title><style>p { color: red }</style></head><body>
<nav><ul><li><a href="/">Home is where the menu is, and it is long.</a></li></ul></nav>
<article><h1>The heading</h1>
<p>This is the first paragraph of the main text, which says what the page is about.</p>
<pre>code = "is dropped, even when it ends in a stop."</pre>
<table><tr><td>A table cell with a whole sentence in it is dropped.</td></tr></table>
<p>This is the second paragraph of the main text, with <b>bold</b> words and <code>a_name</code>.</p>
</article><script>var x = "Scripts are never text, of course.";</script></body></html>"""


def test_a_page() -> None:
    assert extract_html(PAGE).split("\n\n") == [
        "This is the first paragraph of the main text, which says what the page is about.",
        "This is the second paragraph of the main text, with bold words and a_name.",
    ]


@pytest.mark.parametrize("page", ["", "<html></html>", "no page at all", "<" * 50])
def test_pages_without_a_text(page: str) -> None:
    assert extract_html(page) == ""


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("This is a sentence of prose.", True),
        ('"It ends," he said, "in a quotation."', True),
        ("A heading without its stop", False),
        ("Too short.", False),
        ("x = y; if (a) { b(); } else { c(); d = e.f; } .", False),
        ("12 34 56 78 90 1.5 2.5 3.5 4.5.", False),
        ("C'est une phrase française tout à fait ordinaire.", True),
    ],
)
def test_prose_or_not(paragraph: str, expected: bool) -> None:
    assert is_prose(paragraph) is expected


@pytest.mark.parametrize(
    ("place", "changes", "expected"),
    [
        ("x/a.jsonl.xz, line 3", {}, "# as it is"),
        ("x/a.md", {}, ""),
        ("x/a.md.gz", {}, ""),
        ("x/a, b.md", {}, ""),
        ("x.md/a.JSONL, line 3", {}, "# as it is"),
        ("x/a.parquet, row 12", {}, "# as it is"),
        ("x/a.md", {"extract": "none"}, "# as it is"),
        ("x/a.jsonl, line 3", {"extract": "prose"}, ""),
        ("x/a.html", {}, ""),
        ("x/a", {"format": "jsonl"}, "# as it is"),
    ],
)
def test_the_way_of_extraction(place: str, changes: dict[str, str], expected: str) -> None:
    source = Source(name="a", path="*", license="MIT", origin="x", **changes)  # pyright: ignore[reportArgumentType]
    assert extract(Document("a", place, "# as it is"), source) == expected


def test_marks_within_a_sentence_leave_it_whole() -> None:
    sentence = "The class <code class='a'><span>Runner</span></code> keeps <em>all</em> of its <tt>workers</tt> alive."
    page = f"<html><body><article><p>{sentence}</p><p>{sentence.replace('class', 'other')}</p></article></body></html>"
    assert extract_html(page).split("\n\n")[0] == "The class Runner keeps all of its workers alive."


def test_the_foot_of_a_page_is_no_text() -> None:
    foot = "Except where it says otherwise, this page is under some licence or other, and we say so on each page."
    page = PAGE.replace(
        "</article>", f"<div class='row docs-license'><p>{foot}</p></div></article><footer>{foot}</footer>"
    )
    assert extract_html(page) == extract_html(PAGE)
