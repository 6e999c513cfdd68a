"""Where the calls of the server's own tools stand among the items of a response, and where their results go."""

from __future__ import annotations

from ossia.harmony.message import Message
from ossia.server.responses.items import Item
from ossia.tools.base import ToolResult
from ossia.tools.browser.citations import CitedPage


class HostedCalls:
    """The calls of one response, in the order in which the agent's loop counts them.

    Results stand behind the last call of their turn, in the order of the calls: so the model sees them.

    Args:
        items: of the response; results are added to them.

    Attributes:
        pages: what was shown to the model, for citations.
    """

    def __init__(self, items: list[Item]) -> None:
        self.pages: dict[int, CitedPage] = {}
        self._items = items
        self._places: list[int] = []
        self._waiting: set[int] = set()
        self._results: dict[int, tuple[Message, ...]] = {}  # of the turn's calls, by their places

    def begin(self, item: Item) -> None:
        """Add the item of a call that waits for its result."""
        self._places.append(len(self._items))
        self._waiting.add(len(self._items))
        self._items.append(item)

    def place(self, number: int) -> int:
        """Where the item of a call stands."""
        return self._places[number]

    def end(self, number: int, result: ToolResult) -> None:
        """A call has its result."""
        place = self._places[number]
        self._waiting.discard(place)
        self._results[place] = result.messages
        for source in result.sources:
            self.pages[source.cursor] = CitedPage(url=source.url, title=source.title)
        if not self._waiting:
            self._lay_results()

    def give_up(self) -> list[int]:
        """The places of calls whose results will not come."""
        self._lay_results()
        left = sorted(self._waiting)
        self._waiting.clear()
        return left

    def _lay_results(self) -> None:
        if self._results:
            last = max(self._results)
            results = [message for _, messages in sorted(self._results.items()) for message in messages]
            self._items[last] = self._items[last]._replace(messages=(*self._items[last].messages, *results))
            self._results.clear()
