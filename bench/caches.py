"""Caches side by side in one run: `python bench/caches.py [--rounds 5] [--only time,bytes,hits]`.

CPU time per operation (each engine in a process of its own per round, engines in turn; minimum of the rounds and its ratio to
cachetools' LRU with a lock), bytes per entry, and hit ratios of three traces.  The engines are installed from PyPI.

`full` is memwatch with everything on: a time to live, a bound in bytes with the sizes measured, a hook with a cause, statistics.
`in Python` is it without the C extension that stores.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plugin_peers import PEERS, ROOT, installed

REQUIREMENTS = ["cachetools", "cachebox", "theine", "lru-dict", "moka-py", "psutil", "click", "rich"]
CAPACITY = 10_000
ANCHOR = "cachetools LRU + RLock"
ROWS = ("get", "insert", "zipf", "get, 4 threads", "insert, 4 threads", "zipf, 4 threads")

Engine = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]
"""get(key) → value or None, and set(key, value)."""


def locked(cache: Any) -> Engine:
    """cachetools says: use a lock."""
    lock = threading.RLock()

    def get(key: Any) -> Any:
        with lock:
            try:
                return cache[key]
            except KeyError:
                return None

    def put(key: Any, value: Any) -> None:
        with lock:
            cache[key] = value

    return get, put


def indexed(cache: Any) -> Engine:
    """Reads by index, as the locked ones do."""

    def get(key: Any) -> Any:
        try:
            return cache[key]
        except KeyError:
            return None

    def put(key: Any, value: Any) -> None:
        cache[key] = value

    return get, put


def hook(key: Any, value: Any, cause: Any) -> None:
    """What a full-featured cache calls."""


def engines(capacity: int) -> dict[str, Callable[[], Engine]]:
    """Made when asked for: each in a process that has imported nothing of the others."""

    def cachetools(kind: str, *arguments: Any) -> Engine:
        import cachetools

        return locked(getattr(cachetools, kind)(capacity, *arguments))

    def memwatch(*, extension: bool = True, **more: Any) -> Engine:
        from memwatch.caches import LRUCache
        from memwatch.caches.engine import Engine as Storing

        in_python = getattr(Storing.__setitem__, "__wrapped__", None)
        if extension and in_python is None:
            raise SystemExit("the extension memwatch.caches._engine is not built for this Python: pip install -e .")
        if not extension:
            # The type checker wants methods to stay what the class says; this one is what it was.
            Storing.__setitem__ = in_python or Storing.__setitem__  # type: ignore[method-assign]
        return indexed(LRUCache(capacity, **more))

    def cachebox(kind: str, *arguments: Any) -> Engine:
        import cachebox

        return indexed(getattr(cachebox, kind)(capacity, *arguments))

    def theine() -> Engine:
        from theine import Cache

        cache = Cache(capacity)
        return (lambda key: cache.get(key)[0]), lambda key, value: cache.set(key, value)

    def lru_dict() -> Engine:
        from lru import LRU

        cache = LRU(capacity)
        return cache.get, cache.__setitem__

    def moka() -> Engine:
        from moka_py import Moka

        cache: Any = Moka(capacity, policy="lru")
        return cache.get, cache.set

    def standard() -> Engine:
        import functools

        call = functools.lru_cache(capacity)(lambda key: None)
        return call, lambda key, value: call(key)

    everything = {"ttl": 3600, "max_bytes": 10**9, "on_remove": hook}
    return {
        ANCHOR: lambda: cachetools("LRUCache"),
        "cachetools TTL + RLock": lambda: cachetools("TTLCache", 3600),
        "memwatch LRU": memwatch,
        "memwatch LRU, ttl": lambda: memwatch(ttl=3600),
        "memwatch LRU, full": lambda: memwatch(**everything),
        "memwatch LRU, full, in Python": lambda: memwatch(extension=False, **everything),
        "memwatch clock": lambda: memwatch(policy="clock"),
        "memwatch clock, full": lambda: memwatch(policy="clock", **everything),
        "cachebox LRU": lambda: cachebox("LRUCache"),
        "cachebox TTL": lambda: cachebox("TTLCache", 3600),
        "theine": theine,
        "lru-dict": lru_dict,
        "moka-py lru": moka,
        "functools.lru_cache": standard,
    }


def zipf(count: int, keys: int, seed: int = 1, exponent: float = 0.99) -> list[int]:
    """Ranks drawn with a probability of 1 / rank ** exponent."""
    chance = random.Random(seed)
    weights, total = [], 0.0
    for rank in range(1, keys + 1):
        total += rank**-exponent
        weights.append(total)
    return chance.choices(range(keys), cum_weights=weights, k=count)


def cpu_ns(work: Callable[[], None], operations: int) -> float:
    gc.collect()
    began = time.process_time_ns()
    work()
    return (time.process_time_ns() - began) / operations


def in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def times(name: str) -> dict[str, float]:
    """CPU nanoseconds per operation, of one engine."""
    operations = 100_000
    keys = [f"key-{number}" for number in range(operations + CAPACITY)]
    mixed = [keys[rank] for rank in zipf(operations, 100_000)]
    found = {}
    for threads, suffix in ((1, ""), (4, ", 4 threads")):
        get, put = engines(CAPACITY)[name]()
        part = operations // threads

        def gets(number: int, get: Any = get, part: int = part) -> None:
            for key in (keys[-CAPACITY:] * (1 + part // CAPACITY))[:part]:
                get(key)

        def puts(number: int, put: Any = put, part: int = part) -> None:
            for key in keys[number * part : (number + 1) * part]:
                put(key, 1)

        def both(number: int, get: Any = get, put: Any = put, part: int = part) -> None:
            for key in mixed[number * part : (number + 1) * part]:
                if get(key) is None:
                    put(key, 1)

        for key in keys:
            put(key, 1)
        found["get" + suffix] = cpu_ns(lambda gets=gets, threads=threads: in_threads(gets, threads), operations)
        found["insert" + suffix] = cpu_ns(lambda puts=puts, threads=threads: in_threads(puts, threads), operations)
        found["zipf" + suffix] = cpu_ns(lambda both=both, threads=threads: in_threads(both, threads), operations)
    return found


def bytes_per_entry(name: str) -> float:
    """What the engine adds: keys and the value are there before.  By RSS where tracemalloc does not see the engine's allocator."""
    import os

    count = 200_000
    keys = [f"key-{number}" for number in range(count)]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    native = name.startswith(("cachebox", "theine", "lru-dict", "moka"))
    _, put = engines(count)[name]()
    for key in keys[:1000]:
        put(key, 1)
    gc.collect()
    if not native:
        tracemalloc.start()
    before = resident() if native else tracemalloc.get_traced_memory()[0]
    for key in keys[1000:]:
        put(key, 1)
    gc.collect()
    return ((resident() if native else tracemalloc.get_traced_memory()[0]) - before) / (count - 1000)


