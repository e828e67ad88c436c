"""When to leave a store alone that does not answer, and when to try it again.

Law: after `failures` in a row nobody asks, but for one who tries, at growing intervals.  Pure: the time is a parameter.
"""

from __future__ import annotations

from threading import Lock
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed: ask.  Open: do not.  Half open: one asks.

    Args:
        failures: in a row, until it opens.
        open_s: how long nobody asks then; doubled after each attempt that fails, up to *most_s*.
    """

    def __init__(self, failures: int = 3, open_s: float = 0.5, most_s: float = 5.0) -> None:
        if failures < 1 or not 0 < open_s <= most_s:
            raise ValueError(
                f"Breaker(failures={failures!r}, open_s={open_s!r}, most_s={most_s!r}): at least 1 failure, 0 < open_s <= most_s"
            )
        self._failures, self._open_s, self._most_s = failures, open_s, most_s
        self._lock = Lock()
        self._in_a_row = 0
        self._wait_s = open_s
        self._until_s: float | None = None
        """Open until then; None while closed."""
        self._tries = False

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock."""
        self._lock = Lock()

    def state(self, now_s: float) -> State:
        """What it says now."""
        if self._until_s is None:
            return "closed"
        return "half-open" if now_s >= self._until_s else "open"

    def allows(self, now_s: float) -> bool:
        """Whether to ask now.  Who is told yes reports with `succeeded` or `failed`."""
        if self._until_s is None:
            return True
        with self._lock:
            if self._until_s is None:
                return True
            if now_s < self._until_s:
                return False
            # One tries; if it never reports, another may when as much time has passed.
            self._until_s = now_s + self._wait_s
            self._tries = True
            return True

    def succeeded(self) -> bool:
        """The store answered; whether it had been given up."""
        if self._in_a_row == 0 and self._until_s is None:
            return False
        with self._lock:
            was_open, self._until_s = self._until_s is not None, None
            self._in_a_row, self._wait_s, self._tries = 0, self._open_s, False
            return was_open

    def failed(self, now_s: float) -> bool:
        """The store did not answer; whether it is given up with this."""
        with self._lock:
            self._in_a_row += 1
            if self._tries:
                self._wait_s = min(self._most_s, 2 * self._wait_s)
                self._until_s = now_s + self._wait_s
                return False
            if self._until_s is None and self._in_a_row >= self._failures:
                self._until_s = now_s + self._wait_s
                return True
            return False
