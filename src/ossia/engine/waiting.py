"""Who runs next: sequences without pages, in order. No torch."""

from __future__ import annotations

import heapq
from collections.abc import Sequence as ListLike

from ossia.engine.sequence import Sequence

PRIORITY_STEP = 64
"""Places in the queue that one step of priority is worth."""

Rank = tuple[int, int, int]


def rank(sequence: Sequence) -> Rank:
    """Return its place among all; the smallest is the best.

    It never changes. So whoever waits is overtaken only by the finitely many with better ranks, whatever comes later.
    """
    return sequence.arrival - sequence.request.priority * PRIORITY_STEP, sequence.arrival, sequence.index


class WaitingQueue:
    """A heap by rank.

    Other answers of a request wait aside until the first one's prompt is computed, for then they find it in the prefix
    cache. They have worse ranks than the first, so that they lose no place by this.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Sequence]] = []
        self._members: set[Sequence] = set()  # what is in the heap and not here has left
        self._aside: dict[Sequence, list[Sequence]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def push(self, sequence: Sequence) -> None:
        self._members.add(sequence)
        heapq.heappush(self._heap, (rank(sequence), sequence))

    def push_aside(self, sequences: ListLike[Sequence], *, leader: Sequence) -> None:
        """Add sequences that come up when the leader's prompt is computed, or when it is gone."""
        self._members.update(sequences)
        self._aside[leader] = list(sequences)

    def peek(self) -> Sequence | None:
        """Return the best that may run, and leave it."""
        while self._heap:
            sequence = self._heap[0][1]
            if sequence in self._members:
                return sequence
            heapq.heappop(self._heap)
        return None

    def pop(self) -> Sequence:
        """Take out what `peek` returned."""
        _, sequence = heapq.heappop(self._heap)
        self._members.remove(sequence)
        return sequence

    def note_computed(self, leader: Sequence) -> None:
        """Bring up those that waited for this prompt."""
        for sequence in self._aside.pop(leader, ()):
            if sequence in self._members:
                self.push(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Take out a sequence wherever it stands."""
        self._members.discard(sequence)
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)

    def note_gone(self, leader: Sequence) -> None:
        """Let the next answer of its request lead, if the leader went before its prompt was computed."""
        followers = [sequence for sequence in self._aside.pop(leader, ()) if sequence in self._members]
        if followers:
            self.push(followers[0])
            if len(followers) > 1:
                self._aside[followers[0]] = followers[1:]
