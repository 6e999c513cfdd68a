"""Search services against servers on this machine that answer as they do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ossia.tools.browser.backends.base import SearchError, SearchHit
from ossia.tools.browser.backends.web import BraveSearch, ExaSearch, HttpSearch, SearxngSearch, YouSearch

pytest.importorskip("httpx2", reason="the extra ossia[tools] is not installed")


class Service:
    def __init__(self) -> None:
        self.answer: bytes = b"{}"
        self.status = 200
        self.method = self.path = ""
        self.query: dict[str, list[str]] = {}
        self.headers: dict[str, str] = {}
        self.body: Any = None
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                service.method, service.path, service.query = self.command, parts.path, parse_qs(parts.query)
                service.headers = {key.lower(): value for key, value in self.headers.items()}
                size = int(self.headers.get("Content-Length") or 0)
                service.body = json.loads(self.rfile.read(size)) if size else None
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(service.answer)))
                self.end_headers()
                self.wfile.write(service.answer)

            do_POST = do_GET  # noqa: N815  the library's name

            def log_message(self, *_: object) -> None:
                return

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # a client that leaves early is what is tested

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.server.shutdown()
    service.server.server_close()


def search(backend: HttpSearch, num_results: int = 3) -> list[SearchHit]:
    return asyncio.run(backend.search("harbour cranes", num_results=num_results))


HIT = {"title": "T", "url": "https://a.example/"}
CASES = [
    (SearxngSearch, "/search", {"results": [{**HIT, "content": "S"}]}),
    (BraveSearch, "/res/v1/web/search", {"web": {"results": [{**HIT, "description": "<strong>S</strong>"}]}}),
    (ExaSearch, "/search", {"results": [{**HIT, "text": "S"}]}),
    (YouSearch, "/v1/search", {"results": {"web": [{**HIT, "snippets": ["S"]}], "news": []}}),
]
ODD = [b"[]", b"null", b'{"results": 3}', b'{"results": [3, {"url": 5}, {"url": "javascript:x"}]}', b'{"web": []}']


@pytest.mark.parametrize(("kind", "path", "answer"), CASES)
def test_results_are_read(service: Service, kind: type[HttpSearch], path: str, answer: object) -> None:
    service.answer = json.dumps(answer).encode()
    hits = search(kind(base_url=service.url, api_key="k3y"))
    assert hits == [SearchHit(title="T", url="https://a.example/", snippet="S")]
    assert service.path == path
    asked = service.body["query"] if service.body else (service.query.get("q") or service.query["query"])[0]
    assert asked == "harbour cranes"
    if kind.key_header:
        assert service.headers[kind.key_header.lower()] == "k3y"
    assert "k3y" not in repr(kind(base_url=service.url, api_key="k3y"))


@pytest.mark.parametrize("kind", [case[0] for case in CASES])
@pytest.mark.parametrize("body", ODD)
def test_other_shapes_give_no_results(service: Service, kind: type[HttpSearch], body: bytes) -> None:
    service.answer = body
    assert search(kind(base_url=service.url, api_key="k")) == []


def test_failures_are_told_without_the_key(service: Service) -> None:
    backend = BraveSearch(base_url=service.url, api_key="k3y")
    for status, answer in (
        (500, b"{}"),
        (302, b""),
        (200, b"<html>"),
        (200, b"[" * 100_000),
        (200, b'"' + b"x" * (5 << 20) + b'"'),
    ):
        service.status, service.answer = status, answer
        with pytest.raises(SearchError) as caught:
            search(backend)
        assert "k3y" not in str(caught.value)
    with pytest.raises(SearchError, match="reached"):
        search(BraveSearch(base_url="http://127.0.0.1:9", api_key="k3y"))
