"""Timing two implementations side by side.

Samples are taken in turns and in CPU time, so that a busy machine distorts neither: what is compared here runs on one
thread and waits for nothing.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ossia.core.files import write_text

SAMPLE_SECONDS = 0.02
"""One sample repeats its work until it takes this long, so that the clock's grain does not matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One row of a benchmark.

    Attributes:
        name: what was done.
        size: to how much, for the reader ("1,048,576 characters").
        ours: median CPU seconds of one call.
        peer: likewise, of the peer.
    """

    name: str
    size: str
    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer."""
        return self.peer / self.ours

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "ratio": round(self.ratio, 3)}


def compare(
    name: str, *, size: str, ours: Callable[[], object], peer: Callable[[], object], rounds: int = 9
) -> Comparison:
    """Time two callables in turns and take the medians."""
    loops = [loops_for(ours), loops_for(peer)]
    samples: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        order = (0, 1) if index % 2 == 0 else (1, 0)
        for which in order:
            samples[which].append(time_once((ours, peer)[which], loops=loops[which]))
    return Comparison(name=name, size=size, ours=statistics.median(samples[0]), peer=statistics.median(samples[1]))


def loops_for(work: Callable[[], object]) -> int:
    """How often to call `work` for one sample. The call made to find out also warms up."""
    work()
    return max(1, round(SAMPLE_SECONDS / max(time_once(work, loops=1), 1e-9)))


def time_once(work: Callable[[], object], *, loops: int) -> float:
    """CPU seconds a call, over `loops` calls, with the garbage collector held off."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.process_time()
        for _ in range(loops):
            work()
        return (time.process_time() - start) / loops
    finally:
        if was_enabled:
            gc.enable()


def format_seconds(seconds: float) -> str:
    """With three figures and a fitting unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def repository_root() -> Path:
    """The checkout that this file lies in."""
    return Path(__file__).resolve().parent.parent


def results_folder() -> Path:
    """Where the committed results are."""
    return repository_root() / "benchmarks" / "results"


def tell(record: dict[str, Any], page: str, *, name: str, as_json: bool) -> None:
    """Print results as JSON; or print their page, and write both into the folder of results."""
    text = json.dumps(record, indent=1) + "\n"
    if as_json:
        sys.stdout.write(text)
        return
    write_text(results_folder() / f"{name}.json", text)
    write_text(results_folder() / f"{name}.md", page)
    print(page)


def comparison_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Rows of a table: name, size, ours, peer, ratio."""
    return [
        [row.name, row.size, format_seconds(row.ours), format_seconds(row.peer), f"{row.ratio:.2f} x"]
        for row in comparisons
    ]
