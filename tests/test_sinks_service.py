"""One leak in a real prefork service, seen by Sentry, by Prometheus and by an OpenTelemetry collector."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from sentry_sdk.envelope import Envelope
from sinks_runs import Receiver, free_port, prometheus, scraping
from test_services import Load, wait_for_port

pytestmark = pytest.mark.slow

APP = """
import os

import memwatch
memwatch.start(interval="0.2s", memory_limit="4GiB", name="shop", directory=False, labels={"version": "1.4.2"})

import sentry_sdk
sentry_sdk.init(dsn=os.environ["DSN"], auto_session_tracking=False)

from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
exporter = OTLPMetricExporter(os.environ["OTLP"])
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=500)]))

import prometheus_client
from prometheus_client.multiprocess import MultiProcessCollector

class Session:
    def __init__(self, number): self.number, self.bag = number, {"user": str(number), "items": [str(number)] * 20}

_STORE = {}

def application(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry)
        body = prometheus_client.generate_latest(registry)
        start_response("200 OK", [("Content-Type", prometheus_client.CONTENT_TYPE_LATEST)])
        return [body]
    for _ in range(20):
        _STORE[len(_STORE)] = Session(len(_STORE))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""
CONFIG = """
from prometheus_client import multiprocess
def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


def leaks_at_sentry(sentry: Receiver) -> list[dict[str, Any]]:
    events = [Envelope.deserialize(body).get_event() for _, body in list(sentry.bodies)]
    return [
        event
        for event in events
        if event is not None and event.get("exception", {}).get("values", [{}])[0].get("type") == "MemoryLeakSuspected"
    ]


def fingerprints_at_sentry(sentry: Receiver) -> set[str]:
    return {event["fingerprint"][-1] for event in leaks_at_sentry(sentry)}


def pids_at_sentry(sentry: Receiver) -> set[int]:
    return {event["contexts"]["memwatch"]["pid"] for event in leaks_at_sentry(sentry)}


def fingerprints_at_collector(collector: Receiver) -> set[str]:
    found = set()
    for _, body in list(collector.bodies):
        request = ExportMetricsServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "memwatch.leak.active":
                        for point in metric.gauge.data_points:
                            labels = {item.key: item.value.string_value for item in point.attributes}
                            found.add(labels["memwatch.fingerprint"])
    return found


def test_a_leak_in_gunicorn_has_one_fingerprint_in_sentry_prometheus_and_opentelemetry(tmp_path: Path) -> None:
    prometheus()  # or skip
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "metrics").mkdir()
    port = free_port()
    with Receiver() as sentry, Receiver() as collector:
        env = os.environ | {
            "DSN": f"http://key@{sentry.place}/1",
            "OTLP": f"http://{collector.place}/v1/metrics",
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
            "MEMWATCH_SINKS": "sentry,prometheus,otel",
        }
        command = [
            sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "2", "--bind", f"127.0.0.1:{port}",
            "--log-level", "error", "shop:application",
        ]  # fmt: skip
        service = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            wait_for_port(port, service)
            rules = tmp_path / "none.yml"
            rules.write_text("{}")
            with scraping(tmp_path, {"shop": port}, rules=str(rules)) as engine, Load(f"http://127.0.0.1:{port}/"):
                # The evidence may become better while it leaks, and the fingerprint with it: until all three know the newest.
                deadline_s = time.monotonic() + 150
                told: list[set[str]] = []
                while time.monotonic() < deadline_s and not (len(pids_at_sentry(sentry)) == 2 and told[0] == told[1] == told[2]):
                    time.sleep(0.2)
                    at_prometheus = {series["metric"]["fingerprint"] for series in engine.query("memwatch_leak_info")}
                    told = [fingerprints_at_sentry(sentry), at_prometheus, fingerprints_at_collector(collector)]
                engine.wait_for("sum(memwatch_leaks_flagged_total) >= 2", service)
        finally:
            service.send_signal(signal.SIGTERM)
            out, err = service.communicate(timeout=60)
    events = leaks_at_sentry(sentry)
    assert len(pids_at_sentry(sentry)) == 2, err
    assert told[0] == told[1] == told[2] != set()
    assert "Session" in str([event["contexts"]["memwatch"].get("suspects") for event in events])
    assert events[0]["tags"]["memwatch.label.version"] == "1.4.2"
    assert service.returncode == 0, (out, err)


GREENLETS = """
import gevent.monkey; gevent.monkey.patch_all()
import os, time
import memwatch, sentry_sdk
watcher = memwatch.start(
    interval="0.1s", memory_limit="100MiB", warning="1MiB", critical="2MiB", name="shop", directory=False, cleanup_interval="off",
    sinks=["sentry", "webhook:" + os.environ["HOOK"]],
)
sentry_sdk.init(dsn=os.environ["DSN"], auto_session_tracking=False)
deadline = time.monotonic() + 60
while not watcher.report().events and time.monotonic() < deadline:
    time.sleep(0.05)
time.sleep(2)  # what the watcher told is sent meanwhile, or never
sentry_sdk.capture_message("an error of the program")
sentry_sdk.flush(timeout=20)
watcher.stop()
print(watcher.failures)
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="elsewhere: gevent is tested before Python 3.14")
def test_under_gevent_what_is_told_arrives_and_what_the_program_reports_is_not_held_up() -> None:
    with Receiver() as sentry, Receiver() as hook:
        env = os.environ | {"DSN": f"http://key@{sentry.place}/1", "HOOK": f"http://{hook.place}/hook"}
        done = subprocess.run([sys.executable, "-c", GREENLETS], env=env, capture_output=True, text=True, timeout=120, check=False)
    events = [event for _, body in sentry.bodies if (event := Envelope.deserialize(body).get_event()) is not None]
    types = [event.get("exception", {}).get("values", [{}])[0].get("type") for event in events]
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr
    assert [kind for kind in types if kind != "FastMemoryGrowth"] == ["HighMemory", None], done.stderr
    assert events[types.index(None)]["message"] == "an error of the program"
    occasions = [json.loads(body)["occasion"] for _, body in hook.bodies]
    assert [occasion for occasion in occasions if occasion != "growth"] == ["peak"]
    assert "pending events" not in done.stderr
