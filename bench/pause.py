#!/usr/bin/env python3
"""What the program notices while evidence is taken.

    bench/pause.py [GIB ...] [--kind small|large]

A service with a heap of so many GiB runs a ticker thread at 1 kHz beside a thread that works.  The table says how late the ticker
was at rest, during the fork, and while the child counted and searched; what the fork took; what the child copied.

    fork      wall time of the fork, in which the whole process stands still: page tables are copied
    ticker    the longest and the 99.9th percentile delay of a tick, at rest and from the fork to the child's end, without the fork
    copied    pages that parent and child no longer share at the child's end, and the most the child had to itself
    census    the child's time for counting, and until it had told all paths
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from memwatch.evidence import census
from memwatch.evidence.child import Child
from memwatch.evidence.sources import Sampling
from memwatch.evidence.survivors import survivors

GIB = 2**30


class Ticker:
    """Measures how late a thread wakes that wants to wake every millisecond."""

    def __init__(self) -> None:
        self.late_s: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._end.is_set():
            due += 0.001
            time.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            self.late_s.append((now, now - due))
            if now > due + 0.001:
                due = now

    def between(self, begin: float, end: float) -> list[float]:
        """Delays of the ticks in a span, sorted."""
        return sorted(late for at, late in list(self.late_s) if begin <= at <= end)


def build(size: float, kind: str) -> list[object]:
    """A heap of about *size* bytes."""
    if kind == "large":
        return [bytearray(1 << 20) for _ in range(int(size) >> 20)]
    rows: list[object] = []
    while len(rows) * 740 < size:  # a dictionary of three with its values
        n = len(rows)
        rows.append({"number": n, "text": f"row number {n} of many", "values": [n * 1.5, str(n), (n, n + 1)]})
    return rows


def private_bytes(pid: int | str) -> int:
    """Resident bytes that only this process has."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            total += int(line.split()[1]) * 1024
    return total


def measure(gib: float, kind: str) -> dict[str, float]:
    """One service; run in a process of its own."""
    sampling = Sampling(65536)
    kept = build(gib * GIB, kind)
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    ticker = Ticker()
    working = threading.Event()

    def work() -> None:
        place = 0
        while not working.wait(0.002):
            for row in kept[place : place + 50]:  # touches old objects, as services do
                str(type(row))
            place = (place + 50) % max(1, len(kept) - 50)

    threading.Thread(target=work, daemon=True).start()
    time.sleep(2)
    since = time.monotonic()
    more = build(0.01 * GIB, kind)
    begin = time.perf_counter()
    time.sleep(3)
    rest = ticker.between(begin, time.perf_counter())
    before = Child(census.Task(list, None, False))
    while not before.poll():
        time.sleep(0.01)
    counts = {name: tuple(row) for name, row in before.lines[0]["types"].items()}
    wanted = {key: row.bytes for key, row in sampling.live(since - 60).items()}

    def blocks() -> list[census.Block]:
        return survivors(sampling, wanted, since - 60, time.monotonic())

    begin = time.perf_counter()
    child = Child(census.Task(blocks, counts, True))  # type: ignore[arg-type]
    forked = time.perf_counter()
    peak = 0
    while not child.poll():
        try:
            peak = max(peak, private_bytes(child.pid))
        except OSError:
            break
        time.sleep(0.2)
    while not child.poll():
        time.sleep(0.01)
    end = time.perf_counter()
    taken = ticker.between(forked + 0.002, end) or [0.0]
    around = ticker.between(begin, forked + 0.2) or [0.0]
    seconds = {line["what"]: float(line["took_s"]) for line in child.lines if "took_s" in line}
    assert more and child.died is None, child.died

    def at(sorted_s: list[float], part: float) -> float:
        return sorted_s[min(len(sorted_s) - 1, int(part * len(sorted_s)))] * 1000

    return {
        "rss_gib": rss / GIB,
        "fork_ms": child.fork_s * 1000,
        "fork_seen_ms": around[-1] * 1000,
        "rest_999_ms": at(rest, 0.999),
        "rest_max_ms": rest[-1] * 1000,
        "taken_999_ms": at(taken, 0.999),
        "taken_max_ms": taken[-1] * 1000,
        "child_mib": peak / 2**20,
        "types_s": seconds["types"],
        "end_s": seconds["end"],
        "paths": float(sum(line["what"] == "path" for line in child.lines)),
    }


def main() -> int:
    """Run each size in a process of its own and print a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gib", nargs="*", type=float, default=[0.25, 1.0, 4.0])
    parser.add_argument("--kind", choices=("small", "large"), default="small")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.gib[0], arguments.kind)))
        return 0
    print(f"{arguments.kind} objects; milliseconds; ticker at 1 kHz")
    print("   RSS    fork  (seen)   at rest p99.9    max   while looked at p99.9    max   child alone   census   all told  paths")
    for gib in arguments.gib:
        words = [sys.executable, __file__, str(gib), "--kind", arguments.kind, "--one"]
        row = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
        print(
            "{rss_gib:5.2f}G {fork_ms:6.1f} {fork_seen_ms:7.1f} {rest_999_ms:16.1f} {rest_max_ms:6.1f} {taken_999_ms:23.1f} "
            "{taken_max_ms:6.1f} {child_mib:9.0f} MiB {types_s:6.1f} s {end_s:8.1f} s {paths:6.0f}".format(**row),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
