"""How often a reading is taken: its own measured cost decides.

Law: a reading that costs at most `FREE_BELOW_S` is taken at every tick; one up to `MODEST_S` at least once in `MODEST_EVERY_S`; a
dearer one so rarely that it takes at most its `duty` of wall time.  None is taken blindly: its cost is predicted from a quantity
that is cheap to know.  No prediction puts a reading off longer than `FORECAST_WAIT_S`: only a measurement may do that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from memwatch.vitals.process import is_shortage

Read = Callable[[], Mapping[str, float]]
OnError = Callable[[str, Exception], None]

FREE_BELOW_S = 0.0002  # the contract's longest hold of the GIL; below it a reading disturbs nobody
# At the default interval of 10 s this is what the duty allows anyway.  Only who samples faster than that pays more, and at most
# 0.1 % of one core per source: pymalloc's pools cost 0.2 to 0.7 ms at 20 to 64 MiB (the walk, and reading the table that it
# prints), and they tell what kind of memory leaks in the first half minute.
MODEST_S = 0.001
MODEST_EVERY_S = 1.0
DUTY = 1e-4  # 6 ms once a minute: 0.01 % of one core, and invisible below the 99.9th percentile of a service's latency
USER_DUTY = 1e-3  # for sources the user added: asked for, so they may cost more
# Where a quantity grows fast enough, the predicted cost rises faster than time earns it: without a bound it is never read again.
FORECAST_WAIT_S = 300.0
LONGEST_WAIT_S = 3600.0  # after any measurement: one that was disturbed (a machine suspended meanwhile) is not believed for ever


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


class _Taken(NamedTuple):
    """One reading that was taken."""

    at_s: float
    cost_s: float
    size: float | None


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
        self._taken: dict[str, _Taken] = {}

    def read(self, on_error: OnError | None = None, *, complete: bool = False) -> dict[str, float]:
        """Take every reading that is due.

        Args:
            on_error: called once with the name and the exception of a source that raised; that source is disabled.  A passing
                shortage (of descriptors, of memory) is not the source's fault: its reading is absent, and tried again.
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
                if is_shortage(error):
                    continue  # absent now, and tried again at the next tick
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
        last = self._taken.get(name)
        if last is not None and now - last.at_s < pace.rest_s:
            return False
        expected = self._expected(name, pace)
        if expected > pace.refuse_above_s:
            return False
        if expected <= FREE_BELOW_S:
            return True
        if expected <= MODEST_S:
            wait_s = min(expected / pace.duty, MODEST_EVERY_S)
        else:
            measured_s = 0.0 if last is None else min(last.cost_s / pace.duty, LONGEST_WAIT_S)
            wait_s = min(expected / pace.duty, max(FORECAST_WAIT_S, measured_s))
        return now - (self._started if last is None else last.at_s) >= wait_s

    def _expected(self, name: str, pace: Pace) -> float:
        """What a reading would cost now: what the last one did, and the difference in size.

        A small reading costs little but its fixed part, which says nothing about a unit: charged to each unit, it would make the
        predicted cost of a growing quantity rise faster than time earns it.  So the units that were added since count as guessed,
        or as the last reading bounds them from above; only a dear reading, which is mostly units, may say that they cost more.
        """
        size = None if pace.size is None else pace.size()
        last = self._taken.get(name)
        if last is None:
            return 0.0 if size is None else size * pace.guess_s
        if size is None:
            return last.cost_s
        if not last.size:
            return max(last.cost_s, size * pace.guess_s)
        if size <= last.size:
            return last.cost_s * size / last.size
        per_unit = last.cost_s / last.size
        if last.cost_s <= FREE_BELOW_S:
            per_unit = min(per_unit, pace.guess_s)
        return last.cost_s + (size - last.size) * per_unit

    def _note(self, name: str, cost_s: float) -> None:
        self.cost_s[name] = cost_s
        pace = self._paces.get(name, ALWAYS)
        if pace is not ALWAYS:
            self._taken[name] = _Taken(self._clock(), cost_s, None if pace.size is None else pace.size())


def fine_cost_clock() -> Callable[[], float]:
    """CPU time of the thread where that is measured finely (Windows counts it in steps of 16 ms), else wall time."""
    try:
        fine = time.get_clock_info("thread_time").resolution <= 1e-6
    except ValueError:
        fine = False
    return time.thread_time if fine else time.perf_counter
