"""Requests and levels over time, in bounded memory: fine for the last minutes, coarse for the days before.

Law: a reading of level *k* is the mean of two of level *k* - 1, of counts and levels alike, so that a line through fine readings is
the line through coarse ones.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

ROWS = 128
"""Readings kept of each level: the finest one that reaches back far enough has 64 to 128 of a window (a regression on more would
cost more and tell little more: the noise that matters is slow)."""
LEVELS = 9
"""At a reading each 10 s this reaches back 128 × 2⁸ × 10 s: nearly four days."""
CHANNELS = ("heap", "native", "rss", "fds", "threads", "tasks", "children")


class Reading(NamedTuple):
    """Counts and levels at one moment, or their means over several."""

    time_s: float
    counts: array[float]
    values: tuple[float | None, ...]
    """In the order of `CHANNELS`."""


class History:
    """What `Reading`s there were.

    Args:
        levels: each doubles how far back it reaches, and takes at most 0.21 MiB with 200 routes, 0.03 MiB with 30.
    """

    def __init__(self, levels: int = LEVELS) -> None:
        self._levels: list[list[Reading]] = [[] for _ in range(levels)]
        self._halves: list[Reading | None] = [None] * levels
        self.readings = 0

    def add(self, reading: Reading) -> None:
        """Take a reading; time increases."""
        self.readings += 1
        for level, rows in enumerate(self._levels):
            rows.append(reading)
            if len(rows) > ROWS:
                del rows[0]
            half = self._halves[level]
            if half is None:
                self._halves[level] = reading
                return
            self._halves[level] = None
            reading = _mean(half, reading)

    def since(self, time_s: float) -> list[Reading]:
        """The readings from *time_s* on, of the finest level that reaches back so far; else of the one that reaches furthest."""
        best: list[Reading] = []
        for rows in self._levels:
            if not rows or (best and rows[0].time_s >= best[0].time_s):
                break
            best = rows
            if rows[0].time_s <= time_s:
                break
        return [row for row in best if row.time_s >= time_s]

    def newest(self, back_s: float) -> tuple[Reading, Reading] | None:
        """The newest reading, and one about *back_s* before it (the one before it where they are rarer)."""
        rows = self._levels[0]
        if len(rows) < 2:
            return None
        last = rows[-1]
        for row in reversed(rows[:-1]):
            if last.time_s - row.time_s >= back_s:
                return row, last
        return rows[0], last


def _mean(first: Reading, second: Reading) -> Reading:
    counts = array("d", second.counts)
    for place in range(len(counts)):  # a route that came later had none before
        before = first.counts[place] if place < len(first.counts) else 0.0
        counts[place] = (before + counts[place]) / 2
    values = tuple(
        after if before is None else before if after is None else (before + after) / 2
        for before, after in zip(first.values, second.values, strict=True)
    )
    return Reading((first.time_s + second.time_s) / 2, counts, values)
