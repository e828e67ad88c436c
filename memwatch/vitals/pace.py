"""How often a reading is taken: its own measured cost decides.

Law: a reading that costs at most `FREE_BELOW_S` is taken at every tick; a dearer one so rarely that it takes at most its `duty` of
wall time; none is taken blindly: before the first one its cost is predicted from a quantity that is cheap to know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Read = Callable[[], Mapping[str, float]]
OnError = Callable[[str, Exception], None]

FREE_BELOW_S = 0.0002  # the contract's longest hold of the GIL; below it a reading disturbs nobody
DUTY = 1e-4  # 6 ms once a minute: 0.01 % of one core, and invisible below the 99.9th percentile of a service's latency
USER_DUTY = 1e-3  # for sources the user added: asked for, so they may cost more


class Pace(NamedTuple):
    """The rule for one source.  `ALWAYS` is for those whose cost does not depend on the process."""

    duty: float = math.inf
    rest_s: float = 0.0
    """Shortest time between two readings, whatever they cost."""
    refuse_above_s: float = math.inf
    """Never taken on a tick when it is expected to cost more; only on demand."""
    size: Callable[[], float | None] | None = None
    """The quantity that the cost grows with, in any unit; None while it is not known."""
    guess_s: float = 0.0
    """Seconds per unit of `size` before the first measurement (bench/tick.py); on the high side."""


ALWAYS = Pace()


class Timetable:
    """The sources of one reader, each taken when its pace allows.

    Args:
        sources: name to callable.  A callable returns the channels it read now; an empty mapping if there was nothing to read.
        paces: name to pace, for those that are not `ALWAYS`.
        clock: monotonic seconds; decides when.
        cost_clock: seconds that measure what a reading costs; CPU time of the thread by default, so that neither waiting for the
            GIL nor being descheduled counts.
        passes: exceptions that say something about the whole process, and are the caller's to handle.

    Threads: one at a time; the caller serialises.
    """

    def __init__(
        self,
        sources: Mapping[str, Read],
        paces: Mapping[str, Pace],
        *,
        clock: Callable[[], float],
        cost_clock: Callable[[], float] | None = None,
        passes: tuple[type[Exception], ...] = (),
    ) -> None:
        self.sources = dict(sources)
        self.failed: dict[str, str] = {}
        """Source name to why it was disabled.  Text, because an exception would keep the frames it went through alive."""
        self.cost_s: dict[str, float] = {}
        """Source name to what its last reading cost."""
        self.latest: dict[str, float] = {}
        """Channel to its last value, however old."""
        self._paces = dict(paces)
        self._clock = clock
        self._cost_clock = cost_clock or fine_cost_clock()
        self._passes = passes
        self.restart()

    def restart(self) -> None:
        """Forget everything measured: this is another process now, or another life of it."""
        self.failed.clear()
        self.cost_s.clear()
        self.latest.clear()
        self._started = self._clock()
        self._taken: dict[str, float] = {}
        self._per_unit: dict[str, float] = {}

    def read(self, on_error: OnError | None = None, *, complete: bool = False) -> dict[str, float]:
        """Take every reading that is due.

        Args:
            on_error: called once with the name and the exception of a source that raised; that source is disabled.
            complete: take all of them, due or not, except those that their pace refuses at their expected cost.

        Returns:
            The channels read now.
        """
        values: dict[str, float] = {}
        for name, source in self.sources.items():
            if name in self.failed or not (self._allowed(name) if complete else self._due(name)):
                continue
            before = self._cost_clock()
            try:
                read = {channel: float(value) for channel, value in source().items()}
            except self._passes:
                raise
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {error}"
                if on_error is not None:
                    on_error(name, error)
                continue
            self._note(name, self._cost_clock() - before)
            values.update(read)
            self.latest.update(read)
        return values

    def _allowed(self, name: str) -> bool:
        pace = self._paces.get(name, ALWAYS)
        return pace is ALWAYS or self._expected(name, pace) <= pace.refuse_above_s

    def _due(self, name: str) -> bool:
        pace = self._paces.get(name, ALWAYS)
        if pace is ALWAYS:
            return True
        now = self._clock()
        taken = self._taken.get(name)
        if taken is not None and now - taken < pace.rest_s:
            return False
        expected = self._expected(name, pace)
        if expected > pace.refuse_above_s:
            return False
        if expected <= FREE_BELOW_S:
            return True
        return now - (self._started if taken is None else taken) >= expected / pace.duty

    def _expected(self, name: str, pace: Pace) -> float:
        size = None if pace.size is None else pace.size()
        if size is None:
            return self.cost_s.get(name, 0.0)
        return size * self._per_unit.get(name, pace.guess_s)

    def _note(self, name: str, cost_s: float) -> None:
        self.cost_s[name] = cost_s
        pace = self._paces.get(name, ALWAYS)
        if pace is ALWAYS:
            return
        self._taken[name] = self._clock()
        size = None if pace.size is None else pace.size()
        if size:
            self._per_unit[name] = cost_s / size


def fine_cost_clock() -> Callable[[], float]:
    """CPU time of the thread where that is measured finely (Windows counts it in steps of 16 ms), else wall time."""
    try:
        fine = time.get_clock_info("thread_time").resolution <= 1e-6
    except ValueError:
        fine = False
    return time.thread_time if fine else time.perf_counter
