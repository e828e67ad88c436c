#!/usr/bin/env python3
"""What memwatch costs a service where nobody asks for much: CPU of single calls, best of several rounds.

bench/services.py
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable

import memwatch
from memwatch.endpoints import Endpoints, Request
from memwatch.integrations.systemd import SystemdSink
from memwatch.live import LiveSocket
from memwatch.sinks import prometheus


def best_us(call: Callable[[], object], times: int = 2000, rounds: int = 7) -> float:
    """Microseconds of CPU per call, of the best round."""
    best = float("inf")
    for _ in range(rounds):
        began = time.thread_time()
        for _ in range(times):
            call()
        best = min(best, (time.thread_time() - began) / times * 1e6)
    return best


def main() -> None:
    """Print the table."""
    os.environ["XDG_RUNTIME_DIR"] = folder = tempfile.mkdtemp()
    watcher = memwatch.start(interval="1h", directory=False, socket="off")
    while not watcher.statistics().samples:
        time.sleep(0.01)
    live = LiveSocket(watcher, control=False)
    live.open()
    endpoints = Endpoints(watcher=lambda: watcher)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{folder}/notify")
        manager.setblocking(False)
        sink = SystemdSink(environ={"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "60000000"})
        sample, report = watcher.snapshot(), watcher.report()

        def tell() -> None:
            sink.ticked(sample, report)
            manager.recv(4096)

        exporter = prometheus.sink_of()
        prometheus.exposition(watcher)
        kept = [[n] for n in range(1_000_000)]
        began = time.thread_time()
        found = [item for item in gc.get_objects() if type(item).__module__ == "uvicorn.server"]
        scan_ms = (time.thread_time() - began) * 1e3
        rows = [
            ("live socket: looking for a connection", best_us(live.poll)),
            ("endpoints: GET /health", best_us(lambda: endpoints.answer(Request("GET", "/health")))),
            ("prometheus: taking a sample", best_us(lambda: exporter.ticked(sample, report))),
            ("prometheus: a scrape, as text", best_us(lambda: prometheus.exposition(watcher), times=200)),
            ("systemd: telling a sample, and reading it", best_us(tell)),
        ]
    live.close()
    memwatch.stop()
    print(f"{'call':45} {'µs of CPU':>10}   (Python {sys.version.split()[0]})")
    for what, cost_us in rows:
        print(f"{what:45} {cost_us:10.1f}")
    print(f"{'uvicorn: looking for its server':45} {scan_ms * 1e3:10.0f}   ({len(kept):,} containers, {len(found)} found; once)")


if __name__ == "__main__":
    main()
