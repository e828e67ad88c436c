"""When entries are due: a coarse wheel of buckets by time, and a heap of those that are nearly due.

Law: an entry costs one list slot until its bucket comes up; a removed entry stays as a husk without its value and is cleared out when
husks outnumber the living.  No timer, no thread, no clock: time is a parameter.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Any, Protocol

SPOKES = 128
"""Buckets that a cache's own time to live is divided into."""
HUSKS_TOLERATED = 64


class Due(Protocol):
    """What the wheel needs of an entry."""

    dead: Any
    """When it is due; a number, or anything that compares with the timer's values."""
    key: Any

    def is_gone(self) -> bool: ...


class Wheel:
    """Entries by the time they are due.

    Args:
        step: length of a bucket, in the timer's unit.
    """

    __slots__ = ("_buckets", "_entries", "_heap", "_horizon", "_serial", "_step", "_ticks", "wake")

    def __init__(self, step: float) -> None:
        self._step = step
        self._buckets: dict[int, list[Due]] = {}
        self._ticks: list[int] = []
        self._heap: list[tuple[Any, int, Due]] = []
        self._serial = count()
        self._entries = 0
        self._horizon = -(2**63)
        """Buckets up to this one have been taken apart into the heap."""
        self.wake: Any = None
        """Nothing is due before this time; None where nothing is due at all."""

    def empty(self) -> Wheel:
        """Another with the same step."""
        return Wheel(self._step)

    def add(self, entry: Due, living: int | None = None) -> None:
        """Take an entry in.  Its `dead` must not change afterwards.

        Args:
            living: entries that are not husks.  Given, husks are cleared out if they outnumber those: O(1) per entry, amortised.
        """
        if living is not None and self._entries > 2 * living + HUSKS_TOLERATED:
            self._tidy()
        dead = entry.dead
        try:
            tick = int(dead // self._step)
        except (TypeError, ValueError, OverflowError):  # dates, infinity
            tick = None  # type: ignore[assignment]
        if tick is None or tick <= self._horizon:
            heapq.heappush(self._heap, (dead, next(self._serial), entry))
            if self.wake is None or dead < self.wake:
                self.wake = dead
        else:
            bucket = self._buckets.get(tick)
            if bucket is None:
                bucket = self._buckets[tick] = []
                heapq.heappush(self._ticks, tick)
                if self.wake is None or tick * self._step < self.wake:
                    self.wake = tick * self._step
            bucket.append(entry)
        self._entries += 1

    def due(self, now: Any, most: int | None = None) -> Iterator[Due]:
        """Take out what is due, the earliest first.  Stops after *most*."""
        heap, left = self._heap, most
        while True:
            while self._ticks and not self._is_before(now, self._ticks[0]):
                self._horizon = heapq.heappop(self._ticks)
                for entry in self._buckets.pop(self._horizon, ()):
                    if entry.is_gone():
                        self._entries -= 1
                    else:
                        heapq.heappush(heap, (entry.dead, next(self._serial), entry))
            if not heap or now < heap[0][0] or left == 0:
                break
            entry = heapq.heappop(heap)[2]
            self._entries -= 1
            if not entry.is_gone():
                if left is not None:
                    left -= 1
                yield entry
        self._rest()

    def _is_before(self, now: Any, tick: int) -> bool:
        return bool(now < tick * self._step)

    def _rest(self) -> None:
        first = self._heap[0][0] if self._heap else None
        if self._ticks and (first is None or self._ticks[0] * self._step < first):
            first = self._ticks[0] * self._step
        self.wake = first

    def _tidy(self) -> None:
        entries = [entry for bucket in self._buckets.values() for entry in bucket if not entry.is_gone()]
        entries += [entry for _, _, entry in self._heap if not entry.is_gone()]
        self._buckets, self._ticks, self._heap, self._entries, self.wake = {}, [], [], 0, None
        for entry in entries:
            self.add(entry)
