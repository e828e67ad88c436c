"""Giving memory back: what runs when a pressure level is entered, while it lasts, and at every clean-up.

Law: every step is told with the bytes it freed; relief runs once per level and then once per clean-up interval, never in a loop on
RSS; no lock is held meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

from memwatch.caches import registry, relieving
from memwatch.model import Event
from memwatch.pressure import LEVELS, Level, LevelChange, Pressure, PressureGauge, ReliefHooks
from memwatch.units import format_size
from memwatch.vitals import collect_garbage, trim

COLLECT_BUDGET_S = 0.010
COLLECT_COST_S = 0.24e-6
"""Seconds of a full collection per allocator block, measured on containers (0.24 s per million).  The collector holds the GIL
throughout, so the periodic clean-up collects only where that is predicted to stay within the budget; under pressure always."""
TRIM_WORTH_BYTES = 16 * 1024**2
"""The periodic clean-up trims malloc only when the allocators keep at least this much."""
RSS_FOLLOWS_FROM_BYTES = 4 * 1024**2
RSS_FOLLOWS = 0.5
"""Told if RSS fell by less than this part of what the caches freed."""
RSS_STAYS = (
    "RSS cannot follow: {} of the {} that the caches freed stays resident, because small objects leave their arenas shared with "
    "others; new objects use it again"
)
ALERT_AGAIN_S = 300.0
"""A level that is entered again within this time is an event, and no alert."""
QUIET_BYTES = 64 * 1024
"""A periodic clean-up that freed less is no news: there are 288 a day."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What relief needs to know of this tick."""

    time_s: float
    """Unix time, for the events."""
    uptime_s: float
    rss_bytes: float | None
    blocks: float | None
    retained_bytes: float | None
    limit_bytes: float | None
    warning_bytes: float | None
    critical_bytes: float | None


class Relief:
    """Decides when to relieve, and does it.

    Args:
        hooks: the program's own.
        cleanup_interval_s: time between clean-ups; 0 for none.
        read_rss: resident bytes now, for what each step freed.
        on_error: told of a hook or callback that raised; it is dropped.
    """

    def __init__(
        self,
        hooks: ReliefHooks,
        *,
        cleanup_interval_s: float,
        read_rss: Callable[[], float | None],
        on_error: Callable[[str, BaseException], None],
    ) -> None:
        self._hooks = hooks
        self._cleanup_interval_s = cleanup_interval_s
        self._read_rss = read_rss
        self._on_error = on_error
        self._gauge = PressureGauge()
        self._last_s = 0.0
        self._alerted_s: dict[Level, float] = {}

    @property
    def level(self) -> Level:
        """How near the limit memory was at the last sample."""
        return self._gauge.level

    def _announced(self, change: LevelChange, now: Situation) -> list[Event]:
        """A change of level; with an alert when a higher one is entered, but not again and again while caches refill."""
        details = {"level": change.after, "rss": now.rss_bytes, "limit": now.limit_bytes}
        more = {"before": change.before, "threshold": change.threshold_bytes}
        events = [Event(now.time_s, "pressure", details | more)]
        told_s = self._alerted_s.get(change.after)
        if LEVELS.index(change.after) > LEVELS.index(change.before) and (told_s is None or now.time_s - told_s >= ALERT_AGAIN_S):
            self._alerted_s[change.after] = now.time_s
            events.append(Event(now.time_s, "alert", {"alert": "peak"} | details))
        return events

    def end(self) -> None:
        """Nobody watches any more: caches get their bounds back, and paused jobs go on."""
        registry.note_pressure("normal")
        relieving.lift()

    def act(self, now: Situation, tell: Callable[[Pressure], None]) -> list[Event]:
        """Relieve if a level was entered or the clean-up interval is over.

        Args:
            tell: called with the pressure when a level is entered, before the hooks run.

        Returns:
            What happened: changes of level, alerts, and every step with what it freed.
        """
        if now.rss_bytes is None:
            return []
        change = self._gauge.update(now.rss_bytes, now.warning_bytes, now.critical_bytes)
        events = [] if change is None else self._announced(change, now)
        level = self._gauge.level
        registry.note_pressure(level)
        if level == "normal":
            relieving.recover()
        risen = change is not None and LEVELS.index(change.after) > LEVELS.index(change.before)
        due = self._cleanup_interval_s > 0 and now.uptime_s - self._last_s >= self._cleanup_interval_s
        if not (risen or due):
            return events
        self._last_s = now.uptime_s
        if level == "normal":
            cheap = collect_is_cheap(now.blocks)
            pressure = Pressure("periodic", now.rss_bytes, now.limit_bytes, None)
            return events + self._steps(pressure, now, collect=cheap, shrink=False)
        threshold = now.critical_bytes if level == "critical" else now.warning_bytes
        target = None if threshold is None else max(0.0, now.rss_bytes - threshold * (1 - self._gauge.margin))
        pressure = Pressure(level, now.rss_bytes, now.limit_bytes, target)
        if risen:
            tell(pressure)
        return events + self._steps(pressure, now, collect=True, shrink=risen)

    def _steps(self, pressure: Pressure, now: Situation, *, collect: bool, shrink: bool) -> list[Event]:
        """Caches first: what they let go is collected and trimmed with the rest.

        Args:
            shrink: whether caches give live entries up; once per level.
        """
        events: list[Event] = []
        began = before = self._read_rss()
        accounted = 0

        def done(name: str, freed: float | None, **more: object) -> None:
            nonlocal before
            after = self._read_rss()
            rss_freed = None if before is None or after is None else before - after
            before = after
            if pressure.level != "periodic" or max(freed or 0.0, rss_freed or 0.0) >= QUIET_BYTES:
                details = {"step": name, "level": pressure.level, "freed": freed, "rss_freed": rss_freed}
                events.append(Event(now.time_s, "relief", details | more))

        if registry.everything():
            for each in relieving.relieve(pressure.level) if shrink and pressure.level != "periodic" else [relieving.expire()]:
                accounted += each.freed_bytes
                if each.entries or shrink:
                    done(each.name, each.freed_bytes, entries=each.entries)
        for step in self._hooks.run(pressure, self._on_error):
            done(step.name, step.freed_bytes)
        if collect:
            freed = collect_garbage()
            done("gc.collect and malloc_trim", freed.heap_bytes, collected=freed.collected, took_s=round(freed.took_s, 4))
        elif (now.retained_bytes or 0.0) >= TRIM_WORTH_BYTES and trim():
            done("malloc_trim", None)
        if (
            accounted >= RSS_FOLLOWS_FROM_BYTES
            and began is not None
            and before is not None
            and began - before < accounted * RSS_FOLLOWS
        ):
            kept = accounted - max(0.0, began - before)
            events.append(Event(now.time_s, "note", {"note": RSS_STAYS.format(format_size(kept), format_size(accounted))}))
        return events


def collect_is_cheap(blocks: float | None, budget_s: float = COLLECT_BUDGET_S) -> bool:
    """Whether a full collection is the program's own habit, and is predicted to stay within a budget."""
    return gc.isenabled() and blocks is not None and blocks * COLLECT_COST_S <= budget_s
