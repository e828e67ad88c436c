"""A day in a minute: services sampled every half second, as tests and demonstrations run them.  No numpy.

Each function draws its own parameters from a `random.Random` and returns the values of one run, sample by sample.  The
noise is what such runs show: RSS moves in pages and arenas, imports fill the first seconds, garbage makes saw teeth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

INTERVAL_S = 0.5
PAGE = 4096
ARENA = 2**18
"""256 KiB up to Python 3.9, 1 MiB since; both occur below."""

MB = 1e6
Run = Callable[[Random, float], Iterator[dict[str, float]]]


class Service:
    """The parts every run has: imports, arenas, garbage, CPU."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.imports_s = random.uniform(0.3, 6.0)
        self.base = random.uniform(10, 60) * MB
        self.arena = random.choice([ARENA, 4 * ARENA])
        self.garbage = random.choice([0.0, 0.3, 1.5]) * MB
        self.period_s = random.uniform(1, 6)
        self.busy = random.uniform(0.02, 0.9)
        self.kept = 0.0
        self.cpu = 0.0

    def sample(self, time_s: float, python: float = 0.0, malloc: float = 0.0, **counts: float) -> dict[str, float]:
        """One reading with *python* and *malloc* bytes in use beyond the base."""
        started = min(1.0, time_s / self.imports_s) ** 0.7
        waste = self.garbage * ((time_s / self.period_s) % 1.0)
        heap = self.base * started * 0.6 + python + waste
        native = self.base * started * 0.3 + malloc
        arenas = math.ceil(heap * 1.04 / self.arena) * self.arena
        heaps = math.ceil(native * 1.02 / (33 * PAGE)) * 33 * PAGE
        self.kept = max(self.kept * 0.999, arenas + heaps)
        self.cpu += INTERVAL_S * self.busy * self.random.uniform(0.7, 1.3)
        resident = 0.8 * self.kept + 0.2 * (arenas + heaps) + self.base * 0.4 + self.random.randrange(8) * PAGE
        values = {
            "rss": resident // PAGE * PAGE + 6 * MB,
            "file": 6 * MB,
            "heap": heap // 16 * 16,
            "native": native // 16 * 16,
            "blocks": heap // 90,
            "large_blocks": 300.0,
            "retained": max(0.0, self.kept - heap - native),
            "fds": 8.0,
            "sockets": 2.0,
            "threads": 3.0,
            "children": 0.0,
            "tasks": 2.0,
            "cpu": round(self.cpu, 2),
        }
        return values | counts


def _times(seconds: float) -> Iterator[float]:
    return (number * INTERVAL_S for number in range(int(seconds / INTERVAL_S)))


def _late(random: Random) -> Callable[[float], float]:
    """Time at which work was done: timers of a loaded machine are late by turns."""
    pauses = [random.uniform(0, 0.4) for _ in range(400)]
    return lambda time_s: max(0.0, time_s - pauses[int(time_s * 2) % 400])


# --- leaks: found within 45 s -------------------------------------------------------------------------------------


