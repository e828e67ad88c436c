"""A dashboard in a process of its own over records that tests write, and a program that really leaks."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import report_cases as cases
from serving import Server, serving

from memwatch.model import Report, Sample
from memwatch.record import RecordWriter

LISTENS = r"http://127\.0\.0\.1:(\d+)/"
ELSEWHERE = "another-host"
LEAKING = """
import sys, time
import memwatch
memwatch.start(interval="200ms", directory=sys.argv[1], name="leaky", labels={"version": "2.0"})
print("watched", flush=True)
kept = []
while True:
    kept.append(bytearray(300_000))
    time.sleep(0.01)
"""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


@contextlib.contextmanager
def dashboard(directory: Path, *options: str, token: str = "") -> Iterator[Server]:
    """`memwatch serve` on a free port while the block lasts."""
    command = ["memwatch", "serve", "--port", "0", "--directory", str(directory), *options]
    with serving(command, directory.parent, LISTENS, MEMWATCH_TOKEN=token) as server:
        yield server


def ask(
    server: Server, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: str | None = None
) -> Answer:
    """One request, as it stands: nothing in the path or the headers is put right."""
    connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        given = {"Accept": "text/html", **(headers or {})}
        connection.putrequest(method, path, skip_host="Host" in given)
        for name, value in given.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(None if body is None else body.encode())
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read().decode())


def write(directory: Path, report: Report, *, ended: str | None = None, samples: int = 30, **process: Any) -> Path:
    """A record that says what *report* says.  Of another host, it runs as long as it is fresh, and nobody asks its pid."""
    now_s = time.time()
    known = {"host": ELSEWHERE, "interval_s": 1e5, "started": now_s - 3600, "ended": None, "fate": "running", "end": None}
    report = replace(report, process=replace(report.process, **(known | process)))
    writer = RecordWriter(directory, report.process)
    values = {name: summary.current for name, summary in report.statistics.channels.items() if summary.current is not None}
    for number in range(samples if values else 0):
        part = 0.5 + 0.5 * (number + 1) / samples
        sample = Sample(now_s - 10 * (samples - number), 10.0 * number, {name: value * part for name, value in values.items()})
        writer.write(sample, report)
    return cases.finish(writer, report, now_s, ended)


@contextlib.contextmanager
def leaking(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that leaks 30 MB a second and is watched, while the block lasts."""
    with subprocess.Popen([sys.executable, "-c", LEAKING, str(directory)], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "watched\n"
            yield program
        finally:
            program.kill()


def fleet(directory: Path) -> dict[str, Path]:
    """A few records of every sort, by what they are."""
    return {
        "leak": write(directory, cases.leak(), pid=101, name="api", labels={"version": "1.1"}),
        "older": write(directory, cases.leak(), pid=102, name="api", labels={"version": "1.0"}, ended="exit status 0"),
        "calm": write(directory, cases.lookalike(), pid=103, name="worker"),
        "hostile": write(directory, cases.hostile(), pid=104),
    }
