"""Routes as one watch sees them: what each did, and whose requests the growth goes with.

Law: the regression runs only while something grows, at most a small part of the time, outside of every lock, and lets the other
threads in between.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from memwatch import osthread
from memwatch.model import CHANNEL_BY_NAME, Event, Sample, Verdict
from memwatch.routes import regression
from memwatch.routes.history import CHANNELS, History, Reading
from memwatch.routes.ledger import Ledger

ROWS_SHOWN = 20
"""Routes of a report: those blamed, then the busiest."""
RATE_OVER_S = 60.0
DUTY = 0.005
"""Part of the time that looks at the routes may take while something grows; a report that somebody asks for looks in any case."""
RESOURCES = ("fds", "threads", "tasks", "children")
TICK_LEVELS = 4
"""At a tick each 10 s, readings of every tick reach back 128 × 2³ × 10 s: nearly three hours."""
LIVE = "live"
"""Live bytes: of the Python allocator and of malloc together.  Resident memory moves in steps, and goes on after what caused it."""
_HEAP, _NATIVE, _RSS = (CHANNELS.index(name) for name in ("heap", "native", "rss"))


class Attribution:
    """The routes of one watch.

    Args:
        ledger: gives the process's ledger, None while nothing was ever counted.
        threshold_bytes: growth during a single request from which on it is told; 0: never.
        read_rss: resident bytes now.

    Threads: `observe` and `look` from any; the regression itself runs without a lock.
    """

    def __init__(
        self,
        ledger: Callable[[], Ledger | None],
        *,
        threshold_bytes: float = 0.0,
        read_rss: Callable[[], float | None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._threshold_bytes = threshold_bytes
        self._read_rss = None if read_rss is None else _weakly(read_rss)
        self._lock = osthread.new_lock()
        self._history = History()
        self._ticks = History(TICK_LEVELS)
        self._heap_is_read = False
        self._found: Mapping[str, dict[str, Any]] = {}
        self._note: str | None = None
        self._looked_at = 0
        self._told: set[str] = set()
        self._next_look_s = 0.0

    def observe(self, sample: Sample) -> list[Event]:
        """Take note of a tick; returns what is to be told of single requests.

        Live bytes are followed where the Python heap was read, which is rarer where the heap is large: counts and levels of one
        moment belong together, and no count is lost by that.  A heap that grows fast is read so rarely that its routes would never
        be told, and so the other channels are followed at each tick.

        Cost: a few µs and 0.1 µs a route.
        """
        ledger = self._ledger()
        if ledger is None or ledger.is_empty:
            return []
        if ledger.read_rss is not self._read_rss and self._read_rss is not None:
            ledger.read_rss, ledger.threshold_bytes = self._read_rss, self._threshold_bytes
        values = sample.values
        self._heap_is_read = self._heap_is_read or "heap" in values
        reading = Reading(sample.uptime_s, ledger.counts(), tuple(values.get(name) for name in CHANNELS))
        with self._lock:
            self._ticks.add(reading)
            if "heap" in values or not self._heap_is_read:
                self._history.add(reading)
        return [
            Event(sample.time_s, "note", {"note": "request", "route": one.route, "grown": one.bytes, "took_s": one.took_s})
            for one in ledger.grown()
        ]

    def end(self) -> None:
        """The watch is over: single requests are not measured any more."""
        ledger = self._ledger()
        if ledger is not None and ledger.read_rss is self._read_rss:
            ledger.read_rss, ledger.threshold_bytes = None, 0.0

    def look(self, verdict: Verdict, since_s: float | None, *, asked: bool = False) -> list[Event]:
        """Find out whose requests the growth goes with, if there is growth and it is time to.

        Args:
            verdict: what grows.
            since_s: when that began, on the clock of the samples' `uptime_s`.
            asked: whether somebody waits for the answer; else it is looked for within a part of the time.

        Returns:
            An event for each route blamed for the first time.

        Cost: that of `memwatch.routes.regression.attribute`, once to four times, in slices of less than a millisecond.
        """
        if verdict.state not in ("growing", "leaking"):
            self._found, self._note = {}, None
            return []
        ledger = self._ledger()
        if ledger is None or ledger.is_empty:
            return []
        began = time.monotonic()
        with self._lock:
            if self._looked_at == self._ticks.readings or (not asked and began < self._next_look_s):
                return self._news(verdict)
            self._looked_at = self._ticks.readings
            windows, ticks = _windows(self._history, since_s), _windows(self._ticks, since_s)
        names = ledger.names()
        found: dict[str, dict[str, Any]] = {}
        note: str | None = "no channel that can be followed was read"
        for channel, kept in _series(verdict, windows, ticks):
            times = [row.time_s for row, _ in kept]
            counts = [[row.counts[place] if place < len(row.counts) else 0.0 for row, _ in kept] for place in range(len(names))]
            answer = regression.attribute(times, counts, [level for _, level in kept], breathe=_breathe)
            if not found or answer.note is None:
                found, note = _described(channel, names, answer.effects), answer.note
            if note is None:
                break
        took_s = time.monotonic() - began
        self._next_look_s = began + took_s / DUTY
        self._found, self._note = found, note
        return self._news(verdict)

    def _news(self, verdict: Verdict) -> list[Event]:
        """Whom to accuse aloud: nobody while what grows may be a fill yet."""
        found = self._found
        news = [name for name, effect in found.items() if effect["blamed"] and name not in self._told]
        if not news or verdict.state != "leaking":
            return []
        self._told.update(news)
        now_s = time.time()
        return [Event(now_s, "note", {"note": "route", "route": name, **found[name]}) for name in news]

    @property
    def note(self) -> str | None:
        """Why no route is blamed for growth; None where nothing grows or somebody is."""
        return self._note

    def rows(self) -> tuple[dict[str, Any], ...]:
        """What the routes did, as plain data for a report: those blamed first, then the busiest.

        Cost: about 30 µs a route shown.
        """
        ledger = self._ledger()
        if ledger is None or ledger.is_empty:
            return ()
        names, counts, effects = ledger.names(), ledger.counts(), self._found
        with self._lock:
            span = self._ticks.newest(RATE_OVER_S)
        order = sorted(range(min(len(names), len(counts))), key=lambda at: (not _is_blamed(effects.get(names[at])), -counts[at]))
        place_of = {name: place for place, name in enumerate(names)}
        rows = []
        for figures in ledger.figures([names[place] for place in order[:ROWS_SHOWN]]):
            row: dict[str, Any] = {
                "route": figures.route,
                "requests": figures.requests,
                "errors": figures.errors,
                "in_flight": figures.in_flight,
                "rate_per_s": _rate(span, place_of[figures.route]),
                "p50_s": figures.p50_s,
                "p95_s": figures.p95_s,
                "p99_s": figures.p99_s,
            }
            rows.append({**row, **effects.get(figures.route, _UNKNOWN)})
        return tuple(rows)


def _weakly(read_rss: Callable[[], float | None]) -> Callable[[], float | None]:
    """The ledger outlives every watcher, and must keep none."""
    reference = weakref.WeakMethod(read_rss)

    def read() -> float | None:
        method = reference()
        return None if method is None else method()

    return read


_UNKNOWN: Mapping[str, Any] = {
    "channel": None,
    "bytes_per_request": None,
    "bytes_per_request_low": None,
    "bytes_per_request_high": None,
    "share": None,
    "blamed": False,
    "together_with": [],
}


def _is_blamed(effect: Mapping[str, Any] | None) -> bool:
    return effect is not None and bool(effect["blamed"])


def _rate(span: tuple[Reading, Reading] | None, place: int) -> float | None:
    if span is None or span[1].time_s <= span[0].time_s or place >= len(span[1].counts):
        return None
    before = span[0].counts[place] if place < len(span[0].counts) else 0.0
    return (span[1].counts[place] - before) / (span[1].time_s - span[0].time_s)


Series = list[tuple[Reading, float]]
"""Readings, each with the level of one channel."""


def _windows(history: History, since_s: float | None) -> list[list[Reading]]:
    """The readings since then, and all: the detector says since when it is sure; most leaks are as old as the process."""
    since, whole = history.since(since_s if since_s is not None else 0.0), history.since(0.0)
    older = bool(whole and since) and whole[0].time_s < since[0].time_s
    return [since, whole] if older else [since]


def _series(verdict: Verdict, windows: list[list[Reading]], ticks: list[list[Reading]]) -> list[tuple[str, Series]]:
    """What to try, best first: with the Python heap; and if that was read too rarely so far, what was read at each tick."""

    def with_levels(rows: list[Reading], levels: list[float | None]) -> Series:
        return [(row, level) for row, level in zip(rows, levels, strict=True) if level is not None]

    found = [(channel, with_levels(rows, levels)) for rows in windows for channel, levels in _levels(verdict, rows)]
    if all(len(series) < regression.FEWEST_ROWS for _, series in found):
        channel = verdict.channel if verdict.channel in RESOURCES else "rss"
        place = CHANNELS.index(channel)
        found += [(channel, with_levels(rows, [row.values[place] for row in rows])) for rows in ticks]
    return found


def _levels(verdict: Verdict, readings: list[Reading]) -> list[tuple[str, list[float | None]]]:
    """The channels to try, best first."""
    if verdict.channel in RESOURCES:
        place = CHANNELS.index(verdict.channel)
        return [(verdict.channel, [row.values[place] for row in readings])]
    heap, native, rss = ([row.values[place] for row in readings] for place in (_HEAP, _NATIVE, _RSS))
    live = [None if one is None or other is None else one + other for one, other in zip(heap, native, strict=True)]
    if any(level is not None for level in live):
        own = {"heap": heap, "native": native}.get(verdict.channel)
        return [(LIVE, live)] + ([(verdict.channel, own)] if own is not None else [])
    if any(level is not None for level in heap):
        return [("heap", heap)]
    return [("rss", rss)] if any(level is not None for level in rss) else []


def _described(channel: str, names: list[str], effects: tuple[regression.Effect, ...]) -> dict[str, dict[str, Any]]:
    known = CHANNEL_BY_NAME.get(channel)
    unit = "count" if known is not None and known.unit == "count" else "bytes"
    found = {}
    for effect in effects:
        members = [names[place] for place in effect.members]
        for name in members:
            found[name] = dict(_UNKNOWN) | {
                "channel": channel,
                f"{unit}_per_request": effect.per_request,
                f"{unit}_per_request_low": effect.low,
                f"{unit}_per_request_high": effect.high,
                "share": effect.share,
                "blamed": effect.blamed,
                "together_with": [other for other in members if other != name],
            }
    return found


_pause = osthread.new_lock()
_pause.acquire()


def _breathe() -> None:
    """Let go of the GIL: whoever waits for it has it now, and not at the end of the switch interval."""
    _pause.acquire(timeout=1e-6)
