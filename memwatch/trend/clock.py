"""From the time stamps people give to seconds that can be calculated with.

Law: elapsed seconds never run backwards and hold no suspend: what the machine slept is cut out.
"""

from __future__ import annotations

from math import isfinite

SUSPEND_INTERVALS = 20.0
"""A silence of more intervals than this is a suspend (or a stopped watcher), not a sample that came late: cut out."""

BACKWARDS_PATIENCE = 3
"""Samples in a row from the past, in order among themselves, after which the clock is taken to have been set back."""


class Clock:
    """Seconds since the first sample."""

    __slots__ = ("_backwards", "_interval", "_last", "_past", "elapsed")

    def __init__(self, interval_s: float) -> None:
        self._interval = interval_s
        self._last: float | None = None
        self._past = 0.0
        self._backwards = 0
        self.elapsed = 0.0

    def advance(self, time_s: float) -> bool:
        """Move to *time_s*; return whether the sample may be used (not from the past, not NaN)."""
        if not isfinite(time_s):
            return False
        if self._last is None:
            self._last = time_s
            return True
        step = time_s - self._last
        if step <= 0.0:
            self._backwards = self._backwards + 1 if self._backwards and time_s > self._past else 1
            self._past = time_s
            if self._backwards < BACKWARDS_PATIENCE:
                return False
            step = self._interval
        elif step > SUSPEND_INTERVALS * self._interval:
            step = self._interval
        self._backwards = 0
        self._last = time_s
        self.elapsed += step
        return True
