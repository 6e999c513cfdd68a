"""From files to prose: paragraphs are kept; code, tables, headings, menus and markup are dropped."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from ossia.training.data.sources.document import Document
from ossia.training.data.sources.extras import need
from ossia.training.data.sources.files import SUFFIXES
from ossia.training.data.sources.manifest import Source

MIN_WORDS = 5
MIN_LETTERS = 0.75
"""Of the characters that are no blanks; English prose has some 95 %, lines of code and tables far less."""
MAX_CODE = 0.02
"""Share of characters that prose has next to none of."""
SENTENCE_ENDS = frozenset(".!?:…\"'”’)]")

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}\1[`~]*\s*$|\Z)", re.DOTALL | re.MULTILINE)
_HTML_IN_TEXT = re.compile(r"<(script|style|pre|table)\b.*?</\1>|<!--.*?-->|</?[a-zA-Z][^<>\n]{0,200}>", re.DOTALL)
_TABLE_LINE = re.compile(r"^\s*[|+].*[|+]\s*$|^\s*[=\-+~^\"*#:|. ]{3,}$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)])\s+")
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s")
_DIRECTIVE = re.compile(r"^\s*\.\. ")
_INLINE = (
    (re.compile(r"!\[[^\]\n]*\]\([^)\n]*\)"), ""),
    (re.compile(r"\[([^\]\n]+)\]\([^)\n]*\)"), r"\1"),
    (re.compile(r":[a-z]+(?::[a-z]+)*:`~?([^`<\n]+?)(?:\s*<[^`\n]*>)?`"), r"\1"),
    (re.compile(r"`([^`<\n]+?)\s*<[^`\n]*>`__?"), r"\1"),
    (re.compile(r"`{1,2}([^`\n]+)`{1,2}"), r"\1"),
    (re.compile(r"(\*{1,3}|_{1,3})(?=\S)([^*_\n]+?)(?<=\S)\1(?!\w)"), r"\2"),
)
_LITERAL_NEXT = re.compile(r"::\s*$")
_INLINE_TAGS = " or ".join(
    f"self::{tag}" for tag in ("code", "tt", "kbd", "samp", "var", "span", "em", "strong", "cite")
)
_PRUNED = [
    *("//pre", "//nav", "//footer", "//script", "//style", "//table"),
    *(f"//*[contains(@class, '{name}')]" for name in ("highlight-", "footer", "-license")),
]
_ROW = re.compile(r", (?:line|row) \d+$")
_CODE_CHARACTERS = frozenset("{}<>;=\\|_`$@^~")


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is made of sentences: enough words, mostly letters, next to no code, an end."""
    solid = [character for character in paragraph if not character.isspace()]
    if len(paragraph.split()) < MIN_WORDS or paragraph.rstrip()[-1] not in SENTENCE_ENDS:
        return False
    letters = sum(character.isalpha() for character in solid)
    code = sum(character in _CODE_CHARACTERS for character in solid)
    return letters >= MIN_LETTERS * len(solid) and code <= MAX_CODE * len(solid)


def extract_prose(text: str) -> str:
    """The prose paragraphs of plain text, Markdown or reStructuredText, each on one line, a blank line between them."""
    text = _FENCE.sub("\n", text.expandtabs(4).replace("\r\n", "\n").replace("\r", "\n"))
    text = textwrap.dedent(_HTML_IN_TEXT.sub("", text))
    kept: list[str] = []
    is_literal = False
    for block in re.split(r"\n[ ]*\n", text):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        if indent >= 4 or (is_literal and indent):
            continue  # a listing, and all that belongs to it
        is_literal = bool(_LITERAL_NEXT.search(block))
        kept += [paragraph for paragraph in _paragraphs(lines) if is_prose(paragraph)]
    return "\n\n".join(kept)


def extract_html(page: str) -> str:
    """The prose paragraphs of a page's main text; empty where there is none.

    Raises:
        MissingExtraError: trafilatura is not installed.
    """
    trafilatura = need("trafilatura")
    tree = need("trafilatura.utils", package="trafilatura").load_html(page)
    if tree is None:
        return ""
    for element in tree.xpath(f"//*[{_INLINE_TAGS}][not(ancestor-or-self::pre)]"):
        element.drop_tag()  # trafilatura would break the paragraph here, and lose a part
    found = trafilatura.extract(
        tree,
        output_format="txt",
        include_comments=False,
        include_tables=False,
        include_images=False,
        include_links=False,
        prune_xpath=_PRUNED,
    )
    lines = [" ".join(line.split()) for line in (found or "").split("\n")]
    return "\n\n".join(line for line in (_BULLET.sub("", line) for line in lines) if line and is_prose(line))


def extract(document: Document, source: Source) -> str:
    """The text of a document, by the source's way of extraction."""
    way = source.extract
    if way == "auto":
        way = _automatic(document, source)
    if way == "html":
        return extract_html(document.text)
    return extract_prose(document.text) if way == "prose" else document.text


def _automatic(document: Document, source: Source) -> str:
    kind = source.format
    if kind == "auto":
        path = Path(_ROW.sub("", document.place))
        kind = next((SUFFIXES[name.lower()] for name in reversed(path.suffixes) if name.lower() in SUFFIXES), "jsonl")
    return {"html": "html", "text": "prose"}.get(kind, "none")


def _paragraphs(lines: list[str]) -> list[str]:
    """Lines of a block as paragraphs: a bullet begins one, lines of tables and headings fall out between them."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if _TABLE_LINE.match(line) or _HEADING.match(line) or _DIRECTIVE.match(line) or line.count("|") > 2:
            paragraphs.append([])
            continue
        if _BULLET.match(line):
            paragraphs.append([])
        paragraphs[-1].append(_BULLET.sub("", line).strip().removeprefix("> "))
    return [_plain(" ".join(paragraph)) for paragraph in paragraphs if paragraph]


def _plain(paragraph: str) -> str:
    for pattern, replacement in _INLINE:
        paragraph = pattern.sub(replacement, paragraph)
    return " ".join(_LITERAL_NEXT.sub(":", paragraph).split())
