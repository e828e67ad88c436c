"""When a worker process that leaks should end, so that its server starts a fresh one.

Law: it only decides and asks; how a worker ends without losing a request is its server's matter (`memwatch.integrations`).
Workers do not go at once: each waits a random part of the jitter.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import memwatch
from memwatch import units
from memwatch.audience import Occasion, say
from memwatch.config import SettingError
from memwatch.model import Report, Sample

REASONS: tuple[Occasion, ...] = ("leak", "doubled", "exhaustion", "growth", "peak")
DEFAULT_REASONS: tuple[Occasion, ...] = ("leak", "exhaustion")
JITTER = "1m"


class Recycler:
    """A sink that asks its worker to end, once, when it leaks or runs out of memory.

    Args:
        leave: asks the server to end this worker when its requests are done; returns why it cannot, or None.  Called on the
            watcher's thread.
        reasons: occasions on which to go, of `REASONS`.  By default a confirmed leak, and memory that runs out within the hour.
        jitter: the worker goes after a random time up to this long, so that not all go at once.
        clock, random_share: for tests; monotonic seconds, and a number from 0 to 1.

    Raises:
        memwatch.config.SettingError: a reason is none, or the jitter is malformed.
    """

    def __init__(
        self,
        leave: Callable[[], str | None],
        *,
        reasons: Iterable[str] = DEFAULT_REASONS,
        jitter: str = JITTER,
        clock: Callable[[], float] = time.monotonic,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        self._leave = leave
        self.reasons = tuple([reasons] if isinstance(reasons, str) else reasons)
        for reason in self.reasons:
            if reason not in REASONS:
                raise SettingError(f"recycle: {reason!r} is not accepted.  Give some of {', '.join(REASONS)}.")
        try:
            self.jitter_s = units.parse_duration(jitter)
        except ValueError as error:
            raise SettingError(f"jitter: {error}") from None
        self._clock = clock
        self._random_share = random_share
        self._due_s: float | None = None
        self._gone = False

    @property
    def due_s(self) -> float | None:
        """Monotonic seconds at which the worker is asked to end; None while there is no reason."""
        return self._due_s

    def told(self, occasion: Occasion, report: Report) -> None:
        """A sink's method: note a reason to go."""
        if occasion == "over" and not self._gone:
            self._due_s = None  # it was not one
        elif occasion in self.reasons and self._due_s is None and not self._gone:
            wait_s = self.jitter_s * self._random_share()
            self._due_s = self._clock() + wait_s
            why = "memory runs out soon" if occasion == "exhaustion" else report.verdict.reason
            what = f"this worker will be recycled in {units.format_duration(wait_s)}: {why}"
            say("%s", what)
            watcher = memwatch.current()
            if watcher is not None:
                watcher.note("note", {"note": what})

    def ticked(self, sample: Sample, report: Report) -> None:
        """A sink's method: go when it is time."""
        if self._due_s is None or self._clock() < self._due_s or self._gone:
            return
        self._gone = True
        why_not = self._leave()
        if why_not is not None:
            say("this worker is not recycled: %s", why_not)


def recycler(leave: Callable[[], str | None], recycle: Any, jitter: str) -> Recycler | None:
    """The recycler that the setting *recycle* asks for: True for the default reasons, some reasons, or False for none."""
    if recycle is False or recycle is None:
        return None
    return Recycler(leave, reasons=DEFAULT_REASONS if recycle is True else recycle, jitter=jitter)
