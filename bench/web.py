#!/usr/bin/env python3
"""What the dashboard costs: records of a month and two hundred processes, its first pages cold and warm, the memory of its server.

bench/web.py [--records 200] [--days 30] [--keep DIR]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from memwatch.model import CHANNELS, STATES, ChannelSummary, Evidence, Process, Report, Sample, Statistics, Suspect, Verdict
from memwatch.record import RecordWriter, record_name

MIB = 2.0**20
INTERVAL_S = 10.0
ROUNDS = 9
PAGES = 30


def build(directory: Path, count: int, days: float) -> None:
    """Fill a directory with *count* records, each as long and as full as *days* at an interval of 10 s leave it."""
    now_s = time.time() - 60
    model = _model(directory / "building", now_s, days)
    chance = random.Random(1)
    for number in range(count):
        scale = chance.uniform(0.2, 3.0)
        process = Process(
            5000 + number,
            f"service-{number % 20}",
            ("python", "-m", f"service{number % 20}"),
            host="bench",
            labels={"version": f"1.{number % 3}"},
            started=now_s - days * 86400 - number,
            ended=None if number % 4 else now_s,
            fate="running" if number % 4 else "exited",
            interval_s=1e5,  # of another host, and so not asked whether it runs
        )
        path = directory / record_name(process)
        shutil.copyfile(model, path)
        state = STATES[chance.randrange(len(STATES))]
        with sqlite3.connect(path) as connection:
            (latest,) = connection.execute("SELECT value FROM meta WHERE key = 'latest'").fetchone()
            report = json.loads(latest)
            report["verdict"] |= {"state": state, "rate": 1000.0 * scale, "kind": "python-heap"}
            report["channels"]["rss"]["current"] = 4e8 * scale
            connection.execute("UPDATE meta SET value = ? WHERE key = 'latest'", (json.dumps(report),))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'process'", (json.dumps(process.to_dict()),))
        connection.close()
    shutil.rmtree(model.parent)


def _model(directory: Path, now_s: float, days: float) -> Path:
    """One record: its tables as the writer leaves them after that time."""
    process = Process(1, "model", started=now_s - days * 86400)
    writer = RecordWriter(directory, process, limit_bytes=256 * 1024**2)
    values = {channel.name: 1e8 for channel in CHANNELS}
    summary = ChannelSummary(1e8, 1e8, 1e8, "stable", "stable", 0.0, "resident memory is flat", now_s)
    report = Report(
        process,
        Verdict("rss", "stable", reason="flat"),
        Statistics(int(days * 8640), days * 86400, dict.fromkeys(values, summary)),
    )
    found = [
        Evidence(name, tuple(Suspect(f"app/module_{i}.py:{i} function_{i}", 1e6 / (i + 1), i, 0.1) for i in range(200)))
        for name in ("sites", "types")
    ]
    writer.write(Sample(now_s, days * 86400, values), report, evidence=found)
    for _ in range(20):
        writer.write_evidence(now_s, "bench", found)
    writer.close()
    connection = sqlite3.connect(writer.path)
    names = [channel.name for channel in CHANNELS]
    marks = ", ".join("?" * (len(names) + 2))
    quoted = ", ".join(f'"{name}"' for name in names)
    fine_s = min(days, 1.0) * 86400
    with connection:
        connection.execute("DELETE FROM samples")
        connection.executemany(
            f"INSERT INTO samples (time_s, uptime_s, {quoted}) VALUES ({marks})",
            (
                (now_s - age, days * 86400 - age, *(1e8 + 1e3 * (fine_s - age) for _ in names))
                for age in (fine_s - INTERVAL_S * step for step in range(int(fine_s / INTERVAL_S)))
            ),
        )
        buckets = int(days * 86400 / 300)
        connection.executemany(
            "INSERT INTO coarse (time_s, count, low, mean, high) VALUES (?, 30, ?, ?, ?)",
            (
                (now_s - 300 * (buckets - step), *[json.dumps(dict.fromkeys(names, 100000000.0 + step * 100.5))] * 3)
                for step in range(buckets)
            ),
        )
        connection.executemany(
            "INSERT INTO events (time_s, what, details) VALUES (?, 'note', ?)",
            ((now_s - 500 * (5000 - step), json.dumps({"text": f"something happened {step}"})) for step in range(5000)),
        )
    connection.close()
    return writer.path


def _forget(directory: Path) -> None:
    """Let the system forget the content of the files, so that reading them goes to the disk."""
    os.sync()
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class _Server:
    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "memwatch", "serve", "--port", "0", "--directory", str(directory)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def get(self, path: str) -> tuple[float, bytes]:
        """Seconds of a request, and its body."""
        begun = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, (path, answer.status)
        return time.perf_counter() - begun, body

    def rss(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / MIB

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def measure(directory: Path) -> None:
    """Print the table."""
    _forget(directory)
    server = _Server(directory)
    try:
        print(f"server before its first page          {server.rss():8.0f} MiB resident")
        cold_s, page = server.get("/")
        print(f"first page, disk and server cold      {cold_s * 1e3:8.0f} ms ({len(page) / 1024:.0f} KiB)")
        warm = [server.get("/")[0] for _ in range(ROUNDS)]
        print(f"first page again                      {statistics.median(warm) * 1e3:8.0f} ms")
        name = re.search(r'href="(/process/[^"]+)"', page.decode())
        assert name is not None
        print(f"a process, its record cold            {server.get(name[1])[0] * 1e3:8.0f} ms")
        warm = [server.get(name[1])[0] for _ in range(ROUNDS)]
        print(f"a process again                       {statistics.median(warm) * 1e3:8.0f} ms")
        print(f"comparison form                       {server.get('/compare')[0] * 1e3:8.0f} ms")
        print(f"server after these                    {server.rss():8.0f} MiB resident")
        for link in sorted(set(re.findall(r'href="(/process/[^"]+)"', page.decode())))[:PAGES]:
            server.get(link)
        print(f"server after {PAGES} processes             {server.rss():8.0f} MiB resident")
    finally:
        server.stop()
    server = _Server(directory)
    try:
        print(f"first page, server cold, disk warm    {server.get('/')[0] * 1e3:8.0f} ms")
    finally:
        server.stop()


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--keep", type=Path, help="build there, or measure what was built there before")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memwatch-bench-") as temporary:
        directory = given.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        if not any(directory.iterdir()):
            begun = time.perf_counter()
            build(directory, given.records, given.days)
            print(f"built in {time.perf_counter() - begun:.0f} s")
        files = list(directory.glob("*.memwatch"))
        size = sum(path.stat().st_size for path in files)
        print(f"{len(files)} records of {given.days:g} days, {size / len(files) / MIB:.1f} MiB each")
        measure(directory)


if __name__ == "__main__":
    main()
