"""The figures of a watched process for systems that keep numbers: one table of metrics, filled from what a sink is told.

Law: nothing is measured here, and nothing grows: label values are kinds, states, causes, the names of the largest caches and of the
busiest routes, and the fingerprint of the leak there is.  After a fork the child has no figures until its own first sample.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memwatch import __version__
from memwatch.model import CHANNEL_BY_NAME, STATES, ChannelSummary, Event, Report, Sample
from memwatch.pressure import LEVELS
from memwatch.report.words import is_judged

Across = Literal["liveall", "livemax", "livesum"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as both systems call it."""

    name: str
    """For Prometheus; of a counter with `_total`."""
    instrument: str
    """For OpenTelemetry."""
    unit: str
    """For OpenTelemetry (UCUM)."""
    what: str
    labels: tuple[str, ...] = ()
    across: Across = "liveall"
    """How several processes become one answer where prometheus_client gathers them (each with its pid, the largest, the sum)."""

    @property
    def is_counter(self) -> bool:
        """Whether it only rises while the process lives."""
        return self.name.endswith("_total")


Figure = tuple[Metric, tuple[str, ...], float]
"""A metric, the values of its labels, and its value."""

MEMORY = Metric("memwatch_memory_bytes", "memwatch.memory.usage", "By", "Memory by what holds it.", ("kind",))
MEMORY_GROWTH = Metric(
    "memwatch_memory_growth_bytes_per_second", "memwatch.memory.growth", "By/s", "Growth as judged; 0 while stable.", ("kind",)
)
RESOURCES = Metric("memwatch_resources", "memwatch.resources", "{resource}", "Open resources by what they are.", ("kind",))
RESOURCE_GROWTH = Metric(
    "memwatch_resource_growth_per_second",
    "memwatch.resource.growth",
    "{resource}/s",
    "Growth as judged; 0 while stable.",
    ("kind",),
)
LIMIT = Metric("memwatch_memory_limit_bytes", "memwatch.memory.limit", "By", "Effective memory limit.", across="livemax")
USED = Metric(
    "memwatch_memory_limit_used_ratio", "memwatch.memory.limit.utilization", "1", "Resident memory as a part of the limit."
)
EXHAUSTION = Metric(
    "memwatch_time_to_exhaustion_seconds",
    "memwatch.oom.eta",
    "s",
    "Time until what grows runs out at this rate; absent (between processes: +Inf) while it does not.",
    ("kind",),
)
STATE = Metric(
    "memwatch_state", "memwatch.state", "1", "1 for the state of the verdict, 0 for the others.", ("state",), across="livesum"
)
LEAK = Metric("memwatch_leak_info", "memwatch.leak.active", "1", "1 while this leaks.", ("fingerprint", "kind"), across="livemax")
LEAKS = Metric("memwatch_leaks_flagged_total", "memwatch.leaks", "{leak}", "Leaks found.", ("kind",))
PRESSURE = Metric("memwatch_pressure_level", "memwatch.pressure.level", "1", "0 normal, 1 warning, 2 critical.", across="livemax")
FREED = Metric("memwatch_cleanup_freed_bytes_total", "memwatch.cleanup.freed", "By", "Resident memory that clean-ups gave back.")
FAILURES = Metric(
    "memwatch_plug_failures_total", "memwatch.plug.failures", "{failure}", "Sources, sinks, hooks that failed and were disabled."
)
SAMPLED = Metric("memwatch_last_sample_timestamp_seconds", "memwatch.sample.time", "s", "Unix time of the newest sample.")
INTERVAL = Metric("memwatch_sample_interval_seconds", "memwatch.sample.interval", "s", "Time between samples.", across="livemax")
CACHE_ENTRIES = Metric(
    "memwatch_cache_entries", "memwatch.cache.size", "{entry}", "Entries in a cache.", ("cache",), across="livesum"
)
CACHE_BYTES = Metric("memwatch_cache_bytes", "memwatch.cache.memory", "By", "Accounted bytes.", ("cache",), across="livesum")
CACHE_HITS = Metric("memwatch_cache_hits_total", "memwatch.cache.hits", "{hit}", "Reads that found their key.", ("cache",))
CACHE_MISSES = Metric("memwatch_cache_misses_total", "memwatch.cache.misses", "{miss}", "Reads that did not.", ("cache",))
CACHE_LOADS = Metric("memwatch_cache_loads_total", "memwatch.cache.loads", "{load}", "Values loaded.", ("cache",))
CACHE_LOAD_ERRORS = Metric(
    "memwatch_cache_load_errors_total", "memwatch.cache.load.errors", "{error}", "Loads that raised.", ("cache",)
)
CACHE_LOAD_TIME = Metric(
    "memwatch_cache_load_seconds_total", "memwatch.cache.load.time", "s", "Time that all loads took together.", ("cache",)
)
CACHE_REMOVALS = Metric(
    "memwatch_cache_removals_total",
    "memwatch.cache.removals",
    "{entry}",
    "Entries that left, by why.",
    ("cache", "cause"),
)
ROUTE_REQUESTS = Metric(
    "memwatch_route_requests_total", "memwatch.route.requests", "{request}", "Requests or jobs that are over.", ("route",)
)
ROUTE_ERRORS = Metric(
    "memwatch_route_errors_total", "memwatch.route.errors", "{error}", "Those that raised or answered 5xx.", ("route",)
)
ROUTE_IN_FLIGHT = Metric(
    "memwatch_route_in_flight", "memwatch.route.in_flight", "{request}", "Those under way.", ("route",), across="livesum"
)
ROUTE_DURATION = Metric(
    "memwatch_route_duration_seconds",
    "memwatch.route.duration",
    "s",
    "Percentiles of how long they took, of the last five to ten minutes.",
    ("route", "quantile"),
)
ROUTE_GROWTH = Metric(
    "memwatch_route_growth_per_request_bytes",
    "memwatch.route.growth",
    "By",
    "What each leaves behind, of a route that growth is put down to.",
    ("route",),
    across="livemax",
)
INFO = Metric(
    "memwatch_watch_info", "memwatch.watch", "1", "1; the program's labels, as label_<name>.", ("version", "process"), "livemax"
)

