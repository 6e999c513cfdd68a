"""Markdown to a page's text: the source, with its links as markers."""

from __future__ import annotations

import re

from ossia.tools.browser.html_text import Extracted, absolute_url
from ossia.tools.browser.page import LinkTable, clean_text, host_of

_LINK = re.compile(r"(!?)\[([^\[\]\n]{0,300})\]\(<?([^()\s<>]{1,2000})>?(?:\s+\"[^\"\n]*\")?\)")
_AUTOLINK = re.compile(r"<(https?://[^\s<>]{1,2000})>")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~)")


def extract_markdown(source: str, url: str) -> Extracted:
    """The first heading as title, and the text with markers; code blocks stay as they are."""
    links = LinkTable(host_of(url))

    def mark(found: re.Match[str]) -> str:
        if found.group(1):
            return f"[Image: {found.group(2)}]" if found.group(2) else "[Image]"
        target = absolute_url(url, found.group(3))
        return links.mark(found.group(2) or found.group(3), target) if target else found.group(2)

    def mark_line(line: str) -> str:
        line = _LINK.sub(mark, line)
        return _AUTOLINK.sub(lambda found: links.mark(found.group(1), found.group(1)), line)

    lines: list[str] = []
    is_code = False
    text = clean_text(source.replace("\r\n", "\n"))
    for line in text.split("\n"):
        is_fence = bool(_FENCE.match(line.lstrip()))
        lines.append(line if is_code or is_fence else mark_line(line))
        is_code ^= is_fence
    heading = _HEADING.search(text)
    title = _LINK.sub(r"\2", heading.group(1)) if heading else ""
    return Extracted(title[:200], "\n".join(lines).strip("\n"), links.urls)