def hit_ratios(name: str) -> dict[str, float]:
    """Percent of reads that hit: zipf, zipf with scans, and a working set that drifts."""
    capacity, count = 5_000, 300_000
    chance = random.Random(2)
    ranks = zipf(count, 200_000, seed=3)
    scanned: list[int] = []
    fresh = 10**7
    for index, rank in enumerate(ranks):
        scanned.append(rank)
        if index % (4 * capacity) == 4 * capacity - 1:
            scanned += range(fresh, fresh + capacity)
            fresh += capacity
    window = int(0.8 * capacity)
    drifting = [index // 4 + chance.randrange(window) for index in range(count)]
    found = {}
    for trace, accesses in {"zipf": ranks, "scan": scanned, "drifting": drifting}.items():
        get, put = engines(capacity)[name]()
        hits = 0
        for number, key in enumerate(accesses):
            if name == "functools.lru_cache":
                put(key, 1)
                continue
            if get(key) is None:
                put(key, 1)
            elif number >= len(accesses) // 3:
                hits += 1
        found[trace] = 100 * hits / (len(accesses) - len(accesses) // 3)
    return found


def ask(python: Path, what: str, name: str) -> Any:
    """One measurement in a process of its own."""
    command = [str(python), __file__, "--measure", what, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="time,bytes,hits")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, name = arguments.measure
        print(json.dumps({"time": times, "bytes": bytes_per_entry, "hits": hit_ratios}[what](name)))  # type: ignore[operator]
        return
    python = installed(PEERS / "caches", REQUIREMENTS)
    names = list(engines(1))
    wanted = arguments.only.split(",")
    if "time" in wanted:
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                taken[name].append(ask(python, "time", name))
        best = {name: {row: min(one[row] for one in rounds) for row in ROWS} for name, rounds in taken.items()}
        shown = [[name, *(f"{best[name][row]:.0f} ({best[name][row] / best[ANCHOR][row]:.2f})" for row in ROWS)] for name in names]
        print(f"CPU ns per operation, least of {arguments.rounds} rounds (ratio to {ANCHOR})\n")
        print(table(["engine", *ROWS], shown) + "\n")
    if "bytes" in wanted or "hits" in wanted:
        rows = []
        for name in names:
            size = f"{ask(python, 'bytes', name):.0f}"
            ratios = {} if name == "functools.lru_cache" else ask(python, "hits", name)
            rows.append(
                [name, size, *(f"{ratios[trace]:.1f}" if trace in ratios else "as LRU" for trace in ("zipf", "scan", "drifting"))]
            )
        print("Bytes that the engine adds per entry, and hits in percent\n")
        print(table(["engine", "bytes per entry", "zipf", "scan", "drifting"], rows))


if __name__ == "__main__":
    sys.exit(main())
