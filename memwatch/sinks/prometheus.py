"""Figures for Prometheus, through prometheus_client, which the program serves as it serves its own metrics.

Law: what prometheus_client exports already (resident memory, descriptors, the collector's counts) is not exported again.  A scrape
reads what the newest sample left, and never raises.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

import memwatch
from memwatch.model import Event, Report, Sample
from memwatch.sinks import Awaiting, by_name
from memwatch.sinks.figures import EXHAUSTION, INFO, LEAK, Figure, Figures, Metric
from memwatch.watcher import Watcher

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
EXPORTED_ALREADY = frozenset({"rss", "fds"})
"""By prometheus_client's ProcessCollector, which reads /proc: on Linux, and not where processes are gathered."""
MOST_CHILDREN = {"cache": 360, "route": 300, "": 200}
"""Between processes no series can be taken back: not more than this are made, by what they are of.  20 caches with every cause have
320, 20 routes 140; which 20 are the largest or busiest changes, and must not take the place of what says that there is a leak."""

FILE_BYTES = 1 << 20
"""The size that prometheus_client gives a new file; most of it is a hole."""
ROOM_BYTES = 1 << 18
"""More than all our series take in one file."""

_lock = threading.Lock()
_sinks: weakref.WeakKeyDictionary[CollectorRegistry, PrometheusSink] = weakref.WeakKeyDictionary()


def install(registry: CollectorRegistry | None = None) -> PrometheusSink | Awaiting:
    """Export the figures of the running watcher, now or once one is started with the result in `sinks=`.

    Args:
        registry: where the program registers its metrics [`prometheus_client.REGISTRY`].

    Returns:
        The sink of this registry; a second call returns the same one, and for the default registry so does the name `prometheus`.

    Raises:
        ValueError: under `PROMETHEUS_MULTIPROC_DIR`, the registry has metrics with our names from somebody else.

    Cost: of a sample some 5 to 15 µs, of a scrape some 0.4 ms, most of it for the text (bench/services.py).
    """
    default = registry is None or registry is prometheus_client.REGISTRY
    sink: PrometheusSink | Awaiting = by_name("prometheus") if default else sink_of(registry)
    watcher = memwatch.current()
    if watcher is not None:
        watcher.add_callbacks(sinks=[sink])
    return sink


def exposition(watcher: Watcher) -> bytes:
    """What a scrape of this program answers, of type `CONTENT_TYPE`: all that its default registry has; where processes are
    gathered, all that those have.  From the first call on *watcher* is in it.

    Cost: that of a scrape.
    """
    watcher.add_callbacks(sinks=[by_name("prometheus")])
    sink = sink_of()
    if not sink.has_figures:
        sink.ticked(watcher.snapshot(), watcher.report())  # the next sample may be minutes away
    registry = prometheus_client.REGISTRY
    if _are_gathered():
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)


def mark_process_dead(pid: int) -> None:
    """Take the gauges of a process that is gone out of the answer; for the parent of a prefork server."""
    prometheus_client.multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _are_gathered() -> bool:
    """Whether prometheus_client gathers processes: it looks at this when it is imported."""
    return "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_multiproc_dir" in os.environ


def sink_of(registry: CollectorRegistry | None = None) -> PrometheusSink:
    """The sink that exports through *registry*; it is for the caller to give it to a watcher."""
    registry = prometheus_client.REGISTRY if registry is None else registry
    with _lock:
        sink = _sinks.get(registry)
        if sink is None:
            sink = _sinks[registry] = PrometheusSink(registry)
        return sink


class PrometheusSink:
    """Made by `install`.  Threads: fed by one at a time, as the watcher does; scraped from any."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gathered = _are_gathered()
        self._figures = Figures(frozenset() if gathered or sys.platform != "linux" else EXPORTED_ALREADY)
        self._between: _BetweenProcesses | None = None
        if gathered:
            self._between = _BetweenProcesses(registry)
        else:
            registry.register(_OfThisProcess(self._figures))

    @property
    def has_figures(self) -> bool:
        """Whether a sample was told of, in this process."""
        return bool(self._figures.current())

    def told(self, occasion: str, report: Report) -> None:
        """Count a leak."""
        self._figures.told(occasion, report)

    def happened(self, event: Event) -> None:
        """Follow pressure, failures, clean-ups."""
        self._figures.happened(event)

    def ticked(self, sample: Sample, report: Report) -> None:
        """Take the figures of a sample."""
        self._figures.ticked(sample, report)
        if self._between is not None:
            self._between.write(self._figures.current())

    def ended(self) -> None:
        """Export nothing until a watcher starts again."""
        self._figures.ended()
        if self._between is not None:
            self._between.write(())


class _OfThisProcess(Collector):
    """Makes series of the figures at a scrape."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> list[Any]:
        """Nothing, so that registering collects nothing."""
        return []

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        families: dict[str, Any] = {}
        for metric, labels, value in self._figures.current():
            family = families.get(metric.name)
            if family is None:
                of = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
                family = families[metric.name] = of(metric.name, metric.what, labels=metric.labels)
            family.add_metric(labels, value)
        return iter(families.values())


