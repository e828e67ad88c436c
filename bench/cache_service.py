"""A service whose caches want ten times the memory it may use, for a simulated day: `python bench/cache_service.py [--minutes 2]`.

The day is compressed: the watcher's interval and the requests with it.  A supervisor reads the service's RSS every 10 ms and kills
it at the limit, as the OOM killer would.  The same service with `functools.lru_cache` for contrast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SERVICE = """
import functools, json, random, sys, time
kind, limit_mib, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
import memwatch
from memwatch.caches import LRUCache, stats

memwatch.start(interval="0.2s", memory_limit=f"{limit_mib:.0f}MiB", directory=False, evidence="off", cleanup_interval="3s")
wanted = int(10 * limit_mib * 2**20 / 12_000)
chance = random.Random(1)
def load(key):
    return bytes(chance.randrange(2_000, 20_000))
if kind == "memwatch":
    cache = LRUCache(None, max_bytes=int(10 * limit_mib * 2**20))
    get = lambda key: cache.get_or_set(key, lambda: load(key))
else:
    get = functools.lru_cache(None)(load)
began, requests = time.monotonic(), 0
while time.monotonic() - began < seconds:
    for _ in range(100):
        get(int(wanted * chance.random() ** 3))
    requests += 100
    time.sleep(0.01)
    if requests % 2000 == 0:
        ratio = cache.stats().hit_ratio if kind == "memwatch" else get.cache_info().hits / requests
        left = dict(cache.stats().removals) if kind == "memwatch" else {}
        print(json.dumps({"requests": requests, "hit_ratio": ratio, "removals": left}), flush=True)
"""


def rss_mib(pid: int) -> float:
    """Resident now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
    except (OSError, IndexError, ValueError):
        return 0.0


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long the day takes")
    parser.add_argument("--limit-mib", type=float, default=300.0)
    arguments = parser.parse_args()
    print("| caches | requests | hit ratio | peak RSS of limit | end | left the cache |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind in ("memwatch", "functools"):
        seconds = 60 * arguments.minutes
        command = [sys.executable, "-c", SERVICE, kind, str(arguments.limit_mib), str(seconds)]
        service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        peak, killed = 0.0, False
        while service.poll() is None:
            peak = max(peak, rss_mib(service.pid))
            if peak >= arguments.limit_mib:
                service.kill()
                killed = True
                break
            time.sleep(0.01)
        lines = service.communicate()[0].splitlines()
        last = json.loads(lines[-1]) if lines else {"requests": 0, "hit_ratio": 0.0, "removals": {}}
        end = "killed" if killed else f"exit {service.returncode}"
        of = f"{peak:.0f} of {arguments.limit_mib:.0f} MiB"
        left = ", ".join(f"{count:,} {cause}" for cause, count in last["removals"].items()) or "–"
        print(f"| {kind} | {last['requests']:,} | {100 * last['hit_ratio']:.1f} % | {of} | {end} | {left} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