def leak_python(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    """Small objects: 10 to 80 MB a minute."""
    service, rate, clock = Service(random), math.exp(random.uniform(math.log(11), math.log(80))) * MB / 60, _late(random)
    for time_s in _times(seconds):
        yield service.sample(time_s, python=rate * max(0.0, clock(time_s) - service.imports_s))


def leak_large_objects(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    """Objects over 512 bytes: their bytes are malloc's."""
    service, rate, size = Service(random), random.uniform(11, 60) * MB / 60, random.choice([600, 2000, 30000])
    for time_s in _times(seconds):
        grown = rate * max(0.0, time_s - service.imports_s)
        yield service.sample(time_s, malloc=grown, large_blocks=300.0 + grown // size)


def leak_native(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    """Bytes a C library lost."""
    service, rate = Service(random), random.uniform(11, 140) * MB / 60
    for time_s in _times(seconds):
        yield service.sample(time_s, malloc=rate * max(0.0, time_s - service.imports_s))


def leak_descriptors(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    """Sockets or files: 30 and more in 45 s."""
    service, rate, sockets = Service(random), math.exp(random.uniform(math.log(0.7), math.log(20))), random.random() < 0.5
    for time_s in _times(seconds):
        grown = float(int(rate * max(0.0, time_s - service.imports_s)))
        yield service.sample(time_s, python=grown * 3000, fds=8 + grown, sockets=2.0 + grown * sockets)


def leak_threads(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    service, rate = Service(random), math.exp(random.uniform(math.log(0.7), math.log(10)))
    for time_s in _times(seconds):
        grown = float(int(rate * max(0.0, time_s - service.imports_s)))
        yield service.sample(time_s, malloc=grown * 20000, threads=3 + grown)


def leak_tasks(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    """Tasks that never end, and the heap that they hold."""
    service, rate = Service(random), math.exp(random.uniform(math.log(0.7), math.log(40)))
    held = random.uniform(2000, 30000)
    for time_s in _times(seconds):
        grown = float(int(rate * max(0.0, time_s - service.imports_s)))
        yield service.sample(time_s, python=grown * held, tasks=2 + grown)


def leak_children(random: Random, seconds: float = 45.0) -> Iterator[dict[str, float]]:
    service, rate = Service(random), random.uniform(0.7, 4)
    for time_s in _times(seconds):
        yield service.sample(time_s, children=float(int(rate * max(0.0, time_s - service.imports_s))))


# --- look-alikes: never called leaking in 60 s ------------------------------------------------------------------------


def cache_filling(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """An lru_cache that fills in a straight line, then turns over with a slow creep."""
    service, size, fill_s = Service(random), random.uniform(10, 45) * MB, random.uniform(6, 27)
    creep = random.uniform(0, 0.025) * MB
    for time_s in _times(seconds):
        since = max(0.0, time_s - service.imports_s * 0.3)
        yield service.sample(time_s, python=size * min(1.0, since / fill_s) + creep * max(0.0, since - fill_s))


def cache_saturating(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """New keys come ever more rarely."""
    service, size, half_s = Service(random), random.uniform(8, 40) * MB, random.uniform(3, 12)
    for time_s in _times(seconds):
        yield service.sample(time_s, python=size * (1 - math.exp(-time_s / half_s)))


def cache_ttl(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """Entries live for a while: a ramp, then level; a sweep now and then."""
    service, rate, ttl = Service(random), random.uniform(0.3, 2.0) * MB, random.uniform(5, 26)
    sweep = random.choice([0.5, 2.0, 5.0])
    for time_s in _times(seconds):
        expired = max(0.0, math.floor((time_s - ttl) / sweep) * sweep)
        yield service.sample(time_s, python=rate * (time_s - expired))


def bursts_retained(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """Data frames come and go; the allocator keeps more and more for the first third, then has enough."""
    service, level, climb_s = Service(random), random.uniform(5, 15) * MB, random.uniform(8, 22)
    for time_s in _times(seconds):
        keep = level * min(1.0, time_s / climb_s) ** 0.8
        values = service.sample(time_s, malloc=random.uniform(0, 25) * MB if random.random() < 0.4 else 0.0)
        values["rss"] += keep // PAGE * PAGE
        values["retained"] += keep
        yield values


def saw_tooth(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """Cyclic garbage that full collections take away."""
    service, height, period_s = Service(random), random.uniform(4, 30) * MB, random.uniform(3, 25)
    for time_s in _times(seconds):
        yield service.sample(time_s, python=height * ((time_s / period_s) % 1.0))


def pool_filling(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """Threads and connections are made one by one up to a maximum."""
    service, most, fill_s = Service(random), random.uniform(8, 45), random.uniform(8, 30)
    for time_s in _times(seconds):
        made = float(int(most * min(1.0, time_s / fill_s)))
        counts = {"threads": 1 + made, "fds": 4 + made + made // 12, "sockets": made, "tasks": 1 + made // 2}
        yield service.sample(time_s, python=made * 8000, malloc=made * 15000, **counts)


def warm_up(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """Modules, tables and compiled functions come with first use, in lumps that grow rarer."""
    service, level = Service(random), 0.0
    for time_s in _times(seconds):
        if random.random() < 0.8 * math.exp(-time_s / random.uniform(5, 12)):
            level += random.uniform(0.2, 3) * MB
        yield service.sample(time_s, python=level * 0.7, malloc=level * 0.3)


def fragmenting(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    """RSS creeps while what is live is level."""
    service, creep = Service(random), random.uniform(2, 14) * MB
    for time_s in _times(seconds):
        values = service.sample(time_s)
        kept = creep * math.sqrt(time_s / seconds)
        values["rss"] += kept // PAGE * PAGE
        values["retained"] += kept
        yield values


def tasks_coming_and_going(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    service, most, alive = Service(random), random.uniform(5, 80), 0.0
    for time_s in _times(seconds):
        alive = max(0.0, alive + random.gauss(0, most / 8) + (most / 2 - alive) / 12)
        yield service.sample(time_s, python=alive * 6000, tasks=2 + float(int(alive)), fds=8 + float(int(alive)))


def quiet(random: Random, seconds: float = 60.0) -> Iterator[dict[str, float]]:
    service = Service(random)
    for time_s in _times(seconds):
        yield service.sample(time_s)


LEAKS: dict[Run, tuple[str, ...]] = {
    leak_python: ("python-heap",),
    leak_large_objects: ("python-heap",),
    leak_native: ("native",),
    leak_descriptors: ("descriptors",),
    leak_threads: ("threads",),
    leak_tasks: ("tasks",),
    leak_children: ("children",),
}
"""Run to the kinds that are right."""

LOOKALIKES: tuple[Run, ...] = (
    cache_filling, cache_saturating, cache_ttl, bursts_retained, saw_tooth, pool_filling, warm_up, fragmenting,
    tasks_coming_and_going, quiet,
)  # fmt: skip


def main() -> None:
    """Print how often each run is called leaking, and when: 200 seeds each."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from memwatch.trend import LeakDetector

    for run in (*LEAKS, *LOOKALIKES):
        found, kinds = [], 0
        for seed in range(200):
            detector, random = LeakDetector(INTERVAL_S), Random(f"{run.__name__}{seed}")
            alarm = None
            for number, values in enumerate(run(random, 45.0 if run in LEAKS else 60.0)):
                verdict = detector.update(1.7e9 + number * INTERVAL_S, values)
                if verdict.state == "leaking" and alarm is None:
                    alarm = number * INTERVAL_S
            if alarm is not None:
                found.append(alarm)
                kinds += verdict.kind in LEAKS.get(run, ())
        found.sort()
        when = f"after {found[len(found) // 2]:.0f} s (latest {found[-1]:.0f} s)" if found else ""
        print(f"{run.__name__:26s} leaking {len(found):3d} of 200 {when} {f'kind right {kinds}' if run in LEAKS else ''}")


if __name__ == "__main__":
    main()