class _BetweenProcesses:
    """Writes the figures into the files of `PROMETHEUS_MULTIPROC_DIR`, where custom collectors are left out."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._metrics: dict[str, tuple[Any, tuple[str, ...]]] = {}
        self._written: dict[tuple[str, tuple[str, ...]], tuple[Metric, float]] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._of: dict[tuple[str, tuple[str, ...]], Metric] = {}
        self._made = dict.fromkeys(MOST_CHILDREN, 0)
        self._pid = os.getpid()

    def write(self, figures: tuple[Figure, ...]) -> None:
        """Bring the files up to date."""
        if self._pid != os.getpid():  # the child's files begin at nothing
            self._pid, self._written = os.getpid(), {}
            for prefix in {_file_of(metric) for metric in self._of.values()}:
                _reserve(prefix)
        written: dict[tuple[str, tuple[str, ...]], tuple[Metric, float]] = {}
        for metric, labels, value in figures:
            key = (metric.name, labels)
            child = self._child(metric, labels)
            if child is None:
                continue
            written[key] = (metric, value)
            before = self._written.get(key)
            if before is not None and before[1] == value:
                continue  # a file is not written for what stays as it is
            if not metric.is_counter:
                child.set(value)
            else:
                child.inc(max(0.0, value - (before[1] if before is not None else 0.0)))
        for key, (metric, value) in self._written.items():
            if key in written:
                continue
            if metric.is_counter:
                # A cache that is not among the largest now goes on where it stood; and it outlives a watch, which begins to count
                # its own anew.
                if figures or _kind_of(metric):
                    written[key] = (metric, value)
            else:
                self._children[key].set(_gone(metric))
        self._written = written

    def _child(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        key = (metric.name, labels)
        child = self._children.get(key)
        of = _kind_of(metric)
        if child is None and self._made[of] < MOST_CHILDREN[of]:
            _reserve(_file_of(metric))
            if metric.name not in self._metrics:
                self._metrics[metric.name] = self._make(metric), metric.labels
            parent, names = self._metrics[metric.name]
            if names != metric.labels:
                return None  # the program has labelled itself since: here the labels of a metric are those it was made with
            child = self._children[key] = parent.labels(*labels) if labels else parent
            self._made[of] += 1
            self._of[key] = metric
        return child

    def _make(self, metric: Metric) -> Any:
        if metric.is_counter:
            return prometheus_client.Counter(metric.name, metric.what, metric.labels, registry=self._registry)
        return prometheus_client.Gauge(
            metric.name, metric.what, metric.labels, registry=self._registry, multiprocess_mode=metric.across
        )


def _kind_of(metric: Metric) -> str:
    """What there may be any number of in a program: `cache`, `route`; empty for the rest."""
    first = metric.labels[0] if metric.labels else ""
    return first if first in MOST_CHILDREN else ""


def _file_of(metric: Metric) -> str:
    """How the name of the file begins that prometheus_client keeps a metric in."""
    return "counter" if metric.is_counter else f"gauge_{metric.across}"


def _reserve(prefix: str) -> None:
    """See that there is room for what is about to be written.

    prometheus_client maps files with holes: where the file system is full, writing into one is no exception but SIGBUS, which ends
    the program.

    Raises:
        OSError: there is no room.
    """
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # prometheus_client sets it where only the older name is given
    if not directory or not hasattr(os, "posix_fallocate"):
        return
    path = os.path.join(directory, f"{prefix}_{os.getpid()}.db")  # noqa: PTH118
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if not size:
            size = FILE_BYTES
            os.truncate(descriptor, size)
        used = int.from_bytes(os.pread(descriptor, 4, 0), sys.byteorder)
        os.posix_fallocate(descriptor, 0, min(size, used + ROOM_BYTES))
    finally:
        os.close(descriptor)


def _gone(metric: Metric) -> float:
    """The value of a series that no longer is, where none can be taken back."""
    if metric.name == EXHAUSTION.name:
        return math.inf
    return math.nan if metric.across == "liveall" and metric.name not in (LEAK.name, INFO.name) else 0.0
