"""The order in which documents are seen: a function of (seed, epoch), at any place, without a list in memory.

A permutation of n things is a Feistel network over the smallest even number of bits that holds n, its rounds keyed by
(seed, epoch), walked until it lands below n (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). It uses
whole-number arithmetic only, so that the order is the same on every machine and with every version of numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from ossia.core.errors import InvalidInputError
from ossia.training.data.shards.reader import ShardedTokens

ROUNDS = 6
"""Four make a pseudo-random permutation (Luby and Rackoff, 1988); small domains get two more."""


class Permutation:
    """A pseudo-random order of `range(size)`: `permutation(places)` are the things that stand at these places."""

    def __init__(self, size: int, *, key: str) -> None:
        if size < 1:
            raise InvalidInputError(f"there is no order of {size} things", param="size")
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.sha256(key.encode()).digest() + hashlib.sha256(f"{key} more".encode()).digest()
        self._keys = np.frombuffer(digest, dtype="<u8")[:ROUNDS]

    def __len__(self) -> int:
        return self.size

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The things at these places, int64 of the same shape. Places must lie in [0, size)."""
        values = self._walk(places.astype(np.uint64))
        outside = values >= self.size
        while outside.any():  # below four steps on average: the domain is less than four times as large
            values[outside] = self._walk(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.size:
            raise IndexError(place)
        return int(self(np.array([place]))[0])

    def _walk(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, which spreads every bit over all others; it wraps around on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class MixOrder:
    """The documents of one pass over the mix, each source repeated as the index says, shuffled by (seed, epoch).

    A source with repeats 2.3 gives every document twice and a random 30 % of them once more, another 30 % in
    another epoch. Memory does not grow with the number of tokens; it holds one number a document.
    """

    def __init__(self, shards: ShardedTokens, *, seed: int, epoch: int) -> None:
        numbers = shards.source_numbers()
        self._members = [np.flatnonzero(numbers == number) for number in range(len(shards.index.sources))]
        self._picks: list[Permutation | None] = []
        sizes: list[int] = []
        for source, members in zip(shards.index.sources, self._members, strict=True):
            sizes.append(round(source.repeats * len(members)))
            key = f"source {source.name} seed {seed} epoch {epoch}"
            self._picks.append(Permutation(len(members), key=key) if len(members) else None)
        self._starts = np.cumsum([0, *sizes])
        total = int(self._starts[-1])
        if not total:
            raise InvalidInputError(f"the mix of {shards.folder} repeats no source", param="repeats")
        self._shuffle = Permutation(total, key=f"mix seed {seed} epoch {epoch}")

    def __len__(self) -> int:
        return len(self._shuffle)

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return int(self.at(np.array([place]))[0])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), 4096):
            yield from self.at(np.arange(start, min(start + 4096, len(self)))).tolist()

    def at(self, places: np.ndarray) -> np.ndarray:
        """The numbers of the documents at these places of the pass, int64."""
        slots = self._shuffle(places)
        sources = np.searchsorted(self._starts, slots, side="right") - 1
        documents = np.empty_like(slots)
        for number in np.unique(sources):
            is_here = sources == number
            within, members, pick = slots[is_here] - self._starts[number], self._members[number], self._picks[number]
            if pick is not None:
                documents[is_here] = members[pick(within % len(members))]
        return documents
