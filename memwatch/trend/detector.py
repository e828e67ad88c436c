"""The leak detector: samples in, verdicts out.

Law: `update` never raises on odd input, whatever a source reads; nothing here knows a clock, a thread or a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

from memwatch.model import Kind, Severity, State, Verdict
from memwatch.trend.clock import Clock
from memwatch.trend.history import BUCKETS, History
from memwatch.trend.judge import Why
from memwatch.trend.kinds import CARRIES, RESOURCE_KINDS, memory_kind
from memwatch.trend.states import Finding
from memwatch.trend.track import Track
from memwatch.trend.windows import MIN_SAMPLES, Setting, growths

MEMORY = {"heap": "heap", "native": "native", "rss": "anonymous", "retained": "retained"}
"""Channel to series judged: RSS is judged without its file pages.  What is retained is never a leak."""

COUNTS = ("fds", "sockets", "threads", "tasks", "children")

SUPPORT = ("blocks", "large_blocks", "retained")
"""Kept in the history for attribution as well, or only; 0 is a reading."""

WORK = ("requests", "jobs", "messages")
"""Cumulative counts of work done, added up; CPU seconds are the clock of work where none is given."""

GROWTH_LIMIT = 10 * 2**20 / 60
"""Bytes per second: 10 MiB/min, the threshold people use (what it finds alone: docs/explanation/detector.md)."""

SHORT_OF_TIME_S = 3600.0
"""A leak that reaches the limit within an hour is critical: about the time to be woken and to deploy (guess)."""

RETOLD = 2
"""While nothing changes, the verdict's figures are told anew when this level closes a bucket: every fourth sample."""

SANE = 2.0**62
"""No reading is larger than this; one that is was misread."""

NOMINAL_INTERVALS_S = (5.0, 100.0)
"""Intervals for which seconds are taken as they are; outside, time is counted in samples (the corpora were recorded in here)."""


