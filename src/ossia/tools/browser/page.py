"""Pages as the model sees them: wrapped, numbered lines with link markers.

A marker is `【id†text】`, or `【id†text†host】` for a link to another host; the brackets of a page's own text are made
look-alikes, so a page cannot forge a marker or a citation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WIDTH = 80
_TOKEN = re.compile(r"【[^】]*】\S*|[^\s【]+(?:【[^】]*】\S*)?|\s+|【")
MARKER = re.compile(r"【\d+†([^†】]*)(?:†[^】]*)?】")
# Invisible characters: zero width, direction overrides, and the tag block, in which text can be smuggled.
_INVISIBLE = re.compile(
    "[\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BRACKETS = str.maketrans({"【": "〖", "】": "〗"})


def clean_text(text: str) -> str:
    """A page's own text: brackets disarmed, invisible and control characters gone."""
    return _CONTROL.sub("", _INVISIBLE.sub("", text)).translate(_BRACKETS)


@dataclass(slots=True)
class LinkTable:
    """Numbers links as they come; one address has one number.

    Args:
        base_host: links to it are shown without a host.
    """

    base_host: str = ""
    urls: list[str] = field(default_factory=list[str])
    _numbers: dict[str, int] = field(default_factory=dict[str, int])

    def mark(self, text: str, url: str) -> str:
        """The marker for a link, or the text alone where there is nothing to show or to open."""
        shown = " ".join(clean_text(text).replace("†", "‡").split())
        if not shown or not url:
            return shown
        number = self._numbers.get(url)
        if number is None:
            number = self._numbers[url] = len(self.urls)
            self.urls.append(url)
        host = host_of(url)
        return f"【{number}†{shown}】" if host in ("", self.base_host) else f"【{number}†{shown}†{clean_text(host)}】"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page ready to show.

    Attributes:
        text: with markers, unwrapped.
        links: addresses by the numbers of their markers.
        lines: the text wrapped at WIDTH; numbers of lines count these, from 0.
        queries: for a page of search results, what was searched, by link number: opening a link looks for it.
        places: for a page of matches, the line that each link leads to.
        is_searchable: whether `find` may run on it; not on results.
    """

    url: str
    title: str
    text: str
    links: tuple[str, ...] = ()
    lines: tuple[str, ...] = field(init=False)
    queries: Mapping[int, str] = field(default_factory=dict[int, str])
    places: Mapping[int, int] = field(default_factory=dict[int, int])
    is_searchable: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lines", tuple(wrap(self.text)))


def wrap(text: str, width: int = WIDTH) -> list[str]:
    """Lines of at most `width` characters; a marker stays whole, and a longer word is cut."""
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line.rstrip())
            continue
        indent = line[: len(line) - len(line.lstrip())][: width // 2]
        current = indent
        for token in _TOKEN.findall(line[len(indent) :]):
            if token.isspace():
                current += token if len(current) < width else ""
                continue
            if len(current) + len(token) > width and current.strip():
                lines.append(current.rstrip())
                current = indent
            room = width - len(current)
            pieces = [token] if "【" in token else [token[i : i + room] for i in range(0, len(token), room)]
            lines += [indent + piece for piece in pieces[:-1]]
            current = current + pieces[-1] if len(pieces) == 1 else indent + pieces[-1]
        if current.strip():
            lines.append(current.rstrip())
    return lines


def strip_markers(text: str) -> str:
    """Markers replaced by their texts."""
    return MARKER.sub(r"\1", text)


def host_of(url: str) -> str:
    """The host of an address, or nothing."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def best_line(page: Page, query: str) -> int:
    """The line where the words of a query stand closest together; 0 if none does."""
    words = {word for word in re.findall(r"\w{3,}", query.lower()) if word}
    if not words:
        return 0
    scores = [len(words & set(re.findall(r"\w{3,}", strip_markers(line).lower()))) for line in page.lines]
    best, where = 0, 0
    for i in range(len(scores)):
        score = 2 * scores[i] + sum(scores[i + 1 : i + 4])
        if score > best and scores[i]:
            best, where = score, i
    return where
