"""A full-text index over a folder: the offline default.

SQLite's FTS5, which comes with Python, ranks by BM25; a title weighs more than the text. The index lives in memory, or
in a file that is brought up to date by times and sizes. Pages have the addresses of the site that the folder was saved
from (`base_url`), or `local://name/path`.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import re
import sqlite3
import threading
from pathlib import Path
from urllib.parse import quote, unquote

from ossia.core.errors import InvalidInputError
from ossia.core.paths import PACKAGE_ROOT
from ossia.tools.browser.backends.base import SearchError, SearchHit
from ossia.tools.browser.extract import extract
from ossia.tools.browser.fetch import RawPage
from ossia.tools.browser.page import strip_markers
from ossia.tools.browser.policy import FetchError
from ossia.tools.confined import read_bytes, walk_files

_MAX_FILE_BYTES = 10 << 20
_MAX_WORDS = 32
_TYPES = {".md": "text/markdown", ".rst": "text/x-rst", ".txt": "text/plain", ".pdf": "application/pdf"}
_COMMON = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "by", "can", "do", "does", "for", "from", "how", "i", "in", "is", "it"}
    | {"of", "on", "or", "that", "the", "this", "to", "was", "what", "when", "where", "which", "who", "why", "with"}
)
_HTML = (".html", ".htm", ".xhtml")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS pages USING fts5(path UNINDEXED, title, body, tokenize = 'porter unicode61');
"""


class LocalIndex:
    """Searches and opens the pages of a folder.

    Args:
        folder: Markdown, text, HTML and PDF files; links in it are not followed.
        name: the host in `local://name/...`.
        base_url: the site that the folder was saved from; its pages then have their real addresses.
        index_path: a file for the index; in memory without one.

    Raises:
        InvalidInputError: no such folder.
    """

    def __init__(
        self, folder: Path, *, name: str = "files", base_url: str | None = None, index_path: Path | None = None
    ) -> None:
        if not folder.is_dir():
            raise InvalidInputError(f"there is no folder {folder} to search in", param="folder")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise InvalidInputError(f"{base_url!r} is no address of a site", param="base_url")
        self._folder = folder.resolve()
        self._base_url = (base_url or f"local://{quote(name)}").rstrip("/") + "/"
        self._index_path = index_path
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self.source = "web" if base_url else name

    async def search(self, query: str, *, num_results: int) -> list[SearchHit]:
        try:
            return await asyncio.to_thread(self._search, query, num_results)
        except sqlite3.Error as error:
            raise SearchError(f"The index cannot be searched ({type(error).__name__}).") from error

    async def open(self, url: str) -> RawPage | None:
        path = self._path_of(url)
        if path is None:
            return None
        for candidate in (path, f"{path.rstrip('/')}/index.html".lstrip("/"), f"{path}.html", f"{path}.md"):
            with contextlib.suppress(OSError):
                data = await asyncio.to_thread(read_bytes, self._folder, candidate, max_bytes=_MAX_FILE_BYTES)
                return RawPage(url=self._url_of(candidate), data=data, content_type=_type_of(candidate) or "")
        if url.startswith("local:"):
            raise FetchError(f"There is no page {url[:200]!r}.")
        return None

    async def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _search(self, query: str, num_results: int) -> list[SearchHit]:
        found = list(dict.fromkeys(re.findall(r"\w+", query.lower())))
        words = ([word for word in found if word not in _COMMON] or found)[:_MAX_WORDS]
        if not words:
            return []
        # Quoted, a word is no operator of the query language.
        match = " OR ".join(f'"{word}"' for word in words)
        with self._lock:
            database = self._open_database()
            rows = database.execute(
                "SELECT path, title, snippet(pages, 2, '', '', ' ... ', 40) FROM pages WHERE pages MATCH ? "
                "ORDER BY bm25(pages, 0.0, 5.0, 1.0) LIMIT ?",
                (match, num_results),
            ).fetchall()
        return [
            SearchHit(title=title, url=self._url_of(path), snippet=" ".join(snippet.split()))
            for path, title, snippet in rows
        ]

    def _open_database(self) -> sqlite3.Connection:
        """Opens the index and brings it up to date, once."""
        if self._database is None:
            if self._index_path is not None:
                self._index_path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._index_path or ":memory:", check_same_thread=False)
            try:
                database.executescript(_SCHEMA)
                self._refresh(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _refresh(self, database: sqlite3.Connection) -> None:
        known = dict(database.execute("SELECT path, stamp FROM files"))
        for path, info in walk_files(self._folder):
            kind = _type_of(path)
            if kind is None or info.st_size > _MAX_FILE_BYTES:
                continue
            stamp = f"{info.st_mtime_ns}:{info.st_size}"
            if known.pop(path, None) == stamp:
                continue
            try:
                data = read_bytes(self._folder, path, max_bytes=_MAX_FILE_BYTES)
                found = extract(RawPage(url=self._url_of(path), data=data, content_type=kind))
            except (OSError, FetchError):
                continue
            title = found.title or path.rpartition("/")[2]
            database.execute("DELETE FROM pages WHERE path = ?", (path,))
            database.execute("INSERT INTO pages VALUES (?, ?, ?)", (path, title, strip_markers(found.text)))
            database.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (path, stamp))
        for path in known:
            database.execute("DELETE FROM pages WHERE path = ?", (path,))
            database.execute("DELETE FROM files WHERE path = ?", (path,))
        database.commit()

    def _url_of(self, path: str) -> str:
        return self._base_url + quote(path)

    def _path_of(self, url: str) -> str | None:
        url = url.partition("#")[0].partition("?")[0]
        if url.rstrip("/") == self._base_url.rstrip("/"):
            return ""
        return unquote(url[len(self._base_url) :]) if url.startswith(self._base_url) else None


def own_docs() -> LocalIndex | None:
    """An index over Ossia's own documentation, as packaged or as in a checkout; None if neither is there."""
    for folder in (PACKAGE_ROOT / "_docs", PACKAGE_ROOT.parent.parent / "docs"):
        if folder.is_dir():
            return LocalIndex(folder, name="ossia-docs")
    return None


def _type_of(path: str) -> str | None:
    suffix = Path(path).suffix.lower()
    if suffix in _HTML:
        return "text/html"
    return _TYPES.get(suffix) or (mimetypes.guess_type(path)[0] if suffix in (".csv", ".json", ".xml") else None)
