"""More labelled traces than the corpus has: kinds of life it lacks, with wide parameters.  A validation set.

Each family is a function of a random generator that draws its own parameters and returns a `Life`; `trace` adds what
every process has (start-up, load, garbage, allocator overhead and retention, page granularity).  Nothing in
memwatch/trend was tuned to single traces of this set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from corpus import Trace

MIB = 2.0**20
Random = np.random.Generator


@dataclass
class Life:
    """What one process does, in MiB over hours; arrays have one value a sample."""

    live: np.ndarray
    """Memory in use, leak not included."""
    leak: np.ndarray | None = None
    native: bool = False
    """Whether the leak is out of Python's sight."""
    fds: np.ndarray | None = None
    threads: np.ndarray | None = None
    epoch: np.ndarray | None = None
    retention: float = 0.3
    """How much of a fall the allocators keep."""
    garbage: float = 3.0
    """MiB of uncollected garbage at most."""
    extra_rss: np.ndarray | None = None
    load: np.ndarray | None = None


@dataclass
class Scene:
    """Sampling times and a load that a family may use."""

    random: Random
    hours: np.ndarray
    dt: float
    base: float
    load: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        swing = self.random.choice([0.0, 0.15, 0.4, 0.7]) if self.hours[-1] > 12 else 0.0
        phase = self.random.uniform(0, 24)
        noise = smooth(self.random, len(self.hours), 40) * 0.05
        self.load = np.maximum(0.05, 1 + swing * np.sin((self.hours + phase) * np.pi / 12) + noise)

    @property
    def work(self) -> np.ndarray:
        """Units of work done: hours at mean load."""
        return np.cumsum(self.load) * self.dt / 3600

    def uniform(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def log(self, low: float, high: float) -> float:
        return float(np.exp(self.random.uniform(np.log(low), np.log(high))))


def smooth(random: Random, count: int, width: float) -> np.ndarray:
    """Unit-variance noise correlated over *width* samples (a first-order autoregression)."""
    keep = np.exp(-1 / width)
    steps = random.normal(0, np.sqrt(1 - keep * keep), count)
    out = np.empty(count)
    value = random.normal()
    for number, step in enumerate(steps):
        value = keep * value + step
        out[number] = value
    return out


def flat(s: Scene) -> np.ndarray:
    """A settled process: the base, a start-up of minutes, something that goes with the load."""
    start = s.uniform(0.1, 0.5) * s.base
    settle = s.uniform(0.02, 0.2)
    return s.base - start * np.exp(-s.hours / settle) + s.uniform(0, 0.1) * s.base * (s.load - 1)


# --- lives without a leak -----------------------------------------------------------------------------------------


def sessions_ttl(s: Scene) -> Life:
    """Sessions arrive with the load and end after a fixed time."""
    ttl = s.log(0.5, 24)
    arrived = s.work
    ended = np.interp(s.hours - ttl, s.hours, arrived, left=0.0)
    begin = np.interp(0.0, s.hours, arrived)
    alive = arrived - np.maximum(ended, begin * 0)
    size = s.log(15, 250) / max(1e-6, ttl)
    return Life(flat(s) + size * alive)


def sessions_idle(s: Scene) -> Life:
    """Sessions with an idle timeout of random length: a saturating exponential in work."""
    ttl = s.log(0.5, 12)
    alive = np.zeros(len(s.hours))
    value = 0.0
    for number, load in enumerate(s.load):
        value += (load - value / ttl) * s.dt / 3600
        alive[number] = value
    return Life(flat(s) + s.log(15, 200) / ttl * alive)


def wander_bounded(s: Scene) -> Life:
    """A mean-reverting random walk."""
    width = s.log(0.7, 12) * 3600 / s.dt
    return Life(np.maximum(0.3 * s.base, flat(s) + s.log(5, 45) * smooth(s.random, len(s.hours), width)))


def fill_linear(s: Scene) -> Life:
    """A cache that fills in proportion to work, then is full."""
    start, length, size = s.uniform(0, 3), s.log(0.3, 10), s.log(15, 250)
    return Life(flat(s) + size * np.clip((s.hours - start) / length, 0, 1))


def fill_twice(s: Scene) -> Life:
    """Two caches, one after the other."""
    first = fill_linear(s).live
    start, length = s.uniform(3, 12), s.log(0.3, 5)
    return Life(first + s.log(10, 80) * np.clip((s.hours - start) / length, 0, 1))


def fill_logistic(s: Scene) -> Life:
    """An S-shaped warm-up: slow, fast, slow."""
    middle, width = s.uniform(0.5, 8), s.log(0.1, 1.5)
    return Life(flat(s) + s.log(15, 150) / (1 + np.exp(-(s.hours - middle) / width)))


def warm_power(s: Scene) -> Life:
    """Growth like a power of work below 1 (Heaps' law: ever new keys, ever rarer)."""
    power = s.uniform(0.2, 0.45)
    return Life(flat(s) + s.log(10, 80) * (s.work / s.work[-1]) ** power)


def rebuild_slow(s: Scene) -> Life:
    """A table rebuilt every few hours: ramps that fall back."""
    period = s.log(2, 30)
    return Life(flat(s) + s.log(10, 80) * ((s.hours + s.uniform(0, period)) % period) / period, retention=s.uniform(0.1, 0.9))


def load_ramp(s: Scene) -> Life:
    """Traffic that rises for hours and stays, memory with it."""
    start, length = s.uniform(2, 10), s.log(1, 10)
    s.load = s.load * (1 + s.uniform(0.5, 3) * np.clip((s.hours - start) / length, 0, 1))
    return Life(flat(s) + s.log(15, 100) * (s.load - s.load[0]))


def daily(s: Scene) -> Life:
    """A daily cycle larger than anything else."""
    phase, size = s.uniform(0, 24), s.log(20, 150)
    s.load = np.maximum(0.1, 1 + s.uniform(0.3, 0.9) * np.sin((s.hours + phase) * np.pi / 12))
    return Life(flat(s) + size * s.load)


def restarts(s: Scene) -> Life:
    """Several lives, each with its own warm-up."""
    count = int(s.random.integers(2, 7))
    cuts = np.sort(s.random.uniform(0.05, 0.95, count)) * s.hours[-1]
    epoch = np.searchsorted(cuts, s.hours)
    since = s.hours - np.concatenate([[0.0], cuts])[epoch]
    start, fill, length = s.uniform(0.1, 0.5) * s.base, s.log(10, 120), s.log(0.2, 6)
    live = s.base - start * np.exp(-since / 0.1) + fill * np.clip(since / length, 0, 1)
    return Life(live, epoch=epoch.astype(float))


def pool_threads(s: Scene) -> Life:
    """A pool of threads (and their sockets) that fills to its maximum, by time or by bursts of load."""
    most, length = s.uniform(20, 200), s.log(0.3, 12)
    shape = np.clip(s.hours / length, 0, 1) if s.random.random() < 0.5 else 1 - np.exp(-s.hours / length * 2)
    threads = np.round(4 + most * shape)
    return Life(flat(s) + threads * s.uniform(0.05, 0.4), threads=threads, fds=np.round(20 + threads * s.uniform(0.5, 2)))


def descriptors_wander(s: Scene) -> Life:
    """Connections that come and go with the load."""
    fds = np.round(np.maximum(5, s.log(20, 400) * s.load * (1 + 0.2 * smooth(s.random, len(s.hours), 60))))
    return Life(flat(s), fds=fds)


def fragmentation(s: Scene) -> Life:
    """RSS that climbs ever more slowly over a flat heap."""
    size, length = s.log(10, 90), s.log(0.5, 8)
    climb = size * np.log1p(s.hours / length) / np.log1p(s.hours[-1] / length)
    steps = s.log(0.5, 10)
    return Life(flat(s), extra_rss=np.floor(climb / steps) * steps, retention=0.7)


def bursts(s: Scene) -> Life:
    """Jobs that need memory for a while; allocators keep part of it."""
    live = flat(s)
    for _ in range(int(s.random.integers(5, 40))):
        at, length, size = s.uniform(0, s.hours[-1]), s.log(0.05, 1.5), s.log(10, 120)
        live = live + size * ((s.hours > at) & (s.hours < at + length))
    return Life(live, retention=s.uniform(0.2, 0.95))


# --- lives with one -----------------------------------------------------------------------------------------------


def line(s: Scene, least: float = 70, most: float = 400, start: float | None = None, clock: np.ndarray | None = None) -> np.ndarray:
    """A leak straight on *clock* (hours), from *start*, of *least* to *most* MiB in all."""
    clock = s.hours if clock is None else clock
    begin = clock[0] if start is None else np.interp(start, s.hours, clock)
    return s.log(least, most) * np.clip((clock - begin) / (clock[-1] - begin), 0, 1)


def leak_slow(s: Scene) -> Life:
    return Life(flat(s), line(s, 70, 350))


def leak_midlife(s: Scene) -> Life:
    return Life(flat(s), line(s, 80, 500, start=s.uniform(0.2, 0.7) * s.hours[-1]))


def leak_with_load(s: Scene) -> Life:
    return Life(flat(s), line(s, 90, 400, clock=s.work))


def leak_masked_clear(s: Scene) -> Life:
    """A leak under a cache that is cleared every few hours."""
    period, size = s.log(1.0, 8), s.log(15, 70)
    fills = ((s.hours + s.uniform(0, period)) % period) / period
    return Life(flat(s) + size * np.minimum(1.0, fills * s.uniform(1, 3)), line(s, 120, 500))


def leak_refill(s: Scene) -> Life:
    """A leak that first fills the room which a cleared table left."""
    at, size = s.uniform(0.2, 0.5) * s.hours[-1], s.log(20, 80)
    return Life(flat(s) + size * (s.hours < at), line(s, 150, 500), retention=s.uniform(0.3, 0.9))


def leak_cleared(s: Scene) -> Life:
    """A leak whose owner is emptied by hand now and then: it starts again from nothing."""
    cuts = np.sort(s.random.uniform(0.3, 0.9, int(s.random.integers(1, 3)))) * s.hours[-1]
    since = s.hours - np.concatenate([[0.0], cuts])[np.searchsorted(cuts, s.hours)]
    return Life(flat(s), s.log(150, 400) * since / s.hours[-1] * 1.5)


def leak_thread(s: Scene) -> Life:
    """Threads that never end, with the pages of their stacks they touched."""
    threads = np.round(6 + s.log(150, 3000) * s.hours / s.hours[-1])
    return Life(flat(s), (threads - threads[0]) * s.log(0.03, 0.2), threads=threads, native=True)


def leak_descriptor(s: Scene) -> Life:
    fds = np.round(20 * s.load + s.log(100, 8000) * s.hours / s.hours[-1])
    return Life(flat(s), line(s, 5, 60), fds=fds)


def leak_oomloop(s: Scene) -> Life:
    """A leak that is killed at the limit and starts again, several times."""
    period = s.hours[-1] / s.uniform(2, 8)
    epoch = np.floor(s.hours / period)
    since = s.hours - epoch * period
    live = s.base - 0.3 * s.base * np.exp(-since / 0.1)
    return Life(live, s.log(120, 600) * since / period, epoch=epoch)


def leak_noisy(s: Scene) -> Life:
    """A leak in a process that wanders."""
    width = s.log(0.3, 3) * 3600 / s.dt
    return Life(flat(s) + s.log(3, 15) * smooth(s.random, len(s.hours), width), line(s, 100, 500))


def leak_under_day(s: Scene) -> Life:
    """Days of a slow leak under a daily cycle."""
    return Life(daily(s).live, line(s, 80, 300))


def leak_native(s: Scene) -> Life:
    return Life(flat(s), line(s, 80, 400), native=True)


def leak_fast(s: Scene) -> Life:
    return Life(flat(s), line(s, 250, 1500, start=s.uniform(0, 0.4) * s.hours[-1]))


def leak_bursty(s: Scene) -> Life:
    """Many small leaks at random moments."""
    steps = s.random.random(len(s.hours)) < 40 / len(s.hours)
    grown = np.cumsum(steps * s.random.lognormal(0, 0.4, len(s.hours)))
    return Life(flat(s), s.log(120, 400) * grown / max(1e-9, grown[-1]))


HARMLESS: tuple[Callable[[Scene], Life], ...] = (
    sessions_ttl, sessions_idle, wander_bounded, fill_linear, fill_twice, fill_logistic, warm_power, rebuild_slow, load_ramp,
    daily, restarts, pool_threads, descriptors_wander, fragmentation, bursts,
)  # fmt: skip
LEAKS: tuple[Callable[[Scene], Life], ...] = (
    leak_slow, leak_midlife, leak_with_load, leak_masked_clear, leak_refill, leak_cleared, leak_thread, leak_descriptor,
    leak_oomloop, leak_noisy, leak_under_day, leak_native, leak_fast, leak_bursty,
)  # fmt: skip
HOURS = {"leak_fast": (0.5, 4), "leak_slow": (8, 48), "leak_under_day": (60, 120), "leak_thread": (4, 40), "daily": (36, 100)}


def trace(number: int, family: Callable[[Scene], Life], seed: int) -> Trace:
    """Simulate one process of *family*."""
    random = np.random.default_rng([seed, *family.__name__.encode()])
    low, high = HOURS.get(family.__name__, (12, 60))
    span = float(np.exp(random.uniform(np.log(low), np.log(high))))
    dt = max(float(random.choice([5.0, 10.0, 15.0, 30.0, 60.0])), span * 3600 / 4000)
    hours = np.arange(int(span * 3600 / dt)) * dt / 3600
    scene = Scene(random, hours, dt, float(np.exp(random.uniform(np.log(30), np.log(400)))))
    life = family(scene)
    count = len(hours)
    leak = life.leak if life.leak is not None else np.zeros(count)
    garbage = life.garbage * random.random() * ((hours * random.uniform(2, 30)) % 1)
    noise = np.abs(random.normal(0, 0.004, count)) * scene.base * random.random()
    live = life.live + leak
    seen = live + garbage + noise
    rss = retained(seen * random.uniform(1.02, 1.2), life.retention, life.epoch) + random.uniform(8, 40)
    if life.extra_rss is not None:
        rss = rss + life.extra_rss
    channels: dict[str, Any] = {
        "t": hours * 3600,
        "rss": np.floor(rss * MIB / 4096) * 4096,
        "file": np.full(count, np.floor(random.uniform(5, 30)) * MIB),
        "fds": life.fds if life.fds is not None else np.round(15 + 4 * random.random(count)),
        "threads": life.threads if life.threads is not None else np.full(count, 5.0),
        "cpu": np.round(np.cumsum(scene.load) * dt * random.uniform(0.02, 0.6), 2),
        "gc2": np.floor(hours * 6),
        "epoch": life.epoch if life.epoch is not None else np.zeros(count),
    }
    channels["rss"] = channels["rss"] + channels["file"]
    has_heap = random.random() < 0.7
    if has_heap:
        channels["heap"] = np.floor((seen - (leak if life.native else 0.0)) * MIB / 1024) * 1024
        channels["blocks"] = np.floor(channels["heap"] / 90)
    is_leak = life.leak is not None
    onset = float(hours[int(np.argmax(leak > 0))] * 3600) if is_leak else -1.0
    limit = 0 if random.random() < 0.5 else int((rss.max() + 60) * random.uniform(1.05, 2.0) * MIB)
    label = {"kind": family.__name__, "leak": int(is_leak), "dt": dt, "n": count, "onset_s": onset, "limit_bytes": limit, "oom": 0}
    return Trace(number, label, channels, np.maximum(leak, 0) * MIB, live * MIB)


def retained(used: np.ndarray, keep: float, epoch: np.ndarray | None) -> np.ndarray:
    """RSS of an allocator that keeps the part *keep* of what is freed, and slowly gives it back."""
    out = np.empty(len(used))
    top = used[0]
    for number, value in enumerate(used):
        if epoch is not None and number and epoch[number] != epoch[number - 1]:
            top = value
        top = max(value, top - 0.0005 * (top - value))
        out[number] = value + keep * (top - value)
    return out


def generate(seeds: range = range(6)) -> list[Trace]:
    """The validation set: every family with every seed."""
    traces: list[Trace] = []
    for family in HARMLESS + LEAKS:
        traces += [trace(len(traces) + position, family, seed) for position, seed in enumerate(seeds)]
    return traces
