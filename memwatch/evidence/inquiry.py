"""When evidence is looked for: by the sampler always, by a suspicion while something grows, in the heap when somebody asks.

Law: nothing here waits: what takes time happens in a forked child, and is read at later ticks.  Each collector that cannot work
says why in its Evidence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memwatch.evidence import census, sites, sources
from memwatch.evidence.child import Child, refusal
from memwatch.evidence.findings import Conclusion, Moment
from memwatch.evidence.suspicion import Suspicion
from memwatch.evidence.told import counts_of, levels_of
from memwatch.model import Evidence

CENSUS_DUTY = 0.01
"""Part of one core that censuses may take while a suspicion comes and goes."""
FIRST_LEVELS_S = 60.0
LEVELS_EVERY_S = 600.0
"""Levels by site are put into the record this often, so that two releases can be compared."""


class Inquiry:
    """The evidence of one watch.

    Args:
        mode: the setting `evidence`.
        sample_bytes: bytes between two samples, on average; None: as few as cost next to nothing.
        clock: monotonic seconds.
        give_back: hands free memory back to the system; returns the resident bytes that went, or None.
        say: told once of what was asked for and does not work.

    Threads: one at a time; the watcher serialises.
    """

    def __init__(
        self,
        mode: str,
        *,
        sample_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        give_back: Callable[[], float | None] = lambda: None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.mode = mode
        self.clock = clock
        self.give_back = give_back
        self.sampling: sources.Sampling | None = None
        self.declined: str | None = None
        """Why there is no sampler."""
        self.levels = sites.Levels()
        self._sample_bytes = sample_bytes
        self._say = say
        self._suspicion: Suspicion | None = None
        self._next_census_s = -math.inf
        self._levels_due_s = math.inf
        self._demanded = False
        self._around: Child | None = None
        """Counts what is alive because somebody wants to know, while there is no suspicion."""
        self._levels_found: tuple[Evidence, ...] | None = None

    # -- life ------------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the sampler, where it is wanted and works.  Never raises."""
        if self.mode not in ("auto", "sampling") or self.sampling is not None:
            return
        try:
            self.sampling = sources.Sampling(self._sample_bytes)
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            self.declined = str(error)
            if self.mode == "sampling":
                self._say(f"allocations are not sampled: {error}")
        else:
            self._levels_due_s = self.clock() + FIRST_LEVELS_S

    def end(self) -> None:
        """Stop everything and free what was kept."""
        self._close()
        self._demanded = False
        if self._around is not None:
            self._around.kill()
            self._around = None
        self.levels.forget()
        if self.sampling is not None:
            self.sampling.stop()
            self.sampling = None

    def after_fork(self) -> None:
        """In a forked child of the program: the inquiry under way is the parent's; the sampler goes on here."""
        suspicion, self._suspicion = self._suspicion, None
        if suspicion is not None:
            suspicion.close()
        self.levels.forget()
        self._next_census_s = -math.inf
        self._demanded = False
        self._around = None
        if self.sampling is not None:
            self.sampling.stay_awake()  # until a thread of this process takes turns

    @property
    def looking(self) -> bool:
        """Whether a child is at work, so that `poll` is to be called soon."""
        return self._around is not None or (self._suspicion is not None and self._suspicion.child is not None)

    @property
    def demanded(self) -> bool:
        """Whether what `demand` asked for is not there yet."""
        return self._demanded

    def demand(self, rss_bytes: float | None, limit_bytes: float | None) -> str | None:
        """Look at the next tick, whatever the verdict: what grows where there is a suspicion, else what is alive.

        Returns:
            Why it cannot be done; None if it will be.
        """
        if self.mode == "off":
            return "evidence is off (MEMWATCH_EVIDENCE)"
        why_not = refusal(rss_bytes, limit_bytes)
        if why_not is None or self._suspicion is not None:
            self._demanded = True
            return None
        return why_not

    @property
    def pending(self) -> bool:
        """Whether a leak is being looked at and there is no conclusion yet."""
        return self._suspicion is not None and self._suspicion.pending

    @property
    def own_children(self) -> int:
        """Children of memwatch's own, which are not the program's."""
        return int(self.looking)

    @property
    def own_descriptors(self) -> int:
        """Descriptors of memwatch's own: the pipe of a child."""
        return int(self.looking)

    # -- at every tick ---------------------------------------------------------------------------------------------------------

    def observe(self, moment: Moment) -> Conclusion | None:
        """Take note of a tick; returns a conclusion when there is one.

        Cost: 0.1 ms while all is well; a fork and a few milliseconds when a suspicion begins and when it is confirmed
        (bench/pause.py).
        """
        if self.mode == "off":
            return None
        if self.sampling is not None:
            self.sampling.adapt(moment.now_s)
            if not self.sampling.maintain():
                self.levels.forget()
                if self._suspicion is not None:
                    self._suspicion.lost_samples()
            self.levels.tick(self.sampling, moment.now_s, moment.readings)
        if moment.verdict.state not in ("growing", "leaking"):
            self._close()
            self._look_around()
            return None
        if self._around is not None:  # the suspicion that has begun answers it
            self._around.kill()
            self._around = None
        if self._suspicion is None:
            if self.sampling is not None:
                self.sampling.stay_awake()
            self._suspicion = Suspicion(self, moment)
        conclusion = self._suspicion.observe(moment, demanded=self._demanded)
        if conclusion is not None:
            self._demanded = False
        return conclusion

    def take_turns(self) -> float:
        """Between ticks, without a suspicion: let a sampler that need not look all the time rest; seconds until the next turn."""
        sampling = self.sampling
        return math.inf if sampling is None or self._suspicion is not None else sampling.take_turns(self.clock())

    def poll(self) -> bool:
        """Read what a child has told by now; True when it has ended, and the next tick can conclude."""
        if self._around is not None:
            return self._around.poll()
        return self._suspicion is not None and self._suspicion.poll()

    def _look_around(self) -> None:
        """Without a suspicion: what is alive, if somebody asked."""
        if self._demanded and self._around is None:
            try:
                self._around = Child(census.Task(list, None, False), niceness=0, clock=self.clock)
            except (OSError, RuntimeError) as error:
                self._found_alive([], f"the heap was not looked at: no child could be forked ({error})")
        elif self._around is not None and self._around.poll():
            child, self._around = self._around, None
            self._found_alive(child.lines, child.died)

    def _found_alive(self, lines: Sequence[Mapping[str, Any]], note: str | None) -> None:
        counts = counts_of(lines)
        found = [levels_of(counts)] if counts else [Evidence("types", (), None, note or "nothing was counted")]
        if self.sampling is not None:
            found.append(sites.levels_recorded(self.sampling))
        self._levels_found = tuple(found)
        self._demanded = False

    def give_up(self) -> None:
        """There is no time for the evidence that is being taken: what was found without it stands."""
        if self._suspicion is not None:
            self._suspicion.give_up()

    def levels_due(self, now_s: float) -> tuple[Evidence, ...] | None:
        """Levels for the record, when it is time for them or somebody asked."""
        if self._levels_found is not None:
            found, self._levels_found = self._levels_found, None
            return found
        if self.sampling is None or now_s < self._levels_due_s:
            return None
        self._levels_due_s = now_s + LEVELS_EVERY_S
        return (sites.levels_recorded(self.sampling),)

    def may_take_census(self) -> bool:
        """Whether a census is cheap enough now, after those before."""
        return self.clock() >= self._next_census_s

    def census_took(self, seconds: float) -> None:
        """A census has taken so long: the next baseline waits in proportion."""
        self._next_census_s = self.clock() + seconds / CENSUS_DUTY

    def _close(self) -> None:
        suspicion, self._suspicion = self._suspicion, None
        if suspicion is not None:
            suspicion.close()
