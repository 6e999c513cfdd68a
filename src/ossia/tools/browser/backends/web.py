"""Search services over HTTP: SearXNG, Brave, Exa and You.com."""

from __future__ import annotations

import html
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ossia.core.errors import InvalidInputError
from ossia.tools.browser.backends.base import SearchError, SearchHit
from ossia.tools.browser.fetch import RawPage
from ossia.tools.extras import need

_MAX_BYTES = 4 << 20
_TIMEOUT_S = 20.0
_MAX_SNIPPET_CHARS = 500
_TAG = re.compile(r"<[^<>]{0,200}>")


class HttpSearch(ABC):
    """What the services share.

    Args:
        base_url: where the service is.
        api_key: sent in a header, never shown or logged.
    """

    source = "web"
    key_header: str | None = None
    default_url = ""

    def __init__(self, *, base_url: str | None = None, api_key: str | None = None) -> None:
        self._base_url = (base_url or self.default_url).rstrip("/")
        self._api_key = api_key
        if not self._base_url.startswith(("http://", "https://")):
            raise InvalidInputError(f"{self._base_url!r} is no address of a search service", param="base_url")
        if self.key_header and not api_key:
            raise InvalidInputError(f"{type(self).__name__} needs an API key", param="api_key")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    async def search(self, query: str, *, num_results: int) -> list[SearchHit]:
        hits = self._read(await self._ask(query, num_results))
        return [hit for hit in hits if hit.url.startswith(("http://", "https://"))][:num_results]

    async def open(self, url: str) -> RawPage | None:
        return None

    async def close(self) -> None:
        return

    @abstractmethod
    async def _ask(self, query: str, num_results: int) -> object:
        """Send the query; the service's answer as JSON."""

    @abstractmethod
    def _read(self, answer: object) -> list[SearchHit]:
        """The hits in an answer."""

    async def _request(self, method: str, path: str, **options: Any) -> object:
        http = need("httpx2")
        headers = {"Accept": "application/json"}
        if self.key_header and self._api_key:
            headers[self.key_header] = self._api_key
        try:
            async with (
                http.AsyncClient(timeout=_TIMEOUT_S, trust_env=False, follow_redirects=False) as client,
                client.stream(method, f"{self._base_url}{path}", headers=headers, **options) as response,
            ):
                if response.status_code != 200:
                    raise SearchError(f"The search service answered with the status {response.status_code}.")
                body = bytearray()
                async for chunk in response.aiter_bytes(65_536):
                    body += chunk
                    if len(body) > _MAX_BYTES:
                        raise SearchError("The search service answered with too much.")
            return json.loads(body)
        except http.HTTPError as error:
            raise SearchError(f"The search service cannot be reached ({type(error).__name__}).") from error
        except (ValueError, RecursionError) as error:
            raise SearchError("The search service did not answer with JSON.") from error


class SearxngSearch(HttpSearch):
    """A SearXNG instance whose JSON format is switched on."""

    default_url = "http://127.0.0.1:8888"

    async def _ask(self, query: str, num_results: int) -> object:
        return await self._request("GET", "/search", params={"q": query, "format": "json"})

    def _read(self, answer: object) -> list[SearchHit]:
        return [_hit(item, snippet=_text(item, "content")) for item in _items(answer, "results")]


class BraveSearch(HttpSearch):
    """Brave Search."""

    default_url = "https://api.search.brave.com"
    key_header = "X-Subscription-Token"

    async def _ask(self, query: str, num_results: int) -> object:
        params = {"q": query[:400], "count": min(num_results, 20)}
        return await self._request("GET", "/res/v1/web/search", params=params)

    def _read(self, answer: object) -> list[SearchHit]:
        return [_hit(item, snippet=_text(item, "description")) for item in _items(answer, "web", "results")]


class ExaSearch(HttpSearch):
    """Exa."""

    default_url = "https://api.exa.ai"
    key_header = "x-api-key"

    async def _ask(self, query: str, num_results: int) -> object:
        contents = {"text": {"maxCharacters": _MAX_SNIPPET_CHARS}, "summary": True}
        return await self._request(
            "POST", "/search", json={"query": query, "numResults": num_results, "contents": contents}
        )

    def _read(self, answer: object) -> list[SearchHit]:
        return [_hit(item, snippet=_text(item, "summary") or _text(item, "text")) for item in _items(answer, "results")]


class YouSearch(HttpSearch):
    """You.com."""

    default_url = "https://api.ydc-index.io"
    key_header = "X-API-Key"

    async def _ask(self, query: str, num_results: int) -> object:
        return await self._request("GET", "/v1/search", params={"query": query, "count": num_results})

    def _read(self, answer: object) -> list[SearchHit]:
        hits: list[SearchHit] = []
        for kind in ("web", "news"):
            for item in _items(answer, "results", kind):
                snippets = item.get("snippets")
                found = [str(text) for text in cast("list[object]", snippets)] if isinstance(snippets, list) else []
                hits.append(_hit(item, snippet=" ".join(found) or _text(item, "description")))
        return hits


def _items(answer: object, *keys: str) -> Sequence[Mapping[str, object]]:
    """The list of objects at a path; nothing where the answer has another shape."""
    for key in keys:
        answer = cast("Mapping[str, object]", answer).get(key) if isinstance(answer, Mapping) else None
    if not isinstance(answer, list):
        return []
    return [cast("Mapping[str, object]", item) for item in cast("list[object]", answer) if isinstance(item, Mapping)]


def _text(item: Mapping[str, object], key: str) -> str:
    value = item.get(key)
    return html.unescape(_TAG.sub("", value)) if isinstance(value, str) else ""


def _hit(item: Mapping[str, object], *, snippet: str) -> SearchHit:
    url = item.get("url")
    url = url if isinstance(url, str) else ""
    snippet = " ".join(snippet.split())[:_MAX_SNIPPET_CHARS]
    return SearchHit(title=" ".join(_text(item, "title").split()) or url, url=url, snippet=snippet)
