"""Putting pieces of given sizes into as few bins of one capacity as is easily done."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def pack_bins(sizes: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the largest piece first, each into the fullest bin that still takes it.

    Takes n log n steps; at most 11/9 of the least number of bins, and one (Johnson, 1973).

    Args:
        sizes: of the pieces; none exceeds the capacity.
        capacity: of every bin.

    Returns:
        Places of the pieces in `sizes`, a list for each bin.
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # bins by the room that they have left
    rooms: list[int] = []  # the keys of with_room, sorted
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        size = sizes[piece]
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        bins[chosen].append(piece)
        left = room - size
        if left not in with_room:
            with_room[left] = []
            bisect.insort(rooms, left)
        with_room[left].append(chosen)
    return bins
