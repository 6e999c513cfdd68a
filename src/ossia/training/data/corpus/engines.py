"""Where documents are read and filtered: in this process, in several, or on a Ray cluster. The results are the same.

Each engine gives one result a row, in the order of the manifest: duplicates are decided by who comes first.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from typing import Any

from ossia.training.data.filters.pipeline import Dropped, Kept, TextFilters
from ossia.training.data.sources.document import Document, Unreadable
from ossia.training.data.sources.files import read_sources
from ossia.training.data.sources.manifest import Manifest

BATCH = 64
"""Documents that a process takes at once."""

Result = Kept | Dropped | Unreadable


def run_local(manifest: Manifest, *, workers: int, skip_bad: bool) -> Iterator[Result]:
    """Read here; filter here (1 worker) or in so many processes, which hold no more than a few batches each.

    Raises:
        InvalidInputError: as `read_sources`.
        MissingExtraError: a package of `ossia[data]` is not installed.
    """
    items = read_sources(manifest, skip_bad=skip_bad)
    if workers <= 1:
        filters = TextFilters(manifest)
        for item in items:
            yield item if isinstance(item, Unreadable) else filters.apply(item)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[Future[list[Result]]] = deque()
        try:
            for batch in _batches(items, size=BATCH):
                waiting.append(pool.submit(_apply, batch, manifest))
                if len(waiting) >= 4 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(items: Iterable[Any], *, size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@cache
def _filters_of(manifest: Manifest) -> TextFilters:
    return TextFilters(manifest)


def _apply(batch: Sequence[Document | Unreadable], manifest: Manifest) -> list[Result]:
    filters = _filters_of(manifest)
    return [item if isinstance(item, Unreadable) else filters.apply(item) for item in batch]
