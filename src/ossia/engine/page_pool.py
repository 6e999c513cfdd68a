"""The pages of the KV cache: who holds which, and which still show something worth keeping. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from ossia.core.errors import CacheIntegrityError

NULL_PAGE = 0
"""Padding is written here and nobody reads it; never handed out."""

BlockKey = tuple[int, bytes]
"""Group of layers and prefix hash: what a cached page shows."""


class PagePool:
    """Pages 1 to `num_pages - 1`; each is always in exactly one of these states:

    | state | references | has a key | may be taken |
    |---|---|---|---|
    | free | 0 | no | at once, first of all |
    | idle | 0 | yes | yes: the one idle longest loses its key |
    | held | 1 or more | perhaps | no |

    A page with a key is complete and is never written again while it has one.

    Attributes:
        num_pages: with the null page.
        num_evictions: idle pages that lost their key because a page was needed.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_evictions = 0
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the one idle longest first
        self._references = [0] * num_pages
        self._pages: dict[BlockKey, int] = {}
        self._keys: dict[int, BlockKey] = {}

    @property
    def num_free(self) -> int:
        """Pages that may be taken, idle ones among them."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def find(self, key: BlockKey) -> int | None:
        """Return the page that shows this block, held or idle."""
        return self._pages.get(key)

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def take(self) -> int:
        """Hand out a page to write; the caller has looked at `num_free`."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._pages[self._keys.pop(page)]
            self.num_evictions += 1
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """Hold a page with a key once more."""
        if self._references[page] == 0:
            del self._idle[page]
        self._references[page] += 1

    def release(self, page: int) -> None:
        """Hold a page once less; the last one to let go makes it idle, or free if it has no key."""
        self._references[page] -= 1
        if self._references[page]:
            return
        if page in self._keys:
            self._idle[page] = None
        else:
            self._free.append(page)

    def name(self, page: int, key: BlockKey) -> None:
        """Say what a held page shows; if another page shows the same already, that one stays the known one."""
        if key not in self._pages and page not in self._keys:
            self._pages[key] = page
            self._keys[page] = key

    def drop_keys(self) -> None:
        """Forget what every page shows: idle ones become free, held ones are found no more."""
        self._free.extend(reversed(self._idle))
        self._idle.clear()
        self._pages.clear()
        self._keys.clear()

    def key_of(self, page: int) -> BlockKey | None:
        return self._keys.get(page)

    def check_integrity(self, num_holders: Mapping[int, int]) -> None:
        """Compare with what block tables say.

        Args:
            num_holders: how many block tables name each held page.

        Raises:
            CacheIntegrityError: a page is in no state or in two, or is counted wrongly, or a key is.
        """
        free, idle = set(self._free), set(self._idle)
        held = {page for page, references in enumerate(self._references) if references}
        _require(len(free) == len(self._free), "a page is free twice")
        _require(not (free & idle or free & held or idle & held), "a page is in two states at once")
        _require(NULL_PAGE not in free | idle | held, "the null page was handed out")
        lost = set(range(1, self.num_pages)) - free - idle - held
        _require(not lost, f"pages {sorted(lost)} are neither free, idle nor held")
        for page in held | set(num_holders):
            references, holders = self._references[page], num_holders.get(page, 0)
            _require(references == holders, f"page {page} counts {references} references, {holders} tables name it")
        is_inverse = {page: key for key, page in self._pages.items()} == self._keys
        _require(is_inverse and len(self._pages) == len(self._keys), "keys and pages are not one to one")
        _require(not free & set(self._keys), "a free page has a key")
        _require(idle <= set(self._keys), "an idle page has no key")


def _require(is_right: bool, wrong: str) -> None:
    if not is_right:
        raise CacheIntegrityError(wrong)
