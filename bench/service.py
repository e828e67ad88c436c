#!/usr/bin/env python3
"""What watching costs a service: throughput bare against watched, and resident memory after a day of samples.

    bench/service.py [--seconds 10] [--pairs 6] [--interval 10s]

Throughput: one process does the work of a small JSON service without pause; stretches without and with a watcher take turns
(A B A B …), and the table shows the median of each and the ratio of every B to the mean of its two neighbours.
Added memory: 8,640 ticks (a day at 10 s) on a clock that is moved by hand, with a record, against the process without memwatch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

THROUGHPUT = """
import json, sys, time, tempfile
seconds, pairs, interval = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
import memwatch
orders = {n: {"id": n, "items": [{"sku": str(k), "price": k * 1.5} for k in range(20)]} for n in range(20000)}
def request(n):
    order = orders[n % 20000]
    body = json.dumps({"order": order, "total": sum(item["price"] for item in order["items"])})
    return len(json.loads(body)["order"]["items"])
def stretch():
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for n in range(100): request(done + n)
        done += 100
    return done / seconds
stretch()
bare, watched = [stretch()], []
with tempfile.TemporaryDirectory() as directory:
    for _ in range(pairs):
        watcher = memwatch.start(interval=interval, directory=directory)
        watched.append(stretch())
        samples = watcher.statistics().samples
        memwatch.stop()
        bare.append(stretch())
print(json.dumps({"bare": bare, "watched": watched, "samples": samples}))
"""

ADDED = """
import gc, json, os, sys, tempfile
def resident():
    gc.collect()
    with open("/proc/self/statm") as file: return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
import http.server, json, logging, threading
work = [{"n": n} for n in range(100000)]
before = resident()
after_import = after_day = before
if sys.argv[1] == "watched":
    import memwatch
    after_import = resident()
    from memwatch.testing import FakeClock
    from memwatch.watcher import Watcher
    clock = FakeClock()
    with tempfile.TemporaryDirectory() as directory:
        watcher = Watcher(clock=clock, directory=directory)
        for _ in range(8640):
            watcher.tick(); clock.advance(10.0)
        after_day = resident()
        watcher.stop()
print(json.dumps({"import": after_import - before, "day": after_day - before}))
"""

IMPORT = "import time; a = time.perf_counter(); import memwatch; print((time.perf_counter() - a) * 1000)"
START = (
    "import time; a = time.perf_counter(); import memwatch; memwatch.start(directory=False); b = time.perf_counter(); "
    "memwatch.stop(); print((b - a) * 1000)"
)


def run(program: str, *arguments: object) -> str:
    """Run a program text in a new interpreter; returns what it prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--interval", default="10s")
    options = parser.parse_args()

    started = [float(run(IMPORT)) for _ in range(9)]
    begun = [float(run(START)) for _ in range(9)]
    print(f"import memwatch                    {statistics.median(started):8.1f} ms (median of 9)")
    print(f"import and start                   {statistics.median(begun):8.1f} ms (median of 9)")

    runs = [json.loads(run(ADDED, "watched")) for _ in range(3)]
    drift = statistics.median(json.loads(run(ADDED, "bare"))["day"] for _ in range(3))
    print(f"added by the import                {statistics.median(r['import'] for r in runs) / 2**20:8.2f} MiB (median of 3)")
    print(
        f"added after 8,640 samples          {(statistics.median(r['day'] for r in runs) - drift) / 2**20:8.2f} MiB (median of 3)"
    )

    begin = time.perf_counter()
    found = json.loads(run(THROUGHPUT, options.seconds, options.pairs, options.interval))
    bare, watched = found["bare"], found["watched"]
    ratios = [2 * one / (left + right) for one, left, right in zip(watched, bare, bare[1:], strict=False)]
    how = f"{options.seconds:g} s each, interval {options.interval}"
    print(f"requests a second, bare            {statistics.median(bare):8.0f} (median of {len(bare)}, {how})")
    print(f"requests a second, watched         {statistics.median(watched):8.0f} (median of {len(watched)})")
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"watched ÷ bare                     {statistics.median(ratios):8.4f} (each against its neighbours: {spread})")
    print(f"({time.perf_counter() - begin:.0f} s)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory():
        main()
