"""What was measured, on every time scale at once, in fixed memory.

Law: level k holds the last 64 buckets of 2^k samples each; a bucket keeps the **minimum** of every series in it (the
lower envelope: what was left after collections and bursts), and the means of its clocks.  A series that was not read
during a bucket is absent from it (NaN inside, never interpolated, never 0).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from math import nan

BUCKETS = 64
"""Buckets a level keeps: eight blocks of eight, the smallest block that has a quartile worth the name (guess)."""

LEVELS = 14
"""64 x 2^13 samples are 60 days at 10 s: beyond any deploy cycle."""

CLOCKS = ("elapsed", "stamp", "cpu", "work")
"""Averaged over a bucket, not minimised: seconds since the first sample, Unix time, CPU seconds, work done."""


class Level:
    """The last `BUCKETS` buckets of one width: one array for each series, all of the same length, oldest first."""

    __slots__ = ("closed", "columns", "gaps", "pending")

    def __init__(self) -> None:
        self.closed = 0
        """Buckets closed since the start, those forgotten included."""
        self.columns: dict[str, array[float]] = {}
        self.gaps: dict[str, int] = {}
        """Number of the last bucket without a reading, by series."""
        self.pending: dict[str, float] | None = None
        """The first half of the next level's bucket."""

    def append(self, bucket: Mapping[str, float]) -> None:
        columns = self.columns
        full = self.closed >= BUCKETS
        for name, value in bucket.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = array("d", [nan]) * min(self.closed, BUCKETS)
                if self.closed:
                    self.gaps[name] = self.closed
            column.append(value)
            if full:
                del column[0]
        self.closed += 1
        if len(bucket) != len(columns):
            for name, column in columns.items():
                if name not in bucket:
                    column.append(nan)
                    self.gaps[name] = self.closed
                    if full:
                        del column[0]

    def __len__(self) -> int:
        return min(self.closed, BUCKETS)

    def sparse(self, name: str) -> bool:
        """Whether a bucket that is kept may lack a reading of *name*."""
        return name in self.gaps and self.closed <= self.gaps[name] + BUCKETS


def merge(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Make one bucket of two neighbours: the mean of clocks, the minimum of everything else, absent where both are."""
    merged = dict(first)
    for name, value in second.items():
        other = merged.get(name)
        if other is None:
            merged[name] = value
        elif name in CLOCKS:
            merged[name] = (other + value) / 2
        elif value < other:
            merged[name] = value
    return merged


class History:
    """Multi-resolution minima of a set of series.

    Cost: amortised two appends and one merge for a bucket, whatever its age; memory is at most
    `LEVELS` x `BUCKETS` x 8 bytes a series.
    """

    __slots__ = ("levels",)

    def __init__(self) -> None:
        self.levels: list[Level] = [Level()]

    def append(self, bucket: Mapping[str, float]) -> int:
        """Add one bucket of the finest level; return how many levels closed a bucket with it."""
        closed = 0
        current: Mapping[str, float] = bucket
        while True:
            level = self.levels[closed]
            level.append(current)
            closed += 1
            if closed == LEVELS:
                return closed
            if level.pending is None:
                level.pending = dict(current)
                return closed
            current = merge(level.pending, current)
            level.pending = None
            if closed == len(self.levels):
                self.levels.append(Level())

    @property
    def samples(self) -> int:
        """Buckets of the finest level seen since the start."""
        return self.levels[0].closed
