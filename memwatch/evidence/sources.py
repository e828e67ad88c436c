"""What knows the live bytes of each Python stack: the sampler (`_sampler.c`), else tracemalloc.

Law: samples are as few as will do; a program that traces itself goes on doing so.
"""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any, NamedTuple, Protocol

from memwatch.evidence import names

FIRST_BYTES = 512 * 1024
"""The mean until it is known how much a program allocates."""
FINEST_BYTES = 64 * 1024
COARSEST_BYTES = 8 * 2**20
SAMPLES_PER_S = 100.0
"""Samples a second on average: one costs 10 µs in a loop, and some 50 in a service, whose requests have the processor's caches to
themselves: up to 0.5 % of one core."""
MOST_SAMPLES_PER_S = 300.0
"""At any time: beyond it the sampler coarsens its mean itself, in a tenth of a second."""
MOST_FINE_SAMPLES_PER_S = 1000.0
"""While something is looked into."""
ADAPT_AFTER_S = 0.1
DUTY = 0.125
"""Part of the time in which small blocks are sampled, where a program allocates so much that the hooks themselves count ..."""
DUTY_FROM_BYTES = 2**20
"""... which is so from this mean on: some 100 MB a second."""
AWAKE_S = 0.1
"""How long they are sampled at a time: what is allocated at once, in a burst of a second or two, is not missed."""
OWED_MOST_S = 10 * AWAKE_S / DUTY
FRAMES_TRACED = 8
"""Frames that tracemalloc keeps where it stands in for the sampler: each costs the program time."""


class Live(NamedTuple):
    """Live memory of one stack, estimated."""

    bytes: float
    objects: float
    samples: int


class SiteSource(Protocol):
    """What knows the live bytes of each stack."""

    name: str

    def live(self, born_after_s: float = ...) -> dict[int, Live]:
        """Live memory by stack, of blocks born after a moment (monotonic seconds)."""
        ...

    def stack(self, key: int) -> tuple[names.Frame, ...]:
        """The frames of a stack, innermost first; empty where no Python code ran."""
        ...

    def stop(self) -> None:
        """Cost nothing any more."""
        ...


class Sampling:
    """The sampler (`_sampler.c`): always on, a few instructions per allocation.

    Args:
        mean_bytes: bytes between two samples, on average; a site's growth of L bytes has a relative standard error of √(mean/L).
            None: `FINEST_BYTES`, and more where samples would be many.

    Raises:
        RuntimeError, ImportError: it does not work here; the message says why.
    """

    name = "sampler"
    _users = 0
    """Watchers of this process that need it."""

    def __init__(self, mean_bytes: int | None) -> None:
        self._adapts = mean_bytes is None
        self.mean_bytes = mean_bytes or FIRST_BYTES
        """In force now."""
        self._taken: tuple[float, float] | None = None
        self._fine = False
        self._cycle: _Cycle | None = None
        self.module: Any = importlib.import_module("memwatch.evidence._sampler")
        self.module.start(self.mean_bytes)
        self._govern()
        Sampling._users += 1

    def refine(self, mean_bytes: int | None) -> None:
        """Sample with another mean for a while; None: as before."""
        self._fine = mean_bytes is not None
        self._taken = None
        self.stay_awake()
        self.module.set_mean(mean_bytes or self.mean_bytes)
        self._govern()

    def _govern(self) -> None:
        if self._fine:
            self.module.govern(MOST_FINE_SAMPLES_PER_S, COARSEST_BYTES)
        elif self._adapts:
            self.module.govern(MOST_SAMPLES_PER_S, COARSEST_BYTES)
        else:
            self.module.govern(0.0)

    def adapt(self, now_s: float) -> None:
        """Choose the mean by how many samples were taken since the call before.  What was sampled before stays unbiased."""
        if not self._adapts or self._fine:
            return
        statistics = self.module.statistics()
        taken = float(statistics["samples"])
        self.mean_bytes = int(statistics["mean_bytes"])  # the governor may have raised it
        if self._taken is not None:
            seconds = now_s - self._taken[0]
            if seconds < ADAPT_AFTER_S:
                return
            rate = max(0.0, taken - self._taken[1]) / seconds
            wanted = self.mean_bytes * rate / SAMPLES_PER_S
            mean = int(min(COARSEST_BYTES, max(FINEST_BYTES, wanted)))
            if not 0.7 * self.mean_bytes <= mean <= 1.4 * self.mean_bytes:
                self.mean_bytes = mean
                self.module.set_mean(mean)
        self._taken = now_s, taken

    def take_turns(self, now_s: float) -> float:
        """Sample small blocks for a part of the time only, where that is worth it.

        Cost: some 10 µs, about twice a second.

        Returns:
            Seconds until it is to be called again; infinity if nothing changes before the mean does.
        """
        alone = self._adapts and not self._fine and self._taken is not None and Sampling._users == 1
        if not alone or self.module.statistics()["mean_bytes"] < DUTY_FROM_BYTES:  # in force now: the governor is quick to raise it
            self.stay_awake()
            return math.inf
        cycle = self._cycle
        if cycle is None:
            cycle = self._cycle = _Cycle(now_s)
            self.module.set_duty(DUTY)
        if now_s < cycle.until_s:
            return cycle.until_s - now_s
        if cycle.asleep:
            self.module.resume()
        elif not self.module.pause():  # another tool's hooks stand on ours
            self.stay_awake()
            return math.inf
        return cycle.turn(now_s)

    def stay_awake(self) -> None:
        """Sample small blocks all the time, from now on."""
        if self._cycle is not None:
            self._cycle = None
            self.module.resume()
            self.module.set_duty(1.0)

    def live(self, born_after_s: float = -math.inf) -> dict[int, Live]:
        return {row[0]: Live(row[1], row[2], row[3]) for row in self.module.live(born_after_s)}

    def stack(self, key: int) -> tuple[names.Frame, ...]:
        return self.module.stack(key) or ()

    def maintain(self) -> bool:
        """Put the hooks back where another tool has dropped them; False if that was so: what was sampled before is unknown."""
        return bool(self.module.maintain())

    def blocks(self, born_after_s: float, limit: int) -> list[tuple[int, int, float, int, float]]:
        """Live sampled blocks: address, size, bytes stood for, stack, birth."""
        return list(self.module.blocks(born_after_s, limit))

    @classmethod
    def in_use(cls) -> bool:
        """Whether the sampler runs for anybody in this process."""
        return cls._users > 0

    def give_back(self, before: dict[str, float]) -> None:
        """Stop, and leave the sampler running as it did; *before*: its statistics of then."""
        Sampling._users -= 1
        self.module.set_mean(int(before["mean_bytes"]))
        self.module.govern(before["most_per_s"], int(before["coarsest_bytes"]))

    def stop(self) -> None:
        self.stay_awake()  # whoever needs the sampler still needs all of it
        Sampling._users -= 1
        if Sampling._users == 0:
            self.module.stop()


