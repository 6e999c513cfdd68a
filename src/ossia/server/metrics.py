"""The metrics page: the engine's snapshot and the server's own counts, in Prometheus' words.

No label holds anything of a request but the route's pattern, its method and its status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from ossia.engine.metrics import HistogramSnapshot, MetricsSnapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """The server's own counts. Used by one event loop.

    Attributes:
        requests: by route pattern, method and status.
        num_open: requests in progress.
        num_background: background responses in progress.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.num_open = 0
        self.num_background = 0


def render_metrics(engine: MetricsSnapshot | None, server: ServerMetrics, *, is_alive: bool) -> bytes:
    """The page. Without an engine's snapshot only the server's counts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(engine, server, is_alive=is_alive))
    return generate_latest(registry)


class _Page:
    """A prometheus_client collector over counts that are known already."""

    def __init__(self, engine: MetricsSnapshot | None, server: ServerMetrics, *, is_alive: bool) -> None:
        self._engine = engine
        self._server = server
        self._is_alive = is_alive

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("ossia_engine_up", "Whether the engine takes requests.", value=float(self._is_alive))
        requests = CounterMetricFamily(
            "ossia_http_requests", "HTTP requests answered.", labels=["route", "method", "status"]
        )
        for (route, method, status), count in sorted(self._server.requests.items()):
            requests.add_metric([route, method, str(status)], count)
        yield requests
        yield GaugeMetricFamily("ossia_http_open_requests", "HTTP requests in progress.", value=self._server.num_open)
        yield GaugeMetricFamily(
            "ossia_background_responses", "Background responses in progress.", value=self._server.num_background
        )
        if self._engine is not None:
            yield from _engine_metrics(self._engine)


_GAUGES = (
    ("num_waiting", "waiting_sequences", "Sequences in the queue."),
    ("num_running", "running_sequences", "Sequences in the batch."),
    ("num_pages", "kv_pages", "Pages of the KV cache."),
    ("num_free_pages", "kv_free_pages", "Pages that nothing in progress holds."),
)
_COUNTERS = (
    ("num_steps", "steps", "Forward passes."),
    ("num_prompt_tokens", "prompt_tokens", "Prompt tokens of all requests taken."),
    ("num_cached_tokens", "cached_tokens", "Prompt tokens that the prefix cache spared."),
    ("num_output_tokens", "output_tokens", "Tokens sampled."),
    ("num_draft_tokens", "draft_tokens", "Draft tokens verified."),
    ("num_accepted_tokens", "accepted_draft_tokens", "Draft tokens that were right."),
    ("num_preemptions", "preemptions", "Sequences that lost their pages and started over."),
    ("num_requests", "engine_requests", "Requests that the engine took."),
    ("rejected", "rejected_requests", "Requests refused because the queue was full."),
)
_HISTOGRAMS = (
    ("time_to_first_token", "time_to_first_token_seconds", "From a request's arrival to its first token."),
    ("inter_token", "inter_token_seconds", "Between two tokens of an answer."),
    ("step_seconds", "step_seconds", "A step of the engine."),
)


def _engine_metrics(engine: MetricsSnapshot) -> Iterator[Metric]:
    for attribute, name, text in _GAUGES:
        yield GaugeMetricFamily(f"ossia_{name}", text, value=getattr(engine, attribute))
    for attribute, name, text in _COUNTERS:
        yield CounterMetricFamily(f"ossia_{name}", text, value=getattr(engine, attribute))
    finished = CounterMetricFamily("ossia_finished_sequences", "Answers that ended, by reason.", labels=["reason"])
    for reason, count in sorted(engine.finished.items()):
        finished.add_metric([reason], count)
    yield finished
    repairs = CounterMetricFamily(
        "ossia_parser_repairs", "What the harmony parser had to mend, by kind.", labels=["kind"]
    )
    for kind, count in sorted(engine.parser_repairs.items()):
        repairs.add_metric([kind], count)
    yield repairs
    for attribute, name, text in _HISTOGRAMS:
        yield _histogram(f"ossia_{name}", text, getattr(engine, attribute))


def _histogram(name: str, text: str, snapshot: HistogramSnapshot) -> Metric:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, snapshot.bounds), "+Inf"), snapshot.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets, snapshot.total)
    return family
