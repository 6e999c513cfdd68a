"""Which page of the KV cache holds which block of a sequence's tokens. No torch."""

# S page size, P pages, n blocks of a prefix. Block i of a sequence is its tokens [i * S, (i + 1) * S).

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from ossia.core.errors import CacheIntegrityError, InvalidInputError
from ossia.engine.block_hash import block_hash, root_hash
from ossia.engine.page_pool import NULL_PAGE, PagePool
from ossia.engine.sequence import Sequence

FULL, SLIDING = 0, 1
"""The two groups of layers, in a page's key."""


class PrefixMatch(NamedTuple):
    """What the cache has of a sequence's beginning.

    Attributes:
        num_blocks: n, so that the sequence may start at token n * S.
        full_pages: n pages, or none where no layer has full attention.
        sliding_pages: n pages, 0 where the window has passed; or none where no layer slides.
        num_idle: how many of these pages nobody holds, so that taking them leaves fewer free.
    """

    num_blocks: int
    full_pages: list[int]
    sliding_pages: list[int]
    num_idle: int


class BlockManager:
    """Block tables over one pool of pages.

    Layers with full attention and sliding layers have a table each (`Sequence.full_pages`, `sliding_pages`), equally
    long; a page serves one of the two at a time. Sliding pages behind the window go back as the sequence moves on, so
    a sequence of N tokens holds N / S full pages and, at most, (window + chunk) / S + 2 sliding ones.

    Complete blocks get a key, the group and a hash chained over all tokens so far, by which later sequences find them.

    Attributes:
        page_size: S.
        num_groups: pages that one more block takes: 2, or 1 where all layers are of one kind.
        num_prefix_queries: sequences admitted that looked for their prefix.
        num_query_tokens: tokens that these brought.
        num_hit_tokens: those of them that were found.
    """

    def __init__(
        self,
        num_pages: int,
        *,
        page_size: int = 16,
        window: int | None = None,
        has_full_layers: bool = True,
        has_sliding_layers: bool = True,
        enable_prefix_cache: bool = True,
    ) -> None:
        """Make an empty cache.

        Args:
            num_pages: P, with the null page.
            page_size: S.
            window: a query at p sees the keys (p - window, p] in sliding layers; None where there are none.
            has_full_layers: whether the model has layers with full attention.
            has_sliding_layers: whether it has sliding ones.
            enable_prefix_cache: whether pages are named and found again.

        Raises:
            InvalidInputError: a size that makes no cache.
        """
        _check_sizes(num_pages, page_size, window if has_sliding_layers else 1)
        if not has_full_layers and not has_sliding_layers:
            raise InvalidInputError("a cache without layers; set has_full_layers or has_sliding_layers")
        self.page_size = page_size
        self.num_groups = int(has_full_layers) + int(has_sliding_layers)
        self.num_prefix_queries = 0
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._window = window if has_sliding_layers and window is not None else 0
        self._has_full = has_full_layers
        self._has_sliding = has_sliding_layers
        self._has_prefix_cache = enable_prefix_cache
        self._pool = PagePool(num_pages)

    @property
    def num_pages(self) -> int:
        """P, with the null page."""
        return self._pool.num_pages

    @property
    def num_free(self) -> int:
        """Pages that may be taken; those that only the prefix cache remembers are among them."""
        return self._pool.num_free

    @property
    def num_held(self) -> int:
        """Pages that sequences hold."""
        return self._pool.num_pages - 1 - self._pool.num_free

    @property
    def num_cached_idle(self) -> int:
        """Pages that only the prefix cache remembers."""
        return self._pool.num_idle

    @property
    def num_evictions(self) -> int:
        return self._pool.num_evictions

    def reads_cache(self, sequence: Sequence) -> bool:
        """Whether its prefix is looked for: not if the logits of all prompt tokens are wanted."""
        return self._has_prefix_cache and sequence.request.params.prompt_logprobs is None

    def find_prefix(self, sequence: Sequence) -> PrefixMatch:
        """Return the longest prefix of which every full page is there, and every sliding page that the next token sees.

        At least one known token is left to compute. Takes nothing yet.
        """
        if not self.reads_cache(sequence):
            return PrefixMatch(0, [], [], 0)
        num_blocks = (len(sequence.token_ids) - 1) // self.page_size
        full: list[int] = []
        if self._has_full:
            full = self._find_full(sequence, num_blocks)
            num_blocks = len(full)
        sliding: list[int] = []
        if self._has_sliding:
            sliding = self._find_sliding(sequence, num_blocks)
            num_blocks = len(sliding)
            del full[num_blocks:]
        num_idle = sum(map(self._pool.is_idle, full)) + sum(map(self._pool.is_idle, sliding))
        return PrefixMatch(num_blocks, full, sliding, num_idle)

    def take_prefix(self, sequence: Sequence, match: PrefixMatch) -> None:
        """Let a sequence without pages start behind a prefix just found."""
        for page in (*match.full_pages, *match.sliding_pages):
            if page != NULL_PAGE:
                self._pool.share(page)
        sequence.full_pages = list(match.full_pages)
        sequence.sliding_pages = list(match.sliding_pages)
        sequence.num_hashed = match.num_blocks
        sequence.num_computed = match.num_blocks * self.page_size
        if sequence.num_preemptions == 0:
            sequence.num_cached = sequence.num_computed
        if self.reads_cache(sequence):
            self.num_prefix_queries += 1
            self.num_query_tokens += len(sequence.token_ids)
            self.num_hit_tokens += sequence.num_computed

    def match_prefix(self, sequence: Sequence) -> int:
        """Find and take; return the number of tokens spared."""
        self.take_prefix(sequence, self.find_prefix(sequence))
        return sequence.num_computed

    def capacity(self, sequence: Sequence) -> int:
        """Tokens that its pages have room for."""
        return len(sequence.full_pages or sequence.sliding_pages) * self.page_size

    def reachable_length(self, sequence: Sequence) -> int:
        """Tokens that it could have room for if it took every page that is free."""
        return self.capacity(sequence) + self._pool.num_free // self.num_groups * self.page_size

    def can_allocate(self, sequence: Sequence, length: int) -> bool:
        """Whether there are pages to make room for its first `length` tokens."""
        return length <= self.reachable_length(sequence)

    def allocate(self, sequence: Sequence, length: int) -> None:
        """Make room for its first `length` tokens; the caller has asked `can_allocate`."""
        num_new = self._num_blocks(length) - len(sequence.full_pages or sequence.sliding_pages)
        for _ in range(num_new):
            if self._has_full:
                sequence.full_pages.append(self._pool.take())
            if self._has_sliding:
                sequence.sliding_pages.append(self._pool.take())

    def count_missing(self, num_held: int, *, position: int, length: int, chunk: int) -> int:
        """Return how many more pages a sequence needs, at the most, to compute all of `length` tokens.

        Args:
            num_held: blocks that its tables have.
            position: tokens computed.
            length: tokens to compute in all.
            chunk: tokens of a step.
        """
        num_blocks = self._num_blocks(length)
        num_missing = max(0, num_blocks - num_held) if self._has_full else 0
        if self._has_sliding:
            most = min(num_blocks, self._num_blocks(self._window - 1 + chunk) + 1)
            num_missing += max(0, most - (num_held - self._first_visible(position)))
        return num_missing

    def count_least(self, length: int) -> int:
        """Return how many pages it takes to compute `length` tokens, however small the chunks."""
        num_blocks = self._num_blocks(length)
        num_full = num_blocks if self._has_full else 0
        num_sliding = min(num_blocks, self._num_blocks(self._window - 1) + 1) if self._has_sliding else 0
        return num_full + num_sliding

    def register(self, sequence: Sequence, length: int) -> None:
        """Offer the complete blocks among its first `length` tokens to the prefix cache.

        They are known, and their keys and values are written, or will be before a step planned from now on reads them.
        """
        num_blocks = length // self.page_size
        if num_blocks <= sequence.num_hashed or not self._has_prefix_cache:
            return
        self._extend_hashes(sequence, num_blocks)
        for block in range(sequence.num_hashed, num_blocks):
            digest = sequence.block_hashes[block]
            if self._has_full:
                self._pool.name(sequence.full_pages[block], (FULL, digest))
            if self._has_sliding and sequence.sliding_pages[block] != NULL_PAGE:
                self._pool.name(sequence.sliding_pages[block], (SLIDING, digest))
        sequence.num_hashed = num_blocks

    def release_passed(self, sequence: Sequence, position: int) -> None:
        """Give back the sliding pages of which no query at `position` or later sees anything."""
        pages = sequence.sliding_pages
        # What was given back before is a run of zeros at the front. The tail goes first: it is the first to be evicted.
        block = min(self._first_visible(position), len(pages)) - 1
        while block >= 0 and pages[block] != NULL_PAGE:
            self._pool.release(pages[block])
            pages[block] = NULL_PAGE
            block -= 1

    def free(self, sequence: Sequence) -> None:
        """Give back all its pages, so that nothing of it is computed any more.

        Those with a key can be found until they are needed; the tail's go first.
        """
        for block in range(self.capacity(sequence) // self.page_size - 1, -1, -1):
            if self._has_sliding and sequence.sliding_pages[block] != NULL_PAGE:
                self._pool.release(sequence.sliding_pages[block])
            if self._has_full:
                self._pool.release(sequence.full_pages[block])
        sequence.full_pages = []
        sequence.sliding_pages = []
        sequence.num_hashed = 0
        sequence.num_computed = 0

    def drop_prefixes(self) -> None:
        """Forget all prefixes, for their keys and values are those of old weights. No sequence may hold pages."""
        self._pool.drop_keys()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Check that pages, keys and block tables agree.

        Args:
            sequences: all that may hold pages.

        Raises:
            CacheIntegrityError: they do not; a bug in Ossia.
        """
        num_holders: dict[int, int] = {}
        groups: dict[int, int] = {}
        for sequence in sequences:
            self._check_tables(sequence)
            for group, pages in ((FULL, sequence.full_pages), (SLIDING, sequence.sliding_pages)):
                for block, page in enumerate(pages):
                    if page == NULL_PAGE:
                        continue
                    num_holders[page] = num_holders.get(page, 0) + 1
                    if groups.setdefault(page, group) != group:
                        raise CacheIntegrityError(f"page {page} is in tables of both groups")
                    key = self._pool.key_of(page)
                    if key is not None and key != (group, sequence.block_hashes[block]):
                        raise CacheIntegrityError(f"page {page} has the key of another block than {block}")
                    if key is None and num_holders[page] > 1:
                        raise CacheIntegrityError(f"page {page} is shared and not complete")
        self._pool.check_integrity(num_holders)

    def _check_tables(self, sequence: Sequence) -> None:
        full, sliding = sequence.full_pages, sequence.sliding_pages
        name = f"sequence {sequence.request.id}/{sequence.index}"
        if (full and not self._has_full) or (sliding and not self._has_sliding):
            raise CacheIntegrityError(f"{name} has pages for layers that the model lacks")
        if self.num_groups == 2 and len(full) != len(sliding):
            raise CacheIntegrityError(f"{name} has tables of {len(full)} and {len(sliding)} blocks")
        if sequence.num_computed > self.capacity(sequence):
            raise CacheIntegrityError(f"{name} has computed {sequence.num_computed} tokens, more than its pages hold")
        if sequence.num_hashed * self.page_size > sequence.num_computed:
            raise CacheIntegrityError(f"{name} has offered blocks that are not computed")
        if NULL_PAGE in full or NULL_PAGE in sliding[self._first_visible(sequence.num_computed) :]:
            raise CacheIntegrityError(f"{name} lacks a page that its next token sees")
        if any(later == NULL_PAGE and page != NULL_PAGE for page, later in itertools.pairwise(sliding)):
            raise CacheIntegrityError(f"{name} holds a sliding page behind one that it gave back")

    def _num_blocks(self, length: int) -> int:
        return -(-length // self.page_size)

    def _first_visible(self, position: int) -> int:
        """Block of the earliest key that a query at `position` sees in sliding layers."""
        return max(0, position - self._window + 1) // self.page_size

    def _find_full(self, sequence: Sequence, num_blocks: int) -> list[int]:
        pages: list[int] = []
        for block in range(num_blocks):
            self._extend_hashes(sequence, block + 1)
            page = self._pool.find((FULL, sequence.block_hashes[block]))
            if page is None:
                break
            pages.append(page)
        return pages

    def _find_sliding(self, sequence: Sequence, num_blocks: int) -> list[int]:
        """Walk back from the longest candidate, until an unbroken run of pages covers its window."""
        self._extend_hashes(sequence, num_blocks)
        run: list[int] = []
        end = block = num_blocks
        while block > self._first_visible(end * self.page_size):
            block -= 1
            page = self._pool.find((SLIDING, sequence.block_hashes[block]))
            if page is None:
                end = block
                run.clear()
            else:
                run.append(page)
        return [NULL_PAGE] * block + run[::-1]

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes, size = sequence.block_hashes, self.page_size
        for block in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else root_hash(sequence.request.cache_salt)
            hashes.append(block_hash(parent, sequence.token_ids[block * size : (block + 1) * size]))


def _check_sizes(num_pages: int, page_size: int, window: int | None) -> None:
    for name, value, least in (("num_pages", num_pages, 2), ("page_size", page_size, 1), ("window", window, 1)):
        if value is None or value < least:
            raise InvalidInputError(f"{name} is {value}; allowed: a whole number of at least {least}", param=name)
