"""When keys are due: a coarse wheel of buckets by time, and a heap of those that are nearly due.

Law: a key costs one list slot per write until its bucket comes up.  Nothing is taken out when an entry is removed or written again:
what a key's entry says of its time decides when the key comes up; leftovers are cleared out when they outnumber the living twice.
No timer, no thread, no clock: time is a parameter.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

SPOKES = 128
"""Buckets that a cache's own time to live is divided into."""
LEFTOVERS_TOLERATED = 64
NEVER = math.inf


class Wheel:
    """Keys by the time they are due.

    Args:
        step: length of a bucket, in the timer's unit.
        entries: key to what has the attribute `dead`, when it is due: a number, or anything that compares with the timer's values.
    """

    __slots__ = (
        "_buckets",
        "_entries",
        "_heap",
        "_horizon",
        "_serial",
        "_step",
        "_ticks",
        "begins",
        "ends",
        "latest",
        "room",
        "wake",
    )

    def __init__(self, step: float, entries: Mapping[Any, Any]) -> None:
        self._step = step
        self._entries = entries
        self._buckets: dict[int, list[Any]] = {}
        self._ticks: list[int] = []
        self._heap: list[tuple[Any, int, Any]] = []
        self._serial = count()
        self._horizon = -(2**63)
        """Buckets up to this one have been taken apart into the heap."""
        self.latest: list[Any] = []
        """The bucket of what is due …"""
        self.begins: float = NEVER
        """… from here on …"""
        self.ends: float = NEVER
        """… and before this."""
        self.room = LEFTOVERS_TOLERATED
        """Keys to take in before leftovers are counted again."""
        self.wake: Any = NEVER
        """Nothing is due before this time."""

    def again(self, entries: Mapping[Any, Any]) -> Wheel:
        """Another with the same step."""
        return Wheel(self._step, entries)

    def add(self, key: Any, dead: Any) -> None:
        """Take a key in.  `Engine.__setitem__` appends to `latest` by itself where that is its bucket, and there is room."""
        if not self.room:
            self._tidy()
        self.room -= 1
        try:
            tick = int(dead // self._step)
        except (TypeError, ValueError, OverflowError):  # dates, infinity
            tick = self._horizon
        if tick <= self._horizon:
            heapq.heappush(self._heap, (dead, next(self._serial), key))
            if self.wake == NEVER or dead < self.wake:
                self.wake = dead
            return
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = []
            heapq.heappush(self._ticks, tick)
            if self.wake == NEVER or tick * self._step < self.wake:
                self.wake = tick * self._step
        bucket.append(key)
        self.latest, self.begins, self.ends = bucket, tick * self._step, (tick + 1) * self._step

    def due(self, now: Any, most: int | None = None) -> Iterator[Any]:
        """Keys whose entries are due, the earliest first; whoever takes one removes its entry.  Stops after *most*."""
        heap, left = self._heap, most
        while True:
            while self._ticks and not now < self._ticks[0] * self._step:
                self._horizon = heapq.heappop(self._ticks)
                self.begins = self.ends = NEVER
                for key in self._buckets.pop(self._horizon, ()):
                    dead = self._dead(key)
                    if dead != NEVER:
                        heapq.heappush(heap, (dead, next(self._serial), key))
            if not heap or now < heap[0][0] or left == 0:
                break
            key = heapq.heappop(heap)[2]
            dead = self._dead(key)
            if dead != NEVER and not now < dead:
                if left is not None:
                    left -= 1
                yield key
        self.wake = heap[0][0] if heap else NEVER
        if self._ticks and (not heap or self._ticks[0] * self._step < heap[0][0]):
            self.wake = self._ticks[0] * self._step

    def _dead(self, key: Any) -> Any:
        entry = self._entries.get(key)
        return NEVER if entry is None or entry.expires is None else entry.dead

    def _tidy(self) -> None:
        """Clear leftovers out if they outnumber the living twice; amortised O(1) per write."""
        living = len(self._entries)
        if len(self._heap) + sum(map(len, self._buckets.values())) > 3 * living + LEFTOVERS_TOLERATED:
            self._sort_anew()
            self._heap[:] = [item for item in self._heap if self._dead(item[2]) == item[0]]
            heapq.heapify(self._heap)
        self.room = max(LEFTOVERS_TOLERATED, living // 2)

    def _sort_anew(self) -> None:
        """The buckets, from what is living: a third of the time of looking up every key that is in them, most of which are gone."""
        buckets: dict[int, list[Any]] = {}
        bucket: list[Any] = []
        begins = ends = NEVER
        for key, entry in self._entries.items() if self._buckets else ():
            if entry.expires is None:
                continue
            dead = entry.dead
            if not begins <= dead < ends:
                tick = int(dead // self._step) if dead != NEVER else self._horizon
                begins, ends = tick * self._step, (tick + 1) * self._step
                bucket = buckets.setdefault(tick, []) if tick > self._horizon else []  # else the heap has it
            bucket.append(key)
        self._buckets, self._ticks = buckets, sorted(buckets)
        self.begins = self.ends = NEVER
