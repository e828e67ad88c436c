"""What one tick costs: CPU time, and the longest time the GIL is held, by source and heap size.

    python bench/tick.py [GiB …]          default 0.1 1 4

Prints one table per heap size, in microseconds.  `warm` repeats a reading at once; `cold` walks 256 MiB of other memory before it,
as a service that works between two ticks does, and is the pessimistic figure.  `hold` is the longest gap that a thread which does
nothing but look at the clock saw while the reading ran: what a service's thread waits for the GIL at most.  The switch interval is
set so short that Python code gives way at once, and the gap is what C code held on to.  The gap without any reading is told too: it
is the machine's.

A default tick is what is taken every time; a dear reading is taken as often as its duty allows (`every`).
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

ROUNDS = 15


class Session:
    """One of the small objects that services leak."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = str(number)


def fill(gib: float) -> list[list[Session]]:
    from memwatch.vitals import Vitals

    vitals = Vitals()
    kept: list[list[Session]] = []
    gc.disable()
    while (vitals.read_rss() or math.inf) < gib * 2**30:
        start = len(kept) * 10_000 + 10**9
        kept.append([Session(number) for number in range(start, start + 10_000)])
    gc.enable()
    return kept


def cpu_us(read: Callable[[], object], *, before: Callable[[], object] | None = None, rounds: int = ROUNDS) -> float:
    """Median CPU microseconds of this thread."""
    costs = []
    for _ in range(rounds):
        if before is not None:
            before()
        started = time.thread_time()
        read()
        costs.append(time.thread_time() - started)
    return sorted(costs)[len(costs) // 2] * 1e6


class Heartbeat:
    """A thread that looks at the clock without pause, and keeps the longest gap between two looks."""

    def __init__(self) -> None:
        self.gap_s = 0.0
        self._going = True
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        last = time.perf_counter()
        while self._going:
            now = time.perf_counter()
            if now - last > self.gap_s:
                self.gap_s = now - last
            last = now

    def stop(self) -> None:
        self._going = False
        self._thread.join()


def hold_us(read: Callable[[], object], rounds: int = 7) -> float:
    """The median over some rounds of the longest gap that another thread saw."""
    gaps = []
    for _ in range(rounds):
        beat = Heartbeat()
        time.sleep(0.02)
        beat.gap_s = 0.0
        read()
        time.sleep(0.02)  # the other thread notes its gap when it gets the GIL back
        gaps.append(beat.gap_s)
        beat.stop()
    return sorted(gaps)[len(gaps) // 2] * 1e6


def measure(gib: float) -> None:
    from memwatch.vitals import Vitals, pace

    kept = fill(gib)
    other = bytearray(256 * 2**20)

    def cool() -> None:
        other[::64] = bytes(len(other) // 64)

    cool()
    vitals = Vitals()
    vitals.read()
    vitals.read(complete=True)
    sys.setswitchinterval(1e-5)
    quiet = hold_us(lambda: None)
    print(f"\nPython {sys.version.split()[0]}, {gib:g} GiB resident, {sys.getallocatedblocks() / 1e6:.1f} M blocks; "
          f"gap without any reading {quiet:.0f} µs")  # fmt: skip
    print(f"{'source':<12}{'warm µs':>12}{'cold µs':>12}{'hold µs':>12}   every")
    tick = dear = 0.0
    for name, read in vitals.sources.items():
        rounds = 3 if name in ("gc_objects", "uss") else ROUNDS
        warm, cold = cpu_us(read, rounds=rounds), cpu_us(read, before=cool, rounds=rounds)
        held = hold_us(read, rounds=3 if name in ("gc_objects", "uss") else 7)
        if name in ("gc_objects", "uss"):
            often = (
                "on demand" if cold > (5_000 if name == "gc_objects" else 20_000) else f"{max(300.0, cold / 1e6 / pace.DUTY):.0f} s"
            )
        elif name == "limit":
            often = "300 s"
        elif cold <= pace.FREE_BELOW_S * 1e6:
            often = "tick"
        else:
            often = f"{cold / 1e6 / pace.DUTY:.0f} s"
        tick += cold if often == "tick" else 0.0
        dear += 0.0 if often in ("tick", "on demand") else cold
        print(f"{name:<12}{warm:>12.1f}{cold:>12.1f}{held:>12.0f}   {often}")
    print(f"{'cheap tick':<12}{'':>12}{tick:>12.1f}\n{'+ all dear':<12}{'':>12}{tick + dear:>12.1f}")
    for _ in range(3):
        vitals.read()
    whole = cpu_us(vitals.read, before=cool)
    print(f"{'read()':<12}{cpu_us(vitals.read):>12.1f}{whole:>12.1f}   as scheduled")
    del kept
    sys.stdout.flush()
    os._exit(0)  # taking 4 GiB of objects apart is of no interest


def import_cost() -> None:
    def best(statement: str) -> tuple[float, int]:
        code = (
            "import sys, time, resource; a = time.perf_counter(); before = len(sys.modules)\n"
            f"{statement}\nprint(time.perf_counter() - a, len(sys.modules) - before)"
        )
        found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(9)]
        costs = sorted(float(line.split()[0]) for line in found)
        return costs[len(costs) // 2] * 1e3, int(found[0].split()[1])

    for statement in ("import memwatch.model", "import memwatch.vitals", "import memwatch.vitals as v; v.Vitals().read()"):
        took_ms, modules = best(statement)
        print(f"{statement:<50}{took_ms:>8.1f} ms {modules:>5} modules")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = sys.path[0]
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        measure(float(sys.argv[2]))
    import_cost()
    for size in sys.argv[1:] or ["0.1", "1", "4"]:
        subprocess.run([sys.executable, __file__, "--one", size], check=True)
