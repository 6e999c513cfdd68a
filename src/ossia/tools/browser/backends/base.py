"""What a search backend is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ossia.tools.browser.fetch import RawPage
from ossia.tools.browser.policy import FetchError


class SearchError(FetchError):
    """A search that failed; the message is for the model and holds no key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """One result.

    Attributes:
        snippet: plain text.
    """

    title: str
    url: str
    snippet: str = ""


class SearchBackend(Protocol):
    """Finds pages, and may hold some itself.

    Attributes:
        source: its name, for the tool's declaration (`sources=web`).
    """

    @property
    def source(self) -> str: ...

    async def search(self, query: str, *, num_results: int) -> list[SearchHit]:
        """The best pages, best first.

        Raises:
            SearchError: the search could not be made.
        """
        ...

    async def open(self, url: str) -> RawPage | None:
        """A page that the backend holds, or None for one that must be fetched."""
        ...

    async def close(self) -> None: ...
