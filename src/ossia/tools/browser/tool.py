"""The browser tool: search, open and find over a stack of pages.

Each display pushes its page and shows its place in the stack, the cursor, which later calls and citations name. What
pages say is data: their brackets cannot form markers, and the renderer encodes look-alikes of control tokens as text.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ossia.core.errors import InvalidInputError
from ossia.harmony.builtin_tools import BROWSER
from ossia.harmony.content import ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.arguments import read_arguments
from ossia.tools.base import FailureKind, Source, ToolContext, ToolError, ToolResult, failure, reply
from ossia.tools.browser.backends.base import SearchBackend, SearchHit
from ossia.tools.browser.backends.local import LocalIndex, own_docs
from ossia.tools.browser.backends.web import BraveSearch, ExaSearch, SearxngSearch, YouSearch
from ossia.tools.browser.citations import CitedPage
from ossia.tools.browser.extract import Extractor
from ossia.tools.browser.fetch import Fetcher
from ossia.tools.browser.page import LinkTable, Page, best_line, clean_text, strip_markers
from ossia.tools.browser.policy import FetchPolicy

MAX_RESULTS = 20
VIEW_BYTES = 4096
"""How much a display shows: about 1,024 tokens, counting four bytes of UTF-8 for one, as the models were trained."""

_MAX_LINES = 2000
_MAX_DISPLAY_CHARS = 200_000
_MAX_MATCHES = 50
_MATCH_LINES = 4
_CACHED_PAGES = 64
_MAX_STACK = 1000
_MAX_QUERY_CHARS = 1000


class BrowserTool:
    """Browses for one conversation.

    Args:
        backend: what searches, and may hold pages.
        fetcher: fetches the pages that the backend does not hold; None for an offline browser.
        extractor: reads pages.
        view_bytes: how much of a page one display shows, if the model does not say.
    """

    name = "browser"
    is_builtin = True

    def __init__(
        self,
        backend: SearchBackend,
        *,
        fetcher: Fetcher | None = None,
        extractor: Extractor | None = None,
        view_bytes: int = VIEW_BYTES,
    ) -> None:
        self._backend = backend
        self._fetcher = fetcher
        self._extractor = extractor or Extractor()
        self._view_bytes = view_bytes
        self._stack: list[Page] = []
        self._cache: OrderedDict[tuple[str, bool], Page] = OrderedDict()
        self._lock = asyncio.Lock()
        self._schemas = {tool.name: tool.parameters for tool in BROWSER.tools}

    def declaration(self) -> ToolNamespace:
        if self._backend.source == "web":
            return BROWSER
        source = self._backend.source
        text = (BROWSER.description or "").replace(
            "sources=web (default: web)", f"sources={source} (default: {source})"
        )
        return replace(BROWSER, description=text)

    @property
    def cited_pages(self) -> Mapping[int, CitedPage]:
        """What each cursor showed, for `annotate`."""
        return {
            cursor: CitedPage(url=page.url, title=page.title, lines=page.lines)
            for cursor, page in enumerate(self._stack)
            if page.url
        }

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        name = (message.recipient or "").rpartition(".")[2]
        schema = self._schemas.get(name)
        if not isinstance(schema, Mapping):
            text = f"There is no tool {message.recipient!r}; browser.search, browser.open and browser.find exist."
            return failure(message, text, kind=FailureKind.NO_SUCH_TOOL)
        try:
            arguments = read_arguments(message, schema)
            async with self._lock:  # cursors follow the order of the calls
                if len(self._stack) >= _MAX_STACK:
                    raise ToolError(f"This conversation has opened {_MAX_STACK} pages; no more are opened.")
                if name == "search":
                    page, line, num_lines = await self._search(**arguments), 0, -1
                elif name == "open":
                    page, line, num_lines = await self._open(**arguments)
                else:
                    page, line, num_lines = self._find(**arguments), 0, -1
                text = self._display(page, len(self._stack), line, num_lines)
                self._stack.append(page)
                cursor = len(self._stack) - 1
        except ToolError as error:
            return failure(message, str(error), kind=error.kind)
        sources = (Source(cursor=cursor, url=page.url, title=page.title),) if page.url else ()
        return ToolResult(messages=(reply(message, text),), sources=sources)

    async def close(self) -> None:
        await self._extractor.close()
        await self._backend.close()

    # ---- the three functions ----

    async def _search(self, *, query: str, topn: float = 10, source: str | None = None) -> Page:
        del source  # there is one
        if not query.strip():
            raise ToolError("The query is empty.", kind=FailureKind.INVALID_ARGUMENTS)
        query = query[:_MAX_QUERY_CHARS]
        hits = await self._backend.search(query, num_results=max(1, min(int(topn), MAX_RESULTS)))
        return _results_page(query, hits)

    async def _open(
        self,
        *,
        id: float | str = -1,  # noqa: A002  the model's name for it
        cursor: float = -1,
        loc: float = -1,
        num_lines: float = -1,
        view_source: bool = False,
        source: str | None = None,
    ) -> tuple[Page, int, int]:
        del source
        query, place = "", -1
        if isinstance(id, str):
            page = await self._load(id.strip(), is_source=view_source)
        else:
            current = self._page_at(int(cursor))
            if id >= 0:
                number = int(id)
                if number >= len(current.links):
                    there = f"it has 0 to {len(current.links) - 1}" if current.links else "it has none"
                    raise ToolError(f"The page has no link {number}; {there}.", kind=FailureKind.INVALID_ARGUMENTS)
                query, place = current.queries.get(number, ""), current.places.get(number, -1)
                page = await self._load(current.links[number], is_source=view_source)
            elif view_source:
                page = await self._load(current.url, is_source=True)
            else:
                page = current
        line = int(loc)
        if line < 0:
            # Results lead to the passage that they were found for, with some lines before it.
            place = best_line(page, query) if query else place
            line = max(0, min(place, len(page.lines) - 1) - 4)
        if line >= max(len(page.lines), 1):
            last = max(len(page.lines) - 1, 0)
            raise ToolError(f"loc is {line}, but the last line is {last}.", kind=FailureKind.INVALID_ARGUMENTS)
        return page, line, int(num_lines)

    def _find(self, *, pattern: str, cursor: float = -1) -> Page:
        page = self._page_at(int(cursor))
        if not page.is_searchable:
            raise ToolError("Open a page first: this one lists results.", kind=FailureKind.INVALID_ARGUMENTS)
        wanted = pattern.lower()
        if not wanted.strip():
            raise ToolError("The pattern is empty.", kind=FailureKind.INVALID_ARGUMENTS)
        lines = [strip_markers(line) for line in page.lines]
        blocks: list[str] = []
        matches: list[int] = []
        at = 0
        while at < len(lines) and len(blocks) < _MAX_MATCHES:
            if _is_match(wanted, lines, at):
                matches.append(at)
                shown = "\n".join(lines[at : at + _MATCH_LINES])
                blocks.append(f"# 【{len(blocks)}†match at L{at}】\n{shown}")
                at += _MATCH_LINES
            else:
                at += 1
        safe = clean_text(pattern)
        return Page(
            url=page.url,
            title=f"Find results for text: `{safe}` in `{page.title}`",
            text="\n\n".join(blocks) or f"No `find` results for pattern: `{safe}`",
            links=(page.url,) * len(blocks),
            places=dict(enumerate(matches)),
            is_searchable=False,
        )

    # ---- pages ----

    def _page_at(self, cursor: int) -> Page:
        if not self._stack:
            raise ToolError("No page is open yet; search, or open an address.", kind=FailureKind.INVALID_ARGUMENTS)
        if cursor == -1:
            return self._stack[-1]
        if not 0 <= cursor < len(self._stack):
            raise ToolError(
                f"There is no cursor {cursor}; there are 0 to {len(self._stack) - 1}.",
                kind=FailureKind.INVALID_ARGUMENTS,
            )
        return self._stack[cursor]

    async def _load(self, url: str, *, is_source: bool) -> Page:
        if not url:
            raise ToolError("That is no page with an address.", kind=FailureKind.INVALID_ARGUMENTS)
        known = self._cache.get((url, is_source))
        if known is not None:
            self._cache.move_to_end((url, is_source))
            return known
        raw = await self._backend.open(url)
        if raw is None:
            if self._fetcher is None:
                raise ToolError("This browser is offline and has no such page.", kind=FailureKind.DENIED)
            raw = await self._fetcher.fetch(url)
        found = await self._extractor.extract(raw, is_source=is_source)
        body = found.text.strip("\n") or "[The page has no text.]"
        page = Page(
            url=raw.url,
            title=found.title or clean_text(raw.url),
            text=f"\nURL: {clean_text(raw.url)}\n\n{body}",
            links=tuple(found.links),
        )
        for key in {(url, is_source), (raw.url, is_source)}:
            self._cache[key] = page
        while len(self._cache) > _CACHED_PAGES:
            self._cache.popitem(last=False)
        return page

    def _display(self, page: Page, cursor: int, line: int, num_lines: int) -> str:
        """`[cursor] title (url)`, the lines that are shown, and the lines with their numbers."""
        shown: list[str] = []
        budget = self._view_bytes
        limit = min(num_lines, _MAX_LINES) if num_lines > 0 else _MAX_LINES
        num_chars = 0
        for i, text in enumerate(page.lines[line : line + limit], line):
            numbered = f"L{i}: {text}"
            budget -= len(numbered.encode("utf-8", "replace")) + 1
            num_chars += len(numbered)
            if shown and ((num_lines <= 0 and budget < 0) or num_chars > _MAX_DISPLAY_CHARS):
                break
            shown.append(numbered)
        where = f" ({clean_text(page.url)[:200]})" if page.url else ""
        last = max(len(page.lines) - 1, 0)
        bar = f"**viewing lines [{line} - {max(line + len(shown) - 1, line)}] of {last}**"
        return f"[{cursor}] {page.title}{where}\n{bar}\n\n" + "\n".join(shown)


def _is_match(wanted: str, lines: Sequence[str], at: int) -> bool:
    """Whether a text begins in this line; it may go on in the next, since wrapping breaks it anywhere."""
    line = lines[at].lower()
    if wanted in line:
        return True
    following = lines[at + 1].lower() if at + 1 < len(lines) else ""
    return wanted in f"{line} {following.lstrip()}" and wanted not in following


def _results_page(query: str, hits: list[SearchHit]) -> Page:
    links = LinkTable()
    blocks = ["\n# Search Results\n"]
    queries: dict[int, str] = {}
    for hit in hits:
        number = len(links.urls)
        marker = links.mark(hit.title or hit.url, hit.url)
        if len(links.urls) == number:  # the same page twice
            continue
        queries[number] = query
        blocks.append(f"  * {marker} {' '.join(clean_text(hit.snippet).split())}".rstrip())
    if not links.urls:
        blocks.append("No results.")
    return Page(
        url="",
        title=clean_text(query),
        text="\n".join(blocks),
        links=tuple(links.urls),
        queries=queries,
        is_searchable=False,
    )


_SERVICES: Mapping[str, Any] = {"searxng": SearxngSearch, "brave": BraveSearch, "exa": ExaSearch, "you": YouSearch}


def make_browser(
    *,
    backend: str | SearchBackend = "docs",
    folder: Path | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    policy: FetchPolicy | None = None,
    is_online: bool | None = None,
) -> BrowserTool:
    """A browser by the name of its backend.

    Args:
        backend: `docs` (Ossia's own), `folder` (with `folder`, and `base_url` for a saved site), `searxng` (with
            `base_url`), `brave`, `exa` or `you` (with `api_key`), or a backend itself.
        policy: for pages that are fetched.
        is_online: whether pages may be fetched; by default with a search service only.

    Raises:
        InvalidInputError: an unknown backend, or one that lacks an option.
    """
    is_service = False
    if not isinstance(backend, str):
        chosen, is_service = backend, True
    elif backend in _SERVICES:
        chosen, is_service = _SERVICES[backend](base_url=base_url, api_key=api_key), True
    elif backend == "docs":
        docs = own_docs()
        if docs is None:
            raise InvalidInputError("Ossia's documentation is not in this installation", param="backend")
        chosen = docs
    elif backend == "folder":
        if folder is None:
            raise InvalidInputError("the backend 'folder' needs a folder", param="folder")
        chosen = LocalIndex(folder, base_url=base_url)
    else:
        names = ", ".join(("docs", "folder", *_SERVICES))
        raise InvalidInputError(f"unknown search backend {backend!r}; use {names}", param="backend")
    online = is_service if is_online is None else is_online
    return BrowserTool(chosen, fetcher=Fetcher(policy) if online else None)
