"""Watchers with a scripted leak, for the tests of sinks; no process is harmed and no time passes."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from memwatch.testing import FakeClock, ScriptedSource
from memwatch.watcher import Watcher

MIB = 2.0**20


def ramp(mib_per_tick: float = 2.0, start_mib: float = 100.0, ticks: int = 400, flat: int = 0) -> list[dict[str, float]]:
    """A straight leak of small Python objects, after a flat part."""
    return [
        {
            "rss": (start_mib + mib_per_tick * max(0, n - flat)) * MIB,
            "heap": (start_mib / 2 + mib_per_tick * max(0, n - flat)) * MIB,
            "native": 20.0 * MIB,
            "blocks": 1e6 + 2e4 * max(0, n - flat),
            "cpu": n * 1.0,
            "fds": 9.0,
            "threads": 4.0,
            "sockets": 2.0,
        }
        for n in range(ticks)
    ]


def watcher_of(readings: Iterable[Mapping[str, float] | Exception], sinks: list[Any], **options: Any) -> tuple[Watcher, FakeClock]:
    """A watcher of these readings, without a record or a thread."""
    clock = FakeClock()
    options = {"memory_limit": "4GiB", "name": "api", "directory": False, "cleanup_interval": False} | options
    return Watcher(interval="10s", clock=clock, source=ScriptedSource(readings), sinks=sinks, **options), clock


def run(watcher: Watcher, clock: FakeClock, ticks: int) -> list[str]:
    """Tick at the interval; the states."""
    states = []
    for _ in range(ticks):
        states.append(watcher.tick().state)
        clock.advance(10.0)
    return states


def promtool() -> str:
    """Prometheus's own tool, of the Debian package of that name."""
    return _program("promtool")


def prometheus() -> str:
    """A Prometheus."""
    return _program("prometheus")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"elsewhere: {name} is not installed (Debian: apt-get install prometheus)")
    return found


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Engine:
    """A Prometheus that runs."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self._port = port
        self._process = process

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that answer; none while it is starting."""
        url = f"http://127.0.0.1:{self._port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return list(json.load(answer)["data"]["result"])
        except OSError:
            return []

    def wait_for(self, expression: str, *alive: subprocess.Popen[str], timeout_s: float = 120.0) -> list[dict[str, Any]]:
        """Ask until there is an answer; these processes have to live meanwhile."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for process in (self._process, *alive):
                assert process.poll() is None, process.communicate()
            if found := self.query(expression):
                return found
            time.sleep(0.2)
        known = self.query('{__name__=~"memwatch.*"}')
        raise AssertionError(f"no answer to {expression}; there is {known}")


@contextlib.contextmanager
def scraping(directory: Path, targets: Mapping[str, int], *, rules: str) -> Iterator[Engine]:
    """A Prometheus that scrapes loopback ports, by job, every second."""
    jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [rules],
        "scrape_configs": jobs,
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command = [
        prometheus(),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with open(directory / "prometheus.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            yield Engine(port, process)
        finally:
            process.terminate()
            process.wait(timeout=60)


class Receiver:
    """An HTTP server on a loopback port that keeps what it is sent, unpacked, with its path."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        received = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                received.append((self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