METRICS = (
    MEMORY, MEMORY_GROWTH, RESOURCES, RESOURCE_GROWTH, LIMIT, USED, EXHAUSTION, STATE, LEAK, LEAKS, PRESSURE, FREED, FAILURES,
    SAMPLED, INTERVAL, CACHE_ENTRIES, CACHE_BYTES, CACHE_HITS, CACHE_MISSES, CACHE_LOADS, CACHE_LOAD_ERRORS, CACHE_LOAD_TIME,
    CACHE_REMOVALS, ROUTE_REQUESTS, ROUTE_ERRORS, ROUTE_IN_FLIGHT, ROUTE_DURATION, ROUTE_GROWTH, INFO,
)  # fmt: skip

EXPORTED = {MEMORY: "byte", MEMORY_GROWTH: "byte", LIMIT: "byte", USED: "ratio", CACHE_BYTES: "byte"}
"""The few that Sentry is sent where metrics are wanted, with its word for the unit."""

_MEMORY_KINDS = ("rss", "file", "uss", "heap", "native", "retained", "caches")
_RESOURCE_KINDS = ("fds", "sockets", "threads", "children", "tasks")
_PER_CACHE = (
    (CACHE_ENTRIES, "entries"),
    (CACHE_BYTES, "bytes"),
    (CACHE_HITS, "hits"),
    (CACHE_MISSES, "misses"),
    (CACHE_LOADS, "loads"),
    (CACHE_LOAD_ERRORS, "load_errors"),
    (CACHE_LOAD_TIME, "load_time_s"),
)
_PER_ROUTE = ((ROUTE_REQUESTS, "requests"), (ROUTE_ERRORS, "errors"), (ROUTE_IN_FLIGHT, "in_flight"))
_QUANTILES = (("0.5", "p50_s"), ("0.95", "p95_s"), ("0.99", "p99_s"))
MOVING = ("growing", "leaking", "recovering")
MOST_LABELS = 20
LONGEST_LABEL = 200


