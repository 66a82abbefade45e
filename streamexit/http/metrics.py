"""The node in numbers, for Prometheus. docs/operations.md lists them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streamexit.attached import AttachedStream
from streamexit.metrics import LATENCIES
from streamexit.reporter import Reporter
from streamexit.roster import Roster
from streamexit.sources.life import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUDGET_STATES = ("on_budget", "saturated", "unreachable", "not_binding")
PREFIX = "streamexit_"


class _Families:
    """Metric families under construction."""

    def __init__(self) -> None:
        self._gauges: dict[str, GaugeMetricFamily] = {}
        self._counters: dict[str, CounterMetricFamily] = {}
        self._histograms: dict[str, HistogramMetricFamily] = {}

    def gauge(self, name: str, help_: str, value: float | None, **labels: str) -> None:
        if value is None:
            return
        if name not in self._gauges:
            self._gauges[name] = GaugeMetricFamily(PREFIX + name, help_, labels=list(labels))
        self._gauges[name].add_metric(list(labels.values()), value)

    def counter(self, name: str, help_: str, value: float, **labels: str) -> None:
        if name not in self._counters:
            self._counters[name] = CounterMetricFamily(PREFIX + name, help_, labels=list(labels))
        self._counters[name].add_metric(list(labels.values()), value)

    def histogram(
        self, name: str, help_: str, counts: Sequence[int], total: float, **labels: str
    ) -> None:
        bounds = [*(f"{bound:g}" for bound in LATENCIES), "+Inf"]
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        if name not in self._histograms:
            self._histograms[name] = HistogramMetricFamily(
                PREFIX + name, help_, labels=list(labels)
            )
        self._histograms[name].add_metric(list(labels.values()), buckets, total)

    def __iter__(self) -> Iterator[Metric]:
        yield from self._gauges.values()
        yield from self._counters.values()
        yield from self._histograms.values()


class NodeCollector(Collector):
    """Reads a node when it is scraped.

    Args:
        roster: The streams.
        reporter: Everything else.
    """

    def __init__(self, roster: Roster, reporter: Reporter) -> None:
        self._roster = roster
        self._reporter = reporter
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing is promised: streams come and go."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        families = _Families()
        now = time.time()
        for stream_id, stream in self._roster.streams.items():
            self._stream(families, stream_id, stream, now)
        self._engine(families)
        self._outbox(families)
        info = self._reporter.info()
        labels = {"node": info.node, "version": info.version, "boot_id": info.boot_id}
        families.gauge("info", "1", 1, **labels, device=info.device)
        yield from families

    def _stream(
        self, families: _Families, stream_id: str, stream: AttachedStream, now: float
    ) -> None:
        counters, of = stream.counters, {"stream": stream_id}
        families.counter("stream_frames", "Frames that came in.", counters.frames, **of)
        families.counter("stream_answered", "Frames answered.", counters.answered, **of)
        families.counter(
            "stream_reconnects", "Times that the source came back.", counters.reconnects, **of
        )
        for reason, count in list(counters.dropped.items()):
            families.counter(
                "stream_dropped", "Frames not answered, by reason.", count, **of, reason=reason
            )
        costs, spent = stream.plan.costs, 0.0
        for k, cost in enumerate(costs.per_exit):
            count = stream.exit_counts[k]
            spent += cost * count
            families.counter(
                "stream_exits", "Answers per exit, from 1.", count, **of, exit=str(k + 1)
            )
        families.counter(
            "stream_cost", "Cost of all answers together.", spent, **of, unit=costs.unit
        )
        families.histogram(
            "stream_latency_seconds",
            "From entering the engine to the answer.",
            stream.latencies.counts,
            stream.latencies.total,
            **of,
        )
        last = stream.last_result_at
        age = max(0.0, now - last) if last else None
        families.gauge("stream_result_age_seconds", "Since the latest answer.", age, **of)
        length = stream.buffer.statistics().length
        families.gauge("stream_buffer_frames", "Frames that wait for the engine.", length, **of)
        for state in get_args(State):
            families.gauge(
                "stream_state",
                "1 for the state it is in.",
                state == stream.state.state,
                **of,
                state=state,
            )
        self._budget(families, stream_id)

    def _budget(self, families: _Families, stream_id: str) -> None:
        budget, of = self._reporter.budget(stream_id), {"stream": stream_id}
        if budget is None:
            return
        families.gauge(
            "stream_mean_cost_fraction",
            "Mean cost over the window, of the full network's.",
            budget.mean_fraction,
            **of,
        )
        families.gauge(
            "stream_budget_fraction", "The budget, likewise.", budget.target_fraction, **of
        )
        agreement = budget.agreement.value if budget.agreement else None
        families.gauge(
            "stream_agreement", "With the full network, from shadow frames.", agreement, **of
        )
        for state in BUDGET_STATES:
            families.gauge(
                "stream_budget_state",
                "1 for the state that the budget is in.",
                state == budget.state,
                **of,
                state=state,
            )

    def _engine(self, families: _Families) -> None:
        for (pipeline, policy), lane in self._roster.networks():
            for k, (load, size) in enumerate(zip(lane.loads, lane.backend.sizes, strict=True)):
                of = {"pipeline": pipeline, "policy": policy, "stage": str(k + 1)}
                families.counter("engine_batches", "Batches run.", load.batches, **of)
                families.counter("engine_rows", "Frames in them.", load.rows, **of)
                families.gauge("engine_batch_size", "Frames of a full batch.", size, **of)
        snapshot = self._reporter.snapshot
        families.gauge("engine_rows_waiting", "Frames inside the engine.", snapshot.rows_waiting)
        families.counter(
            "engine_busy_seconds",
            "In which the device had something to do.",
            snapshot.busy_seconds,
        )

    def _outbox(self, families: _Families) -> None:
        stats, session = self._reporter.stats(time.time()), self._reporter.session
        load = stats.outbox
        families.gauge(
            "outbox_results",
            "Results on their way to the broker, and kept for it.",
            stats.outbox_length + (load.under_way + load.kept if load else 0),
        )
        families.counter("results_confirmed", "By the broker.", stats.results_confirmed)
        for reason, count in stats.results_lost.items():
            families.counter("results_lost", "Not delivered, by reason.", count, reason=reason)
        if load:
            families.gauge("spool_results", "Results in the spool.", load.spool_results)
            families.gauge("spool_bytes", "That they take.", load.spool_bytes)
        if session:
            families.gauge("broker_connected", "1 if it is.", session.connected)
            families.counter("broker_connections", "Made so far.", session.connections)
