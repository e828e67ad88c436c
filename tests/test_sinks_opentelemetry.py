"""What an OpenTelemetry collector receives: the real SDK and its OTLP exporter, over HTTP, decoded."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from sinks_runs import MIB, Receiver, ramp, run, watcher_of

from memwatch.sinks.figures import METRICS
from memwatch.sinks.opentelemetry import OpenTelemetrySink

Points = dict[tuple[str, frozenset[tuple[str, Any]]], float]


class Collector(Receiver):
    """An OTLP receiver."""

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the newest request: the metrics of our scope, by name."""
        request = ExportMetricsServiceRequest()
        request.ParseFromString(self.bodies[-1][1])
        return {
            metric.name: metric
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            if scope.scope.name == "memwatch"
            for metric in scope.metrics
        }

    def points(self) -> Points:
        found: Points = {}
        for name, metric in self.metrics.items():
            for point in getattr(metric, metric.WhichOneof("data")).data_points:
                labels = frozenset((item.key, item.value.string_value) for item in point.attributes)
                found[name, labels] = getattr(point, point.WhichOneof("value"))
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def collected(reader: InMemoryMetricReader) -> Points:
    got = reader.get_metrics_data()
    return {
        (metric.name, frozenset((point.attributes or {}).items())): point.value  # type: ignore[union-attr]
        for resource in (got.resource_metrics if got is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def test_a_leak_arrives_at_an_otlp_receiver_with_units_and_fingerprint(collector: Collector) -> None:
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"http://{collector.place}/v1/metrics"), export_interval_millis=3_600_000
    )
    provider = MeterProvider([reader], shutdown_on_exit=False)
    watcher, clock = watcher_of(ramp(), [OpenTelemetrySink(provider)])
    assert run(watcher, clock, 150)[-1] == "leaking"
    provider.force_flush()
    points, report = collector.points(), watcher.report()
    leak = frozenset({"memwatch.fingerprint": report.fingerprint, "memwatch.kind": "python-heap"}.items())
    heap = frozenset({"memwatch.kind": "heap"}.items())
    assert points["memwatch.leak.active", leak] == 1.0
    assert points["memwatch.leaks", frozenset({("memwatch.kind", "python-heap")})] == 1
    assert points["memwatch.memory.growth", heap] == pytest.approx(0.2 * MIB, rel=0.05)
    assert points["memwatch.memory.usage", heap] == (50 + 2 * 149) * MIB
    assert points["memwatch.oom.eta", frozenset({("memwatch.kind", "memory")})] == report.verdict.exhausted_in_s
    units = {name: metric.unit for name, metric in collector.metrics.items()}
    assert units["memwatch.memory.growth"] == "By/s"
    assert units == {metric.instrument: metric.unit for metric in METRICS if metric.instrument in units}
    leaks = collector.metrics["memwatch.leaks"]
    assert (leaks.WhichOneof("data"), leaks.sum.is_monotonic) == ("sum", True)
    assert collector.metrics["memwatch.leak.active"].WhichOneof("data") == "gauge"
    provider.shutdown()


def test_what_system_metrics_emit_is_left_to_them() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    watcher, clock = watcher_of(ramp(), [OpenTelemetrySink(provider)])
    run(watcher, clock, 3)
    found = collected(reader)
    assert all(name.startswith("memwatch.") for name, _ in found)
    kinds = {name: {dict(labels).get("memwatch.kind") for other, labels in found if other == name} for name, _ in found}
    assert kinds["memwatch.memory.usage"] >= {"heap", "native"}
    assert "rss" not in kinds["memwatch.memory.usage"]
    assert kinds["memwatch.resources"] == {"sockets"}
    provider.shutdown()


def test_after_the_end_and_after_the_sink_is_gone_there_is_nothing_to_observe() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    sink = OpenTelemetrySink(provider)
    watcher, clock = watcher_of(ramp(), [sink])
    run(watcher, clock, 3)
    assert collected(reader)
    watcher.stop()
    assert not collected(reader)
    watcher, clock = watcher_of(ramp(), [sink])
    run(watcher, clock, 3)
    assert collected(reader)
    del watcher, sink
    gc.collect()
    assert not collected(reader)
    provider.shutdown()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.12 and later
def test_a_forked_child_observes_nothing_of_its_parents() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    watcher, clock = watcher_of(ramp(), [OpenTelemetrySink(provider)])
    run(watcher, clock, 3)
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(theirs, str(len(collected(reader))).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(theirs)
    with open(ours) as answer:
        assert answer.read() == "0"
    provider.shutdown()


def test_the_program_may_set_its_provider_after_the_watcher_has_begun(python: Run) -> None:
    program = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        from sinks_runs import ramp, run, watcher_of
        from opentelemetry import metrics
        watcher, clock = watcher_of(ramp(), ["otel"])
        run(watcher, clock, 3)
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        run(watcher, clock, 1)
        scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
        print(sorted(metric.name for scope in scopes for metric in scope.metrics))
    """
    assert "'memwatch.memory.usage'" in python(program).stdout
