"""When entries are due: a coarse wheel of buckets by time, and a heap of those that are nearly due.

Law: an entry costs one list slot until its bucket comes up; a removed entry stays as a husk without its value and is cleared out
when husks outnumber the living.  No timer, no thread, no clock: time is a parameter.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from itertools import count
from typing import Any, Protocol

SPOKES = 128
"""Buckets that a cache's own time to live is divided into."""
HUSKS_TOLERATED = 64
NEVER = math.inf


class Due(Protocol):
    """What the wheel needs of an entry."""

    dead: Any
    """When it is due; a number, or anything that compares with the timer's values."""
    key: Any
    cause: Any
    """Not None: the entry was removed, and this is its husk."""


class Wheel:
    """Entries by the time they are due.

    Args:
        step: length of a bucket, in the timer's unit.
    """

    __slots__ = ("_buckets", "_from", "_heap", "_horizon", "_latest", "_room", "_serial", "_step", "_ticks", "_until", "wake")

    def __init__(self, step: float) -> None:
        self._step = step
        self._buckets: dict[int, list[Due]] = {}
        self._ticks: list[int] = []
        self._heap: list[tuple[Any, int, Due]] = []
        self._serial = count()
        self._latest: list[Due] = []
        self._from: float = NEVER
        """The latest bucket is for what is due from here on …"""
        self._until: float = NEVER
        """… and before this."""
        self._room = HUSKS_TOLERATED
        """Entries to take in before husks are counted again."""
        self._horizon = -(2**63)
        """Buckets up to this one have been taken apart into the heap."""
        self.wake: Any = NEVER
        """Nothing is due before this time."""

    def empty(self) -> Wheel:
        """Another with the same step."""
        return Wheel(self._step)

    def add(self, entry: Due, living: int) -> None:
        """Take an entry in.  Its `dead` must not change afterwards.

        Args:
            living: entries that are not husks.
        """
        room = self._room
        if room:
            self._room = room - 1
        else:
            self._tidy(living)
        dead = entry.dead
        if self._from != NEVER and self._from <= dead < self._until:  # most go where the one before went
            self._latest.append(entry)
        else:
            self._place(entry, dead)

    def _place(self, entry: Due, dead: Any) -> None:
        try:
            tick = int(dead // self._step)
        except (TypeError, ValueError, OverflowError):  # dates, infinity
            tick = self._horizon
        if tick <= self._horizon:
            heapq.heappush(self._heap, (dead, next(self._serial), entry))
            if self.wake == NEVER or dead < self.wake:
                self.wake = dead
            return
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = []
            heapq.heappush(self._ticks, tick)
            if self.wake == NEVER or tick * self._step < self.wake:
                self.wake = tick * self._step
        bucket.append(entry)
        self._latest, self._from, self._until = bucket, tick * self._step, (tick + 1) * self._step

    def due(self, now: Any, most: int | None = None) -> Iterator[Due]:
        """Take out what is due, the earliest first.  Stops after *most*."""
        heap, left = self._heap, most
        while True:
            while self._ticks and not now < self._ticks[0] * self._step:
                self._horizon = heapq.heappop(self._ticks)
                self._from = self._until = NEVER
                for entry in self._buckets.pop(self._horizon, ()):
                    if entry.cause is None:
                        heapq.heappush(heap, (entry.dead, next(self._serial), entry))
            if not heap or now < heap[0][0] or left == 0:
                break
            entry = heapq.heappop(heap)[2]
            if entry.cause is None:
                if left is not None:
                    left -= 1
                yield entry
        self.wake = heap[0][0] if heap else NEVER
        if self._ticks and (not heap or self._ticks[0] * self._step < heap[0][0]):
            self.wake = self._ticks[0] * self._step

    def _tidy(self, living: int) -> None:
        """Clear husks out if they outnumber the living; amortised O(1) per entry."""
        if len(self._heap) + sum(map(len, self._buckets.values())) > 2 * living + HUSKS_TOLERATED:
            for bucket in self._buckets.values():
                bucket[:] = [entry for entry in bucket if entry.cause is None]
            self._heap[:] = [item for item in self._heap if item[2].cause is None]
            heapq.heapify(self._heap)
        self._room = max(HUSKS_TOLERATED, living // 2)
