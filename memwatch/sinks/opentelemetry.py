"""Figures for OpenTelemetry: observable instruments of the API.  The SDK, its readers and exporters are the program's.

Law: only what is memwatch's own; what the instrumentation of system metrics emits (resident memory, threads, descriptors) is
left to it.  The API cannot take an instrument back: its callbacks hold us weakly, and have nothing to say after the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

from opentelemetry import metrics

from memwatch import __version__
from memwatch.model import Event, Report, Sample
from memwatch.sinks.figures import METRICS, Figures, Metric

LEFT_OUT = frozenset({"rss", "fds", "threads"})
"""`process.memory.usage`, `process.open_file_descriptor.count`, `process.thread.count`."""


class OpenTelemetrySink:
    """Give it to a watcher in `sinks=`; the program may set its meter provider before or after.

    Args:
        meter_provider: where the instruments are made [the global one].

    Threads: fed by one at a time, as the watcher does; observed from any.
    """

    def __init__(self, meter_provider: metrics.MeterProvider | None = None) -> None:
        self._figures = Figures(LEFT_OUT)
        meter = metrics.get_meter("memwatch", __version__, meter_provider)
        for metric in METRICS:
            make = meter.create_observable_counter if metric.is_counter else meter.create_observable_gauge
            make(
                metric.instrument,
                callbacks=[_callback(weakref.ref(self._figures), metric)],
                unit=metric.unit,
                description=metric.what,
            )

    def told(self, occasion: str, report: Report) -> None:
        """Count a leak."""
        self._figures.told(occasion, report)

    def happened(self, event: Event) -> None:
        """Follow pressure, failures, clean-ups."""
        self._figures.happened(event)

    def ticked(self, sample: Sample, report: Report) -> None:
        """Take the figures of a sample."""
        self._figures.ticked(sample, report)

    def ended(self) -> None:
        """Observe nothing until a watcher starts again."""
        self._figures.ended()


def _callback(figures: weakref.ref[Figures], metric: Metric) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    """What an SDK calls at every collection."""

    def observe(options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        alive = figures()
        if alive is None:
            return []
        return [
            metrics.Observation(value, {f"memwatch.{name}": text for name, text in zip(found.labels, labels, strict=True)})
            for found, labels, value in alive.current()
            if found.name == metric.name
        ]

    return observe
