"""What the engine counts, as plain numbers: a snapshot for a metrics page, a log line or a test. No torch."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets; a last one holds what is longer."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HistogramSnapshot:
    """Durations, counted by bucket.

    Attributes:
        bounds: upper bound of each bucket but the last, in seconds.
        counts: how many fell into each, one more than `bounds`; not cumulative.
        total: sum of all durations, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Histogram:
    """Counts durations by bucket."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, seconds: float, *, times: int = 1) -> None:
        """Count a duration; `times` > 1 for tokens that came together, each with its share."""
        self._counts[bisect.bisect_left(self._bounds, seconds)] += times
        self._total += seconds * times

    def snapshot(self) -> HistogramSnapshot:
        return HistogramSnapshot(bounds=self._bounds, counts=tuple(self._counts), total=self._total)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSnapshot:
    """The engine at one moment.

    Attributes:
        num_waiting, num_running: sequences in the queue and in the batch.
        num_pages, num_free_pages: of the KV cache; pages that only the prefix cache keeps count as free.
        num_steps: forward passes so far.
        num_prompt_tokens: prompt tokens of all requests taken so far.
        num_cached_tokens: those of them that the prefix cache spared.
        num_output_tokens: tokens sampled that count.
        num_draft_tokens, num_accepted_tokens: drafts verified, and those that were right.
        num_preemptions: sequences that lost their pages and started over.
        num_requests: requests taken.
        finished: answers that ended, by reason.
        rejected: requests refused because the queue was full.
        parser_repairs: what the harmony parser had to mend, by kind.
        time_to_first_token, inter_token: durations that clients see, in seconds.
        step_seconds: duration of a step.
    """

    num_waiting: int
    num_running: int
    num_pages: int
    num_free_pages: int
    num_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_preemptions: int
    num_requests: int
    finished: Mapping[str, int]
    rejected: int
    parser_repairs: Mapping[str, int]
    time_to_first_token: HistogramSnapshot
    inter_token: HistogramSnapshot
    step_seconds: HistogramSnapshot


class Metrics:
    """The running counts behind a snapshot. Written by the engine's thread alone."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_output_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.num_preemptions = 0
        self.num_requests = 0
        self.rejected = 0
        self.finished: Counter[str] = Counter()
        self.parser_repairs: Counter[str] = Counter()
        self.time_to_first_token = Histogram()
        self.inter_token = Histogram()
        self.step_seconds = Histogram()

    def snapshot(self, *, num_waiting: int, num_running: int, num_pages: int, num_free_pages: int) -> MetricsSnapshot:
        """All counts as of now; what is passed is known to the scheduler and the cache."""
        return MetricsSnapshot(
            num_waiting=num_waiting,
            num_running=num_running,
            num_pages=num_pages,
            num_free_pages=num_free_pages,
            num_steps=self.num_steps,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            num_draft_tokens=self.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens,
            num_preemptions=self.num_preemptions,
            num_requests=self.num_requests,
            finished=dict(self.finished),
            rejected=self.rejected,
            parser_repairs=dict(self.parser_repairs),
            time_to_first_token=self.time_to_first_token.snapshot(),
            inter_token=self.inter_token.snapshot(),
            step_seconds=self.step_seconds.snapshot(),
        )