class LeakDetector:
    """Judges a process by its samples, online.

    Args:
        interval_s: nominal seconds between samples.
        limit: bytes of memory the process may use, None if unknown; `values["limit"]` and `set_limit` override it.
        growth_limit: bytes per second at which a leak is critical.

    Cost: bench/score.py prints microseconds an update and bytes a detector.
    Threads: none; the owner serialises calls.
    Source: docs/explanation/detector.md.
    """

    __slots__ = ("_clock", "_epoch", "_growth_limit", "_history", "_limit", "_scale", "_setting", "_tracks", "_verdict")

    def __init__(self, interval_s: float = 10.0, limit: float | None = None, *, growth_limit: float = GROWTH_LIMIT) -> None:
        if not (isfinite(interval_s) and interval_s > 0.0):
            raise ValueError(f"interval_s is {interval_s!r}; it must be a positive number of seconds")
        self._limit = limit
        self._growth_limit = growth_limit
        shortest, longest = NOMINAL_INTERVALS_S
        self._scale = interval_s / shortest if interval_s < shortest else max(1.0, interval_s / longest)
        self._clock = Clock(interval_s)
        self._history = History()
        self._epoch: float | None = None
        self._tracks = {channel: Track(channel, series, countable=False) for channel, series in MEMORY.items()}
        self._tracks |= {channel: Track(channel, channel, countable=True) for channel in COUNTS}
        self._setting = Setting(0.0, self._scale, growth_limit, None, None)
        self._verdict = Verdict("rss", "warming-up", reason="no samples yet")

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole process, as `update` returned it last."""
        return self._verdict

    def set_limit(self, limit: float | None) -> None:
        """Change the memory limit (bytes), or say that there is none."""
        self._limit = limit

    def explain_as_bounded(self, reason: str, *, room: float | None = None, channel: str | None = None) -> Verdict:
        """Take the present growth for a fill, because evidence shows that a bounded container holds it.

        Args:
            reason: the bound in words, for the verdict ("lru_cache app.lookup holds 512 of 4096 entries").
            room: how much more it may grow, in units of the channel, if known; growth beyond that, or (without *room*) by as
                much again as matters, is judged anew.
            channel: the channel explained; by default all memory channels.
        """
        for name in (channel,) if channel is not None else tuple(MEMORY):
            track = self._tracks.get(name)
            if track is not None:
                track.explain(self._history, reason, room, self._setting)
        self._verdict = self._overall()
        return self._verdict

    def update(self, time_s: float, values: Mapping[str, float]) -> Verdict:
        """Take one sample and return the verdict on the whole process.

        Args:
            time_s: Unix seconds.
            values: readings by channel; absent ones were not read.  NaN, infinite and negative ones are taken as absent.
        """
        if not self._clock.advance(time_s):
            return self._verdict
        epoch = values.get("epoch")
        if epoch is not None and epoch == epoch:
            if self._epoch is not None and epoch != self._epoch:
                self._restart()
            self._epoch = epoch
        limit = _reading(values, "limit")
        if limit:
            self._limit = limit
        bucket = self._bucket(time_s, values)
        closed = self._history.append(bucket)
        rss = _reading(values, "rss")
        work = "work" if "work" in bucket else "cpu" if "cpu" in bucket else None
        headroom = self._setting.headroom if rss is None else None if self._limit is None else self._limit - rss
        self._setting = Setting(self._clock.elapsed, self._scale, self._growth_limit, headroom, work)
        columns = self._history.levels[0].columns
        changed = False
        for track in self._tracks.values():
            if track.series.name in columns and track.update(self._history, closed, self._setting):
                changed = True
        if changed or closed > RETOLD or self._history.samples < MIN_SAMPLES or self._limit != self._verdict.limit:
            self._verdict = self._overall()
        return self._verdict

    def verdicts(self) -> Mapping[str, Verdict]:
        """The verdict on every channel that has been read."""
        columns = self._history.levels[0].columns
        return {channel: self._verdict_of(track) for channel, track in self._tracks.items() if track.series.name in columns}

    def _bucket(self, time_s: float, values: Mapping[str, float]) -> dict[str, float]:
        bucket = {"elapsed": self._clock.elapsed, "stamp": time_s}
        rss = _reading(values, "rss")
        if rss:
            bucket["anonymous"] = max(0.0, rss - (_reading(values, "file") or 0.0))
        for name in ("heap", "native"):
            value = _reading(values, name)
            if value:
                bucket[name] = value
        for name in COUNTS + SUPPORT + ("cpu",):
            value = _reading(values, name)
            if value is not None:
                bucket[name] = value
        done = [value for name in WORK if (value := _reading(values, name)) is not None]
        if done:
            bucket["work"] = sum(done)
        return bucket

    def _restart(self) -> None:
        for track in self._tracks.values():
            track.restart(self._history)
        self._history = History()

    def _verdict_of(self, track: Track) -> Verdict:
        limit = None if track.series.countable else self._limit
        verdict = track.verdict(self._history, self._setting, limit, self._rss_rate())
        if verdict.state != "leaking":
            ruling = track.worst_ruling()
            kept = ruling is not None and ruling.why is Why.ALLOCATOR
            return replace(verdict, kind="fragmentation") if kept and not verdict.held else verdict
        severity: Severity = "warning"
        if not track.series.countable and verdict.rate >= self._growth_limit:
            severity = "critical"
        if verdict.exhausted_in_s is not None and verdict.exhausted_in_s < SHORT_OF_TIME_S:
            severity = "critical"
        return replace(verdict, kind=self._kind(track), severity=severity)

    def _rss_rate(self) -> float:
        ruling = self._tracks["rss"].worst_ruling()
        return ruling.rate if ruling is not None and ruling.finding is not Finding.FLAT else 0.0

    def _kind(self, track: Track) -> Kind:
        resource = RESOURCE_KINDS.get(track.series.channel)
        if resource is not None:
            return resource
        for channel, kind in RESOURCE_KINDS.items():
            if self._tracks[channel].suspected:
                return kind
        if track.alarm is None:
            return "none"
        # The window of the alarm, or the next longer one in which the Python heap was read often enough to say.
        for level in self._history.levels[track.alarm.level :]:
            grown = growths(level, len(level) // 8 if level.closed <= BUCKETS else 0)
            kind = memory_kind(grown)
            if grown.heap is not None and kind != "none":
                return kind
        level = self._history.levels[track.alarm.level]
        return memory_kind(growths(level, len(level) // 8 if level.closed <= BUCKETS else 0))

    def _overall(self) -> Verdict:
        """The verdict that stands for the process: a leaking resource, else the memory channel that carries the leak."""
        columns = self._history.levels[0].columns
        tracks = [track for track in self._tracks.values() if track.series.name in columns]
        if not tracks:
            return Verdict("rss", "warming-up", reason="nothing has been read yet")
        leaking = [track for track in tracks if track.state == "leaking"]
        for channel in RESOURCE_KINDS:
            track = self._tracks[channel]
            if track in leaking:
                return self._verdict_of(track)
        if leaking:
            return self._verdict_of(_carrier(leaking))
        order: tuple[State, ...] = ("growing", "recovering", "stable", "warming-up")

        def rank(track: Track) -> tuple[int, bool, bool, bool]:
            held = track.held(self._history) > 0.0
            return order.index(track.state), not held, track.series.countable, track.series.channel != "rss"

        return self._verdict_of(min(tracks, key=rank))


def _carrier(leaking: list[Track]) -> Track:
    """Which of the memory channels that leak tells the story: the first that carries the growth of RSS, else RSS itself."""
    rates = {track.series.channel: ruling.rate for track in leaking if (ruling := track.worst_ruling()) is not None}
    for track in leaking:
        if rates.get(track.series.channel, 0.0) >= CARRIES * rates.get("rss", 0.0):
            return track
    return leaking[-1]


def _reading(values: Mapping[str, float], name: str) -> float | None:
    """A finite, sane, non-negative reading, or None."""
    value = values.get(name)
    if value is None:
        return None
    return value if 0.0 <= value < SANE else None