class Figures:
    """The figures of this process: fed as a sink is, read at any moment.

    Args:
        left_out: channels that somebody else exports already.

    Threads: fed by one; `current()` from any.
    Cost: about 40 small tuples a sample, and 6 for each cache and route shown.
    """

    def __init__(self, left_out: frozenset[str] = frozenset()) -> None:
        self._left_out = left_out
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._current: tuple[Figure, ...] = ()
        self._leak: tuple[str, str] | None = None
        self._flagged: dict[str, int] = {}
        self._level = 0
        self._freed = 0.0
        self._failures = 0
        self._info: tuple[Metric, tuple[str, ...]] | None = None
        self._labels: Mapping[str, str] = {}

    def _check_fork(self) -> None:
        if self._pid != os.getpid():
            self._begin()

    def current(self) -> tuple[Figure, ...]:
        """The figures as of the newest sample; none before the first, after the end, and in a forked child before its own."""
        return self._current if self._pid == os.getpid() else ()

    def told(self, occasion: str, report: Report) -> None:
        """Count a leak, and take its fingerprint."""
        self._check_fork()
        if occasion in ("leak", "doubled"):
            kind = report.verdict.kind
            self._leak = (report.fingerprint, kind)
            if occasion == "leak":
                self._flagged[kind] = self._flagged.get(kind, 0) + 1

    def happened(self, event: Event) -> None:
        """Follow the pressure level, count failures, add up what clean-ups freed."""
        self._check_fork()
        if event.what == "pressure" and event.details.get("level") in LEVELS:
            self._level = LEVELS.index(event.details["level"])
        elif event.what == "plug":
            self._failures += 1
        elif event.what == "relief":
            freed = event.details.get("rss_freed")
            if isinstance(freed, int | float) and freed > 0:
                self._freed += freed

    def ticked(self, sample: Sample, report: Report) -> None:
        """Take the figures of a sample."""
        self._check_fork()
        if report.verdict.state != "leaking":
            self._leak = None
        elif self._leak is None:
            self._leak = (report.fingerprint, report.verdict.kind)
        self._current = tuple(self._figures(sample, report))

    def ended(self) -> None:
        """Nobody watches any more: there are no figures until it is started again."""
        self._begin()

    def _figures(self, sample: Sample, report: Report) -> Iterator[Figure]:
        verdict, channels = report.verdict, report.statistics.channels
        for metric, growth, kinds in ((MEMORY, MEMORY_GROWTH, _MEMORY_KINDS), (RESOURCES, RESOURCE_GROWTH, _RESOURCE_KINDS)):
            for kind in kinds:
                summary = channels.get(kind)
                if summary is None or summary.current is None:
                    continue
                if kind not in self._left_out:
                    yield metric, (kind,), summary.current
                rate = _rate(summary)
                if rate is not None:
                    yield growth, (kind,), rate
        # The limit is read once in some minutes.
        rss = sample.values.get("rss")
        limit = channels["limit"].current if "limit" in channels else None
        if limit is not None and limit > 0:
            yield LIMIT, (), limit
            if rss is not None:
                yield USED, (), rss / limit
        if verdict.exhausted_in_s is not None and verdict.state in MOVING:
            known = CHANNEL_BY_NAME.get(verdict.channel)
            yield EXHAUSTION, ("memory" if known is None or known.unit == "bytes" else verdict.channel,), verdict.exhausted_in_s
        for state in STATES:
            yield STATE, (state,), float(state == verdict.state)
        if self._leak is not None:
            yield LEAK, self._leak, 1.0
        for kind, count in self._flagged.items():
            yield LEAKS, (kind,), count
        yield PRESSURE, (), self._level
        yield FREED, (), self._freed
        yield FAILURES, (), self._failures
        yield SAMPLED, (), sample.time_s
        if report.process.interval_s is not None:
            yield INTERVAL, (), report.process.interval_s
        if self._info is None or report.process.labels != self._labels:
            self._info, self._labels = _info(report), report.process.labels
        yield (*self._info, 1.0)
        yield from _of_caches(report.caches)
        yield from _of_routes(report.routes)


def _rate(summary: ChannelSummary) -> float | None:
    """The rate of a judged channel.  That of a stable one is what steps and noise add up to in one window: 0."""
    if summary.state in (None, "warming-up") or summary.rate is None or not is_judged(summary):
        return None
    return summary.rate if summary.state in MOVING else 0.0


def _info(report: Report) -> tuple[Metric, tuple[str, ...]]:
    """The info metric with a label for each of the program's own."""
    labels = {"version": __version__, "process": _label(report.process.name)}
    for key, value in list(report.process.labels.items())[:MOST_LABELS]:
        labels["label_" + re.sub(r"[^a-zA-Z0-9_]", "_", key)[:LONGEST_LABEL]] = _label(value)
    return Metric(INFO.name, INFO.instrument, INFO.unit, INFO.what, tuple(labels), INFO.across), tuple(labels.values())


def _label(text: object) -> str:
    """A label's value as UTF-8 can say it: one that cannot be written would cost the whole scrape."""
    return str(text)[:LONGEST_LABEL].encode("utf-8", "replace").decode()


def _of_caches(rows: tuple[Mapping[str, Any], ...]) -> Iterator[Figure]:
    """Those of caches with the same name are added up."""
    sums: dict[tuple[Metric, tuple[str, ...]], float] = {}
    for row in rows:
        name = _label(row.get("name"))
        for metric, key in _PER_CACHE:
            value = row.get(key)
            if value is not None:
                sums[metric, (name,)] = sums.get((metric, (name,)), 0.0) + value
        for cause, count in (row.get("removals") or {}).items():
            where = (CACHE_REMOVALS, (name, str(cause)))
            sums[where] = sums.get(where, 0.0) + count
    for (metric, labels), value in sums.items():
        yield metric, labels, value


def _of_routes(rows: tuple[Mapping[str, Any], ...]) -> Iterator[Figure]:
    for row in rows:
        name = _label(row.get("route"))
        for metric, key in _PER_ROUTE:
            value = row.get(key)
            if value is not None:
                yield metric, (name,), value
        for quantile, key in _QUANTILES:
            took_s = row.get(key)
            if took_s is not None:
                yield ROUTE_DURATION, (name, quantile), took_s
        grown = row.get("bytes_per_request")
        if row.get("blamed") and grown is not None:
            yield ROUTE_GROWTH, (name,), grown
