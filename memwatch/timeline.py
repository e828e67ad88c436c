"""The time of one watch: seconds since its first sample, and a wall clock on which samples stay in order.

Law: what the detector calculates with follows the monotonic clock alone; people read the wall clock of now, even if it was set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from memwatch.model import Verdict

SET_FROM_S = 60.0
"""A wall clock that moved by more than this, and by more than two intervals, was set, or the machine slept; less is slewing."""


class Clock(Protocol):
    """Time as a parameter; `memwatch.testing.FakeClock` is another one."""

    def time(self) -> float:
        """Unix time."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


class Timeline:
    """Time since the first call of `now`.

    Args:
        interval_s: between samples.
        moved: told by how many seconds the wall clock has jumped.
    """

    def __init__(self, clock: Clock, interval_s: float, moved: Callable[[float], None]) -> None:
        self._clock = clock
        self._tolerated_s = max(SET_FROM_S, 2 * interval_s)
        self._moved = moved
        self._began_s: float | None = None
        """Monotonic."""
        self._first_wall_s = 0.0
        self.anchor_s = 0.0
        """The Unix time, as the wall clock counts now, at which uptime is 0."""

    def uptime_s(self) -> float:
        """Seconds since the first sample; 0 before it."""
        return 0.0 if self._began_s is None else self._clock.monotonic() - self._began_s

    def now(self) -> float:
        """Unix time that follows the monotonic clock, so that samples stay in order when the wall clock is set."""
        wall_s, monotonic_s = self._clock.time(), self._clock.monotonic()
        if self._began_s is None:
            self._began_s = monotonic_s
            self._first_wall_s = self.anchor_s = wall_s
        now_s = self.anchor_s + (monotonic_s - self._began_s)
        moved_s = wall_s - now_s
        if abs(moved_s) <= self._tolerated_s:
            return now_s
        self.anchor_s += moved_s
        self._moved(moved_s)
        return wall_s

    def steady(self, uptime_s: float) -> float:
        """The detector's time of a sample: the first wall time plus monotonic seconds."""
        return self._first_wall_s + uptime_s

    def on_wall_clock(self, verdict: Verdict) -> Verdict:
        """The detector's verdict with its times as people read them."""
        moved_s = self.anchor_s - self._first_wall_s
        return verdict if verdict.since is None or not moved_s else replace(verdict, since=verdict.since + moved_s)