class _Cycle:
    """When to sample small blocks and when not, so that it is `DUTY` of the time whatever each turn is late by."""

    def __init__(self, now_s: float) -> None:
        self.asleep = False
        self.until_s = now_s + AWAKE_S
        self._since_s = now_s
        self._owed_s = 0.0
        """Sleep that is due for the time awake."""
        self._jitter = 0.5

    def turn(self, now_s: float) -> float:
        """From awake to asleep, or back; returns how long this lasts."""
        passed_s = now_s - self._since_s
        owed_s = self._owed_s + (-passed_s if self.asleep else passed_s * (1 / DUTY - 1))
        self._owed_s = min(OWED_MOST_S, max(-OWED_MOST_S, owed_s))  # a stopped process, a suspended machine: nothing was allocated
        self.asleep, self._since_s = not self.asleep, now_s
        # Not the same time each round, as a program may have a rhythm of its own: multiples of the golden ratio spread evenly.
        self._jitter = (self._jitter + 0.6180339887) % 1.0
        lasts_s = max(0.0, self._owed_s) * (0.5 + self._jitter) if self.asleep else AWAKE_S
        self.until_s = now_s + lasts_s
        return lasts_s


class Tracing:
    """tracemalloc: exact, but 2 to 12 times slower while it runs (bench/sampler.py): started on suspicion, stopped after.

    Where the program traces itself, its tracing is used and left running.
    """

    name = "tracemalloc"

    def __init__(self) -> None:
        import tracemalloc

        self._tracemalloc = tracemalloc
        self._ours = not tracemalloc.is_tracing()
        self._stacks: dict[int, tuple[names.Frame, ...]] = {}
        if self._ours:
            tracemalloc.start(FRAMES_TRACED)

    def live(self, born_after_s: float = -math.inf) -> dict[int, Live]:
        """All that is traced; tracemalloc does not know when a block was born."""
        module: Any = importlib.import_module("_tracemalloc")
        found: dict[tuple[Any, ...], list[int]] = {}
        for trace in module._get_traces():
            size, frames = trace[1], trace[2]
            row = found.get(frames)
            if row is None:
                found[frames] = [size, 1]
            else:
                row[0] += size
                row[1] += 1
        self._stacks = {hash(frames): tuple((file, "", line) for file, line in frames) for frames in found}
        return {hash(frames): Live(float(size), float(count), sys.maxsize) for frames, (size, count) in found.items()}

    def stack(self, key: int) -> tuple[names.Frame, ...]:
        return self._stacks.get(key, ())

    def stop(self) -> None:
        """Stop tracing, if it was not the program that began."""
        self._stacks = {}
        if self._ours and self._tracemalloc.is_tracing():
            self._tracemalloc.stop()
        self._ours = False
