"""What of a verdict is told, and when: as which kind, with what alert, on what occasion.

Law: no clock, no lock, no plug: verdicts in, events and occasions out.
"""

from __future__ import annotations

import math
from dataclasses import replace

from memwatch.audience import Occasion
from memwatch.model import CHANNEL_BY_NAME, Event, Kind, Verdict
from memwatch.relief import ALERT_AGAIN_S

EXHAUSTION_ALERT_S = 3600.0
"""Alert when the memory limit is projected to be reached within this time, whatever the verdict calls the growth."""
KIND_SAMPLES = 24
"""A leak is said to be of another kind when it has looked like that for so many samples in a row (guess)."""


class News:
    """Of one watch.  Threads: the owner serialises calls."""

    def __init__(self) -> None:
        self.verdict = Verdict("rss", "warming-up", reason="no sample was taken yet")
        """As it was told last."""
        self.kind_found: Kind | None = None
        """The kind that evidence has shown the leak to be."""
        self._kind_samples = 0
        self._told_growth = 0.0
        self._exhaustion_told = False
        self._fast_told = False
        self._fast_told_s = -math.inf

    def follow(self, found: Verdict, now_s: float, *, growth_limit: float, looking: bool) -> tuple[list[Event], list[Occasion]]:
        """Take the detector's verdict of this tick; `verdict` is then what is told of it.

        Args:
            now_s: Unix time, for the events.
            growth_limit: bytes per second from which on growth is an alert.
            looking: whether evidence about the growth is on its way.

        Returns:
            Events for the record, and the occasions on which the sinks are told.
        """
        before, self.verdict = self.verdict, self._as_told(found, looking)
        after = self.verdict
        events: list[Event] = []
        occasions: list[Occasion] = []
        if after.state != before.state or (after.state == "leaking" and after.kind != before.kind):
            events.append(Event(now_s, "verdict", after.to_dict()))
            if after.state == "leaking" and before.state != "leaking":
                occasions.append("leak")
                self._told_growth = after.grown
            elif before.state == "leaking" and after.state != "leaking":
                occasions.append("over")
        elif after.state == "leaking" and after.grown >= 2 * self._told_growth > 0 and not looking:
            occasions.append("doubled")
            self._told_growth = after.grown
        left_s = after.exhausted_in_s
        if left_s is not None and left_s < EXHAUSTION_ALERT_S and after.state in ("growing", "leaking"):
            if not self._exhaustion_told:
                self._exhaustion_told = True
                details = {"alert": "exhaustion", "exhausted_in_s": left_s, "channel": after.channel}
                events.append(Event(now_s, "alert", details))
                occasions.append("exhaustion")
        elif left_s is None or left_s > 2 * EXHAUSTION_ALERT_S:
            self._exhaustion_told = False
        # A leak carries its severity; this is for what grows as fast without being called one (yet).
        bytes_grow = CHANNEL_BY_NAME[after.channel].unit == "bytes" and after.state == "growing"
        fast = bytes_grow and (after.rate_low or 0.0) >= growth_limit and not looking
        if fast and not self._fast_told and now_s - self._fast_told_s >= ALERT_AGAIN_S:
            self._fast_told_s = now_s
            events.append(Event(now_s, "alert", {"alert": "growth", "rate": after.rate, "channel": after.channel}))
            occasions.append("growth")
        self._fast_told = fast or (self._fast_told and bytes_grow)
        return events, occasions

    def _as_told(self, found: Verdict, looking: bool) -> Verdict:
        """A leak is told only when the evidence is in, because that may show a cache that fills up."""
        told = self.verdict
        if found.state != "leaking":
            self.kind_found = None
            return found
        if self.kind_found is not None:
            found = replace(found, kind=self.kind_found)
        elif found.kind != told.kind and told.state == "leaking" and told.kind != "none":
            # Where two allocators grow, now the one is ahead and now the other: what was said stands until it has been so for long.
            self._kind_samples += 1
            if self._kind_samples < KIND_SAMPLES:
                return replace(found, kind=told.kind)
        self._kind_samples = 0
        if told.state == "leaking" or not looking:
            return found
        return replace(found, state="growing", severity=None, reason=f"{found.reason}; what grows is being looked at")
