"""Citations in an answer, `【3†L5-L9】`, as annotations with character ranges.

Works on whole texts and on streams: a marker that has begun is held back until it is whole, so any cutting of the same
text gives the same result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ossia.tools.browser.page import host_of

_CITATION = re.compile(r"【(\d{1,6})†([^【】†]{0,80})(?:†[^【】]{0,200})?】")
_BEGUN = re.compile(r"【(?:\d{0,6}|\d{1,6}†[^【】]{0,281})\Z")
_LINES = re.compile(r"L(\d{1,7})(?:\s*[-–]\s*L?(\d{1,7}))?")


class CitationStyle(StrEnum):
    """What stands in the text for a citation whose page is known."""

    KEEP = "keep"
    LINK = "link"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class CitedPage:
    """What a cursor showed.

    Attributes:
        lines: of the whole page, as numbered in the display; may be empty.
    """

    url: str
    title: str
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One citation.

    Attributes:
        start: first character (code point) of the citation in the text that was given out.
        end: behind its last one; equal to `start` for a citation that was removed.
        first_line: of the page, or None if the citation names no lines.
        quote: the cited lines.
    """

    start: int
    end: int
    url: str
    title: str
    cursor: int
    first_line: int | None = None
    last_line: int | None = None
    quote: str = ""

    def to_dict(self) -> dict[str, object]:
        """As OpenAI's `url_citation`."""
        return {
            "type": "url_citation",
            "start_index": self.start,
            "end_index": self.end,
            "url": self.url,
            "title": self.title,
        }


class Annotated(NamedTuple):
    """A text, or a piece of one, and the annotations in it."""

    text: str
    annotations: tuple[Annotation, ...]


class CitationStream:
    """Turns a streamed answer's citations into annotations.

    Args:
        pages: what each cursor showed. A citation of another cursor stays in the text as it is.
        style: what stands for a citation.
    """

    def __init__(self, pages: Mapping[int, CitedPage], *, style: CitationStyle = CitationStyle.KEEP) -> None:
        self._pages = pages
        self._style = style
        self._held = ""
        self._position = 0

    def feed(self, text: str) -> Annotated:
        """Takes more of the answer; gives what is certain by now. Ranges count from the answer's beginning."""
        text = self._held + text
        begun = _BEGUN.search(text, max(text.rfind("【"), 0))
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        return self._convert(text[:cut])

    def end(self) -> Annotated:
        """The rest: a marker that was never closed is text."""
        text, self._held = self._held, ""
        return self._convert(text)

    def _convert(self, text: str) -> Annotated:
        pieces: list[str] = []
        annotations: list[Annotation] = []
        done = 0
        for found in _CITATION.finditer(text):
            page = self._pages.get(int(found.group(1)))
            if page is None:
                continue
            self._give(pieces, text[done : found.start()])
            done = found.end()
            start = self._position
            self._give(pieces, self._shown(found.group(), page))
            annotations.append(_annotate(found, page, start=start, end=self._position))
        self._give(pieces, text[done:])
        return Annotated("".join(pieces), tuple(annotations))

    def _give(self, pieces: list[str], text: str) -> None:
        pieces.append(text)
        self._position += len(text)

    def _shown(self, marker: str, page: CitedPage) -> str:
        if self._style is CitationStyle.KEEP:
            return marker
        if self._style is CitationStyle.REMOVE:
            return ""
        name = re.sub(r"[\[\]]", "", host_of(page.url) or page.title) or "source"
        return f" ([{name}]({page.url.replace('(', '%28').replace(')', '%29')}))"


def annotate(text: str, pages: Mapping[int, CitedPage], *, style: CitationStyle = CitationStyle.KEEP) -> Annotated:
    """A whole answer's text and annotations."""
    stream = CitationStream(pages, style=style)
    first, rest = stream.feed(text), stream.end()
    return Annotated(first.text + rest.text, first.annotations + rest.annotations)


def _annotate(found: re.Match[str], page: CitedPage, *, start: int, end: int) -> Annotation:
    lines = _LINES.search(found.group(2))
    first = last = None
    quote = ""
    if lines is not None:
        first = int(lines.group(1))
        last = max(int(lines.group(2) or first), first)
        quote = "\n".join(page.lines[first : last + 1])
    return Annotation(
        start=start,
        end=end,
        url=page.url,
        title=page.title,
        cursor=int(found.group(1)),
        first_line=first,
        last_line=last,
        quote=quote,
    )
