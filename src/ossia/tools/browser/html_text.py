"""HTML to a page's text, with link markers.

trafilatura finds the main text. Where it finds little (an index, a list of links), the whole body is laid out by the
same rules. Runs in the extraction worker (`worker.py`), since it works on bytes from strangers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from ossia.tools.browser.page import MARKER, LinkTable, clean_text, host_of, strip_markers
from ossia.tools.extras import need

MIN_MAIN_CHARS = 100
MIN_MAIN_SHARE = 0.05
MAX_LINK_SHARE = 0.9
_MAX_DEPTH = 200
_DROPPED = frozenset(
    {"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "head", "select", "textarea"}
)
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption"}
    | {"figure", "footer", "form", "header", "hr", "html", "main", "nav", "ol", "p", "section", "summary", "table"}
    | {"tbody", "tfoot", "thead", "ul", "doc", "list", "quote", "comments"}
)
_XML_HEAD = re.compile(r"\A\s*<\?xml[^>]{0,200}\?>")
_NO_WORD_CHARS = re.compile(r"\W+")
_SPACES = re.compile(r"[ \t\r\f\v\u00a0]+")


class Extracted(NamedTuple):
    """What a worker gives back."""

    title: str
    text: str
    links: list[str]


def extract_html(source: str, url: str) -> Extracted:
    """The title, text and links of an HTML page.

    Raises:
        MissingExtraError: trafilatura is not installed.
    """
    html = need("lxml.html", package="lxml")
    source = _XML_HEAD.sub("", source)  # lxml takes no text that states an encoding
    try:
        root = html.document_fromstring(source)
    except Exception:  # noqa: BLE001  lxml raises many kinds for what is no document
        return Extracted("", clean_text(source), [])
    base = _base_url(root, url)
    title = _title(root)
    _make_links_absolute(root, base)
    whole = _Layout(base).run(root)
    if _link_share(whole.text) > MAX_LINK_SHARE:
        return whole._replace(title=title)
    main = _main_text(root, base)
    enough = max(MIN_MAIN_CHARS, int(MIN_MAIN_SHARE * len(whole.text)))
    chosen = main if main is not None and len(main.text) >= min(enough, len(whole.text)) else whole
    return chosen._replace(title=title)


def _main_text(root: Any, base: str) -> Extracted | None:
    trafilatura = need("trafilatura")
    etree = need("lxml.etree", package="lxml")
    found = trafilatura.extract(
        copy.deepcopy(root),  # it takes the tree apart
        url=base,
        output_format="xml",
        include_links=True,
        include_tables=True,
        include_images=True,
        include_comments=False,
        favor_recall=True,
    )
    if not found:
        return None
    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    return _Layout(base).run(etree.fromstring(found.encode("utf-8"), parser))


def _make_links_absolute(root: Any, base: str) -> None:
    """Against the page's address: trafilatura would take the site's. What cannot be opened is a link no more."""
    for node in root.iter("a"):
        url = absolute_url(base, node.get("href"))
        if url is None:
            node.attrib.pop("href", None)
        else:
            node.set("href", url)


def _link_share(text: str) -> float:
    """How much of a text stands inside of links: an index has no main text, its links are what matters."""
    inside = sum(len(_NO_WORD_CHARS.sub("", found)) for found in MARKER.findall(text))
    return inside / max(len(_NO_WORD_CHARS.sub("", strip_markers(text))), 1)


class _Layout:
    """Lays a tree of HTML, or of trafilatura's XML, out as text."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._links = LinkTable(host_of(base))
        self._blocks: list[str] = []
        self._line: list[str] = []
        self._num_images = 0
        # By name and not by getattr: a page chooses its tags.
        self._handlers: dict[str, Callable[[Any, int], None]] = {
            "a": self._lay_a,
            "ref": self._lay_ref,
            "img": self._lay_image,
            "graphic": self._lay_image,
            "br": self._lay_break,
            "lb": self._lay_break,
            "li": self._lay_item,
            "item": self._lay_item,
            "tr": self._lay_row,
            "row": self._lay_row,
            "pre": self._lay_pre,
            "code": self._lay_code,
            **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6", "head"), self._lay_heading),
        }

    def run(self, root: Any) -> Extracted:
        self._visit(root, 0)
        self._end_block()
        text = "\n".join(self._blocks)
        text = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
        return Extracted("", text, self._links.urls)

    def _visit(self, node: Any, depth: int) -> None:
        tag = node.tag.lower() if isinstance(node.tag, str) else None
        if tag is None or depth > _MAX_DEPTH or (tag in _DROPPED and not (tag == "head" and node.get("rend"))):
            return
        handler = self._handlers.get(tag)
        if handler is not None:
            handler(node, depth)
        elif tag in _BLOCKS:
            self._end_block()
            self._inside(node, depth)
            self._end_block(is_spaced=tag in ("p", "blockquote", "quote", "section", "article", "table"))
        else:
            self._inside(node, depth)

    def _inside(self, node: Any, depth: int) -> None:
        self._add(node.text)
        for child in node:
            self._visit(child, depth + 1)
            self._add(child.tail)

    def _add(self, text: str | None) -> None:
        if text:
            self._line.append(_SPACES.sub(" ", clean_text(text).replace("\n", " ")))

    def _end_block(self, *, is_spaced: bool = False) -> None:
        line = _SPACES.sub(" ", "".join(self._line)).strip()
        self._line.clear()
        if line:
            self._blocks.append(line)
        if is_spaced and self._blocks and self._blocks[-1]:
            self._blocks.append("")

    def _lay_a(self, node: Any, depth: int) -> None:
        self._lay_link(node, node.get("href"), depth)

    def _lay_ref(self, node: Any, depth: int) -> None:
        self._lay_link(node, node.get("target"), depth)

    def _lay_link(self, node: Any, target: str | None, depth: int) -> None:
        outer, self._line = self._line, []
        num_blocks = len(self._blocks)
        self._inside(node, depth)
        # A link round blocks (a card) is one line.
        inner = " ".join([*self._blocks[num_blocks:], "".join(self._line)])
        del self._blocks[num_blocks:]
        self._line = outer
        url = absolute_url(self._base, target)
        lead = " " if inner[:1].isspace() else ""
        trail = " " if inner[-1:].isspace() else ""
        self._line.append(f"{lead}{self._links.mark(inner, url) if url else inner.strip()}{trail}")

    def _lay_image(self, node: Any, _: int) -> None:
        text = " ".join(clean_text(node.get("alt") or node.get("title") or "").split())[:200]
        self._line.append(f"[Image {self._num_images}: {text}]" if text else f"[Image {self._num_images}]")
        self._num_images += 1

    def _lay_break(self, _node: Any, _: int) -> None:
        self._end_block()

    def _lay_item(self, node: Any, depth: int) -> None:
        self._end_block()
        self._line.append("* ")
        self._inside(node, depth)
        self._end_block()

    def _lay_heading(self, node: Any, depth: int) -> None:
        self._end_block(is_spaced=True)
        level = (node.get("rend") or node.tag)[-1]
        self._line.append(f"{'#' * int(level) if level.isdigit() else '##'} ")
        self._inside(node, depth)
        self._end_block(is_spaced=True)

    def _lay_row(self, node: Any, depth: int) -> None:
        self._end_block()
        for i, cell in enumerate(node):
            if i:
                self._line.append(" | ")
            outer, self._line = self._line, []
            num_blocks = len(self._blocks)
            if isinstance(cell.tag, str) and cell.tag in ("td", "th", "cell"):
                self._inside(cell, depth + 1)
            else:
                self._visit(cell, depth + 1)
            inner = " ".join([*(block for block in self._blocks[num_blocks:] if block), "".join(self._line)])
            del self._blocks[num_blocks:]
            self._line = [*outer, inner.strip()]
        self._end_block()

    def _lay_pre(self, node: Any, _: int) -> None:
        self._end_block()
        text = clean_text("".join(node.itertext())).strip("\n")
        self._blocks += [*text.split("\n"), ""]

    def _lay_code(self, node: Any, depth: int) -> None:
        # trafilatura gives <code> both to blocks and to words within a line.
        if "\n" in "".join(node.itertext()):
            self._lay_pre(node, depth)
        else:
            self._inside(node, depth)


def _title(root: Any) -> str:
    for path in (".//title", ".//h1"):
        node = root.find(path)
        if node is not None and (text := " ".join(clean_text("".join(node.itertext())).split())):
            return text[:200]
    return ""


def _base_url(root: Any, url: str) -> str:
    node = root.find(".//base[@href]")
    return (absolute_url(url, node.get("href")) or url) if node is not None else url


def absolute_url(base: str, target: str | None) -> str | None:
    """The address that a link leads to, without its fragment; None for one that cannot be opened."""
    if not target or target.strip().startswith("#"):
        return None
    try:
        # Only schemes that urljoin knows are joined, so a local site's is lent that of the web.
        is_local = base.startswith("local:")
        joined = urljoin(f"http:{base[6:]}" if is_local else base, target.strip())
        parts = urlsplit(joined)
        if parts.scheme not in ("http", "https") or not parts.netloc or len(joined) > 2048:
            return None
        is_same = is_local and parts.netloc == urlsplit(base).netloc
        return parts._replace(fragment="", scheme="local" if is_same else parts.scheme).geturl()
    except ValueError:
        return None
