"""Bytes of a page to a title, text and links: by content type, with limits on what comes out.

Parsers of HTML and PDF are given bytes from strangers, so `Extractor` runs them in a process of their own with limits
on memory and time; it is kept for the next page and replaced when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from ossia.tools.browser.fetch import RawPage
from ossia.tools.browser.html_text import Extracted, extract_html
from ossia.tools.browser.markdown_text import extract_markdown
from ossia.tools.browser.page import clean_text
from ossia.tools.browser.policy import FetchError
from ossia.tools.extras import need

MAX_TEXT_CHARS = 2_000_000
MAX_PDF_PAGES = 500
_PAGES_PER_WORKER = 200
_TEXT_TYPES = frozenset(
    {"application/json", "application/xml", "application/javascript", "application/x-yaml", "application/toml"}
)
_MARKDOWN = frozenset({"text/markdown", "text/x-markdown", "text/x-rst"})
_HTML = frozenset({"text/html", "application/xhtml+xml"})
_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([a-zA-Z0-9_-]{2,40})", re.IGNORECASE)


def extract(page: RawPage, *, is_source: bool = False) -> Extracted:
    """A page's title, text and links.

    Args:
        page: as it came.
        is_source: the text as it is, without reading HTML or Markdown.

    Raises:
        FetchError: a kind of content that has no text, or a broken PDF.
    """
    kind = page.content_type or _sniff(page.data)
    if kind == "application/pdf" or page.data[:5] == b"%PDF-":
        found = _extract_pdf(page.data)
    elif kind.startswith("text/") or kind in _HTML or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml")):
        text = decode(page.data, page.charset)
        if is_source:
            found = Extracted("", clean_text(text), [])
        elif kind in _HTML:
            found = extract_html(text, page.url)
        elif kind in _MARKDOWN:
            found = extract_markdown(text, page.url)
        else:
            found = Extracted("", clean_text(text), [])
    else:
        raise FetchError(f"This is {kind[:80]}, which has no text to show.")
    if len(found.text) > MAX_TEXT_CHARS:
        found = found._replace(text=found.text[:MAX_TEXT_CHARS] + "\n[the rest is left out]")
    return found


def decode(data: bytes, charset: str | None) -> str:
    """Text by the header's charset, a byte-order mark, HTML's own statement, UTF-8, or Windows-1252, in this order."""
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    names = [name for mark, name in marks.items() if data.startswith(mark)]
    if charset:
        names.append(charset)
    if found := _META_CHARSET.search(data[:4096]):
        names.append(found.group(1).decode("ascii"))
    for name in (*names, "utf-8"):
        with contextlib.suppress(LookupError, UnicodeError, ValueError):
            return data.decode(name)
    return data.decode("cp1252", "replace")


def _sniff(data: bytes) -> str:
    start = data[:1024].lstrip().lower()
    if start.startswith(b"%pdf-"):
        return "application/pdf"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "text/html"
    return "application/octet-stream" if b"\0" in data[:1024] else "text/plain"


def _extract_pdf(data: bytes) -> Extracted:
    pypdf = need("pypdf")
    try:
        reader: Any = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise FetchError("This PDF is protected by a password.")
        metadata: Mapping[str, Any] = reader.metadata or {}
        title = clean_text(str(metadata.get("/Title") or ""))
        blocks: list[str] = []
        num_chars = 0
        for i, sheet in enumerate(reader.pages):
            if i >= MAX_PDF_PAGES or num_chars > MAX_TEXT_CHARS:
                blocks.append(f"[pages after {i} are left out]")
                break
            text = clean_text(sheet.extract_text() or "").strip()
            num_chars += len(text)
            blocks.append(f"## Page {i + 1}\n\n{text}")
    except FetchError:
        raise
    except MemoryError as error:
        raise FetchError("This PDF is too large to read.") from error
    except Exception as error:  # a broken file can fail anywhere
        raise FetchError(f"This PDF cannot be read ({type(error).__name__}).") from error
    return Extracted(" ".join(title.split())[:200], "\n\n".join(blocks), [])


class Extractor:
    """`extract` in a worker process, one page at a time.

    Args:
        timeout_s: for one page; the worker is ended when it takes longer.
    """

    def __init__(self, *, timeout_s: float = 20.0) -> None:
        self._timeout_s = timeout_s
        self._worker: asyncio.subprocess.Process | None = None
        self._num_pages = 0
        self._lock = asyncio.Lock()

    async def extract(self, page: RawPage, *, is_source: bool = False) -> Extracted:
        """As `extract`.

        Raises:
            FetchError: as `extract`; or the page takes too long or too much memory to read.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await self._ask(page, is_source)
            except TimeoutError as error:
                await self._end()
                raise FetchError("The page takes too long to read.") from error
            except asyncio.CancelledError:
                await self._end()
                raise
            except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                await self._end()
                raise FetchError("The page cannot be read: it takes too much memory.") from error
            self._num_pages += 1
            if self._num_pages >= _PAGES_PER_WORKER:
                await self._end()
        if "error" in answer:
            raise FetchError(str(answer["error"]))
        return Extracted(answer["title"], answer["text"], answer["links"])

    async def _ask(self, page: RawPage, is_source: bool) -> dict[str, Any]:
        if self._worker is None or self._worker.returncode is not None:
            self._num_pages = 0
            self._worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", "ossia.tools.browser.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
            )
        stdin, stdout = self._worker.stdin, self._worker.stdout
        assert stdin is not None
        assert stdout is not None
        head = {
            "url": page.url,
            "content_type": page.content_type,
            "charset": page.charset,
            "is_source": is_source,
            "size": len(page.data),
        }
        stdin.write(json.dumps(head).encode() + b"\n" + page.data)
        await stdin.drain()
        size = int.from_bytes(await stdout.readexactly(4), "big")
        return json.loads(await stdout.readexactly(size))

    async def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
        await worker.wait()
        transport = getattr(worker, "_transport", None)
        if transport is not None:
            transport.close()

    async def close(self) -> None:
        """Ends the worker."""
        async with self._lock:
            await self._end()
