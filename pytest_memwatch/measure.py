"""What one test did: readings at its borders, less what belongs to wider fixtures and to pytest.

Law: the first look is cheap (`suspicion`); everything else is paid for by suspicious tests alone.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest

from memwatch.gate.peaks import Peak
from memwatch.gate.readings import NOTHING, RESOURCES, SMALL_BLOCK, Growth, Reader, Reading, between
from pytest_memwatch.limits import Limits
from pytest_memwatch.rerun import recorded_warnings

RSS_SLACK = 2**20
"""RSS is suspicious only beyond this over the limit: arenas of pymalloc come 1 MiB at a time."""


OLD_SHARE = 0.5
"""What may be garbage of earlier tests is collected before a test once it is this part of the limit (guess)."""


WARNING_BYTES = 200
"""What `sys.getsizeof` does not tell of a recorded warning: its attributes, its place in the list.  Measured, 3.11 to 3.13."""


class Older(NamedTuple):
    """What came between tests since the process was last at rest.

    It may be garbage; if that goes during a test, it hides what the test keeps.
    """

    blocks: int = 0
    bytes: int = 0
    """In the heap; of RSS where malloc does not tell."""
    outside: int = 0
    """Of RSS outside the heap."""

    def plus(self, growth: Growth) -> Older:
        """With what came since."""
        heap = growth.heap if growth.heap is not None else growth.rss or 0
        outside = (growth.rss or 0) - (growth.heap or 0)
        return Older(self.blocks + max(0, growth.blocks), self.bytes + max(0, heap), self.outside + max(0, outside))

    def matters(self, limits: Limits) -> bool:
        """Whether it could hide a leak of a test with these limits."""
        most = limits.growth
        return most is not None and (self.bytes > OLD_SHARE * most or self.outside > OLD_SHARE * (most + RSS_SLACK))


class Suspicion(NamedTuple):
    """Why a test is looked at closely."""

    memory: bool
    counts: bool
    peak: bool

    def __bool__(self) -> bool:
        return self.memory or self.counts or self.peak


class Watch:
    """One test under watch.

    Args:
        before: the process before its set-up.
        older: what may have been garbage then.
    """

    def __init__(self, item: pytest.Item, limits: Limits, reader: Reader, before: Reading, older: Older) -> None:
        self.item = item
        self.limits = limits
        self.before = before
        self.excluded = NOTHING
        """What wider fixtures have allocated in their set-up."""
        self.excluded_counts = dict.fromkeys(RESOURCES, 0)
        self.peak: Peak | None = None
        self.passed = False
        """The body has passed."""
        self.begun = False
        """Its set-up has begun."""
        self.failed_inside = False
        """A subtest has failed: pytest fails the test for it later."""
        self.judged = False
        self.blind: str | None = None
        """Why it is not judged: a reading has failed."""
        self.late_error: BaseException | None = None
        """What an early tear-down raised: belongs to the tear-down phase."""
        self._reader = reader
        self._older = older
        self._sections = len(item._report_sections)

    @property
    def is_open(self) -> bool:
        """Whether it is still to be judged."""
        return self.passed and not self.judged and self.blind is None

    def exclude(self, so_far: Growth, counts: dict[str, int], before: Reading, after: Reading) -> Growth:
        """Leave out the set-up of a fixture that outlives the test; *so_far* and *counts* are what was left out before it began."""
        growth = between(before, after)
        self.excluded, self.excluded_counts = so_far.plus(growth), dict(counts)
        for channel in RESOURCES:
            was, now = getattr(before, channel), getattr(after, channel)
            if was is not None and now is not None:
                self.excluded_counts[channel] += now - was
        return growth

    def baseline(self) -> Reading:
        """The counts to come back to."""
        counts: dict[str, Any] = {
            channel: None if (was := getattr(self.before, channel)) is None else was + self.excluded_counts[channel]
            for channel in RESOURCES
        }
        return self.before._replace(**counts)

    def growth(self, now: Reading | None = None) -> Growth:
        """What is retained now, or was at a reading, less what wider fixtures and pytest itself keep."""
        if now is None:
            now = self._reader.read(small=True)
        growth = between(self.before, now).less(self.excluded)
        kept = self._kept_by_pytest()
        return growth.less(Growth(0, 0, kept, kept))

    def suspicion(self, *, settled: bool = False) -> Suspicion:
        """Whether anything is over a limit, at first sight.

        Args:
            settled: garbage has been collected and free memory given back, which may have been older than the test.

        Cost: 15 µs; 0.1 ms if many blocks came.
        """
        limits = self.limits
        now = self._reader.read()
        memory = False
        if limits.objects:
            memory = True
        elif limits.growth is not None:
            growth, older = between(self.before, now).less(self.excluded), self._older
            most = max(0, growth.blocks + older.blocks) * SMALL_BLOCK + max(0, growth.malloc or 0) + older.bytes
            if settled or most > limits.growth or growth.malloc is None:
                growth = self.growth()
                heap = growth.heap if growth.heap is not None else growth.at_most
                memory = heap + older.bytes > limits.growth
            outside = (now.rss or 0) - (self.before.rss or 0) - max(0, self.excluded.rss or 0)
            outside -= self._kept_by_pytest() + max(0, growth.at_most) - (older.outside if settled else 0)
            memory = memory or outside > limits.growth + RSS_SLACK
        counts = any(
            (count := getattr(now, channel)) is not None and count > (expected or 0) + most
            for channel, most in limits.counts.items()
            for expected in [getattr(self.baseline(), channel)]
            if expected is not None or channel == "tasks"
        )
        peak = self.peak is not None and limits.peak is not None and self.peak.bytes >= limits.peak
        return Suspicion(memory, counts, peak)

    def _kept_by_pytest(self) -> int:
        output = sum(len(content) for _, _, content in self.item._report_sections[self._sections :])
        return output + sum(map(_size_of, recorded_warnings()))


def _size_of(warning: Any) -> int:
    """Bytes of a warning that was recorded, with its message."""
    message = getattr(warning, "message", None)
    arguments = getattr(message, "args", ())
    return WARNING_BYTES + sum(map(sys.getsizeof, (warning, message, arguments, *arguments)))
