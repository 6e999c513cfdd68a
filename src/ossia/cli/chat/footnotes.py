"""An answer's citations as footnotes: 【3†L5-L9】 becomes [1], and a line behind the answer says what it names."""

from __future__ import annotations

from collections.abc import Iterable

from ossia.tools.base import Source
from ossia.tools.browser.citations import Annotated, Annotation, CitationStream, CitedPage


class Footnotes:
    """Numbers the pages that answers cite, a page a number. Pages stay known for the whole conversation."""

    def __init__(self) -> None:
        self._pages: dict[int, CitedPage] = {}
        self._begin()

    def _begin(self) -> None:
        self._stream = CitationStream(self._pages)
        self._num_given = 0
        self._numbers: dict[str, int] = {}
        self._lines: dict[str, list[str]] = {}
        self._titles: dict[str, str] = {}

    def add_sources(self, sources: Iterable[Source]) -> None:
        """Pages that the model was shown."""
        for source in sources:
            self._pages[source.cursor] = CitedPage(url=source.url, title=source.title)

    def feed(self, text: str) -> str:
        """More of the answer; a citation that has only begun is held back."""
        return self._number(self._stream.feed(text))

    def end(self) -> str:
        """What was held back."""
        return self._number(self._stream.end())

    def take_notes(self) -> list[str]:
        """The footnotes, a line each; the next answer begins anew."""
        notes: list[str] = []
        for url, number in self._numbers.items():
            places = ", ".join(dict.fromkeys(self._lines[url]))
            notes.append(f"[{number}] {self._titles[url]}, {url}" + (f", {places}" if places else ""))
        self._begin()
        return notes

    def _number(self, piece: Annotated) -> str:
        parts: list[str] = []
        done = 0
        for annotation in piece.annotations:
            start, end = annotation.start - self._num_given, annotation.end - self._num_given
            parts += [piece.text[done:start], f"[{self._cite(annotation)}]"]
            done = end
        parts.append(piece.text[done:])
        self._num_given += len(piece.text)
        return "".join(parts)

    def _cite(self, annotation: Annotation) -> int:
        url = annotation.url
        number = self._numbers.setdefault(url, len(self._numbers) + 1)
        self._titles.setdefault(url, annotation.title)
        places = self._lines.setdefault(url, [])
        if annotation.first_line is not None:
            first, last = annotation.first_line, annotation.last_line
            places.append(f"line {first}" if first == last else f"lines {first}-{last}")
        return number
