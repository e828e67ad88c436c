"""One channel through time: its windows on every scale, its state, its alarm.

Law: a level is judged when it closes a bucket, and only then (testing at every sample on every scale multiplies false
alarms); the state follows `states.TABLE`.
"""

from __future__ import annotations

from typing import NamedTuple

from memwatch.model import Direction, State, Verdict
from memwatch.trend import reasons
from memwatch.trend.days import MIN_SPAN_S, Daily, compare_days
from memwatch.trend.history import BUCKETS, History, Level
from memwatch.trend.judge import (
    COUNT_RULES,
    GROWTH_RULES,
    LEAK_RULES,
    Circumstances,
    Ruling,
    Why,
    judge,
    material_bytes,
    material_count,
)
from memwatch.trend.kinds import Growths, kept_by_allocators
from memwatch.trend.states import Finding, Standing
from memwatch.trend.statistics import T_95, Shape, explained_by_load, measure

MIN_SAMPLES = 64
"""Growth is judged a leak over at least this many samples, an eighth at the process's start not counted."""

NOTICE_SAMPLES = 32
"""... and is called growing from this many."""

MIN_BUCKETS = 16
"""Two readings a block."""

PLAIN_SAMPLES = 20
"""Fewest samples for growth that is beyond doubt in size and speed, at intervals of 5 s and more ..."""

PLAIN_S = 240.0
"""... and the least time it must have lasted (a start-up is over in less; guess)."""

CONFIRMATIONS = 2
"""Windows in a row (each one bucket later than the one before) that must agree before there is an alarm."""

OVER_SHARE = 0.2
"""An alarm ends when growth goes on at less than this part of its rate ..."""

GIVEN_BACK = 0.5
"""... or when this part of what had grown is gone."""

RATE_WIDENING = 2.0
"""The residuals of a memory series are autocorrelated, so that Student's interval is too narrow; bench/score.py prints coverage."""

RATE_FLOOR = 0.2
"""Half-width of a rate's interval is at least this part of the rate: load changes, allocators round."""

MOST = {"fds": 64.0, "sockets": 64.0, "threads": 64.0, "tasks": 64.0, "children": 24.0}
"""Growth of a count that matters at ordinary intervals: pools of connections and threads hold up to tens (executors stop at
32, anyio at 40), so that a pool which fills is below it (guess)."""


class Setting(NamedTuple):
    """What a track is told about the process at a sample."""

    elapsed: float
    scale: float
    growth_limit: float
    headroom: float | None
    """Bytes of RSS left to the limit."""
    work: str | None
    """The clock of work there is ("work", "cpu"), if any."""


class Alarm(NamedTuple):
    level: int
    elapsed: float
    ruling: Ruling


class Bound(NamedTuple):
    """Growth up to *ceiling* has an explanation."""

    ceiling: float
    reason: str


class Track:
    """The trend of one channel."""

    __slots__ = ("alarm", "bound", "channel", "countable", "direction", "floor", "given_back", "over", "rulings", "series", "standing", "streaks")

    def __init__(self, channel: str, series: str, *, countable: bool) -> None:
        self.channel = channel
        self.series = series
        self.countable = countable
        self.standing = Standing()
        self.rulings: list[Ruling | None] = []
        self.streaks: list[int] = []
        self.direction: Direction = "stable"
        self.alarm: Alarm | None = None
        self.floor: float | None = None
        self.bound: Bound | None = None
        self.over = 0.0
        self.given_back = False

    @property
    def state(self) -> State:
        return self.standing.state

    def restart(self, history: History) -> None:
        """Forget everything (another process answers) but the level at which the one before had settled, if it had."""
        settled = self.state == "stable"
        self.standing.meet(Finding.RESTART)
        self.rulings.clear()
        self.streaks.clear()
        self.alarm = self.bound = None
        top = max((value for level in history.levels for value in level.columns.get(self.series, ()) if value == value), default=None)
        self.floor = top if settled else None

    def explain(self, history: History, reason: str, room: float | None, setting: Setting) -> None:
        """Take the present growth as bounded, up to *room* above the present level (by default once what matters)."""
        values = [value for value in history.levels[0].columns.get(self.series, ()) if value == value]
        if not values:
            return
        material = max((ruling.material for ruling in self.rulings if ruling), default=self._material(3600.0, values[-1], setting))
        self.bound = Bound(max(values) + max(room or 0.0, material), reason)
        self.alarm = None
        self._forget_rulings()
        self.standing.meet(Finding.EXPLAINED)

    def update(self, history: History, closed: int, setting: Setting) -> None:
        """Judge the *closed* finest levels anew and move the state."""
        for number in range(closed):
            self._judge_level(history, number, setting)
        finding = self._finding(history)
        if self.state == "leaking" and self.alarm is not None and closed >= self.alarm.level and self._alarm_over(history, self.alarm):
            finding = Finding.OVER
        if not self.standing.meet(finding):
            return
        if self.state == "leaking":
            number = max(
                (number for number, streak in enumerate(self.streaks) if streak >= CONFIRMATIONS),
                key=lambda number: self._shape_growth(number),
            )
            ruling = self.rulings[number]
            if ruling is not None:
                self.alarm = Alarm(number, setting.elapsed, ruling)
        elif self.state == "recovering" and self.alarm is not None:
            column = history.levels[self.alarm.level].columns[self.series]
            self.floor = max((value for value in column if value == value), default=None)
            self.over = setting.elapsed
            self._forget_rulings()

    def worst_ruling(self) -> Ruling | None:
        """The ruling that explains the state best: the worst finding, among equals the growth that matters most."""
        ranked = [ruling for ruling in self.rulings if ruling is not None]
        if not ranked:
            return None
        rank = {Finding.LEAK: 2, Finding.GROWTH: 1}
        return max(
            ranked, key=lambda ruling: (rank.get(ruling.finding, 0), ruling.growth / ruling.material if ruling.material else 0.0, ruling.duration)
        )

    def verdict(self, history: History, setting: Setting, limit: float | None) -> Verdict:
        """What to say of this channel now."""
        ruling = self.worst_ruling()
        state = self.state
        if state == "leaking" and self.alarm is not None:
            return self._leaking(ruling, setting, limit)
        if ruling is None:
            samples = history.samples
            reason = reasons.too_few(min(samples, MIN_SAMPLES - 1), MIN_SAMPLES) if samples < MIN_SAMPLES else f"{reasons.title(self.channel)}: too few readings yet"
            return Verdict(self.channel, state, reason=reason)
        direction: Direction = "stable"
        if ruling.shape is not None:
            direction = "increasing" if ruling.finding is not Finding.FLAT else "stable"
        elif ruling.growth < -0.4 * ruling.material:
            direction = "decreasing"
        if state == "recovering" and self.alarm is not None:
            grown = self.alarm.ruling.growth
            reason = reasons.recovering(self.channel, grown, given_back=self.given_back, since_s=setting.elapsed - self.over)
        elif state == "growing" and ruling.finding is not Finding.FLAT:
            reason = reasons.growing(self.channel, ruling)
        elif state == "warming-up":
            reason = reasons.too_few(history.samples, MIN_SAMPLES)
        else:
            reason = reasons.harmless(self.channel, ruling, self.bound.reason if self.bound else None)
        low, high = self._interval(ruling)
        return Verdict(
            self.channel, state, direction, ruling.rate, low, high, since=ruling.since, grown=ruling.growth, limit=limit, reason=reason
        )

    def _leaking(self, ruling: Ruling | None, setting: Setting, limit: float | None) -> Verdict:
        alarm = self.alarm
        assert alarm is not None
        if ruling is None or ruling.finding is not Finding.LEAK:
            ruling = alarm.ruling
        low, high = self._interval(ruling)
        exhausted = None
        if setting.headroom is not None and not self.countable and ruling.rate > 0.0:
            exhausted = max(0.0, setting.headroom) / ruling.rate
        reason = reasons.leaking(self.channel, ruling.growth, ruling.duration, ruling.rate, low, high, exhausted)
        return Verdict(
            self.channel,
            "leaking",
            "increasing",
            ruling.rate,
            low,
            high,
            since=ruling.since,
            grown=ruling.growth,
            limit=limit,
            exhausted_in_s=exhausted,
            reason=reason,
            severity="warning",
        )

    def _interval(self, ruling: Ruling) -> tuple[float | None, float | None]:
        if ruling.shape is None:
            return None, None
        half = max(RATE_FLOOR * abs(ruling.rate), RATE_WIDENING * T_95 * ruling.shape.rate_error)
        return ruling.rate - half, ruling.rate + half

    def _shape_growth(self, number: int) -> float:
        ruling = self.rulings[number]
        return ruling.growth if ruling is not None else 0.0

    def _forget_rulings(self) -> None:
        self.rulings = [None] * len(self.rulings)
        self.streaks = [0] * len(self.streaks)

    def _finding(self, history: History) -> Finding:
        if any(streak >= CONFIRMATIONS for streak in self.streaks):
            return Finding.LEAK
        if any(ruling is not None and ruling.finding is not Finding.FLAT for ruling in self.rulings):
            return Finding.GROWTH
        if history.samples < MIN_SAMPLES:
            return Finding.SHORT
        return Finding.FLAT

    def _judge_level(self, history: History, number: int, setting: Setting) -> None:
        while len(self.rulings) <= number:
            self.rulings.append(None)
            self.streaks.append(0)
        ruling = self.rulings[number] = self._rule(history, number, setting)
        leak = ruling is not None and ruling.finding is Finding.LEAK
        self.streaks[number] = self.streaks[number] + 1 if leak else 0

    def _rule(self, history: History, number: int, setting: Setting) -> Ruling | None:
        level = history.levels[number]
        values = level.columns.get(self.series)
        if values is None or len(values) < MIN_BUCKETS:
            return None
        count = len(values)
        first = count // 8 if level.closed <= BUCKETS else 0
        samples = (count - first) << number
        if samples < (NOTICE_SAMPLES if setting.scale < 1.0 else MIN_BUCKETS):
            return None
        elapsed, stamps = level.columns["elapsed"], level.columns["stamp"]
        eighth = (count - first) // 8
        head, tail = min(values[first : first + eighth]), min(values[-eighth:])
        duration, since = elapsed[-1] - elapsed[first], stamps[first]
        material = self._material(duration, max(head, 0.0), setting)
        if tail - head < GROWTH_RULES.material * material * 0.8 and duration < MIN_SPAN_S:
            return Ruling(Finding.FLAT, Why.SMALL, tail - head, duration, since, material)
        kept = [i for i in range(first, count) if values[i] == values[i]]
        if len(kept) < MIN_BUCKETS:
            return None
        times = [elapsed[i] for i in kept]
        readings = [values[i] for i in kept]
        work = self._work(level, kept, setting)
        shape = measure(times, work, readings)
        circumstances = Circumstances(material, self._earlier_high(history, number, first))
        why = judge(shape, circumstances, GROWTH_RULES)
        finding = Finding.FLAT
        if self.bound is not None and shape.last <= self.bound.ceiling:
            why = Why.BOUNDED
        elif self.series == "anonymous" and kept_by_allocators(growths(level, first)):
            why = Why.ALLOCATOR
        elif why is Why.LEAK:
            finding = Finding.GROWTH
            if samples < MIN_SAMPLES and not self._plain(shape, samples, material, setting):
                why = Why.SMALL
            else:
                if work is not None:
                    share, correlation = explained_by_load(times, work, readings)
                    circumstances = circumstances._replace(load_share=share, load_correlation=correlation)
                why = judge(shape, circumstances, COUNT_RULES if self.countable else LEAK_RULES)
                finding = Finding.LEAK if why is Why.LEAK else Finding.GROWTH
        if finding is not Finding.LEAK and why is not Why.BOUNDED and why is not Why.ALLOCATOR and not self.countable:
            daily = self._from_day_to_day(times, readings, material)
            if daily is not None:
                finding, why = Finding.LEAK, Why.DAILY
                shape = shape._replace(rate=daily.rate, rate_error=daily.rate_error, growth=daily.rate * duration)
        if finding is Finding.LEAK and self.floor is not None and shape.last < self.floor + 0.3 * material:
            finding, why = Finding.FLAT, Why.RETURNING
        return Ruling(finding, why, shape.growth, duration, since, material, shape)

    def _plain(self, shape: Shape, samples: int, material: float, setting: Setting) -> bool:
        """Whether growth is so large and fast that fewer samples will do: minutes may be all there is before the limit."""
        return (
            setting.scale >= 1.0
            and not self.countable
            and samples >= PLAIN_SAMPLES
            and shape.duration >= PLAIN_S
            and shape.growth >= 2.0 * material
            and shape.rate >= 0.8 * setting.growth_limit
        )

    def _from_day_to_day(self, times: list[float], readings: list[float], material: float) -> Daily | None:
        daily = compare_days(times, readings)
        if daily is None or not daily.steady or daily.rate * (times[-1] - times[0]) < material:
            return None
        return daily

    def _work(self, level: Level, kept: list[int], setting: Setting) -> list[float] | None:
        clock = level.columns.get(setting.work) if setting.work else None
        if clock is None:
            return None
        work = [clock[i] for i in kept]
        return None if any(value != value for value in work) else work

    def _material(self, duration: float, base: float, setting: Setting) -> float:
        if self.countable:
            return material_count(duration, setting.scale, base, MOST[self.channel])
        return material_bytes(duration, setting.scale, base, setting.headroom, setting.growth_limit)

    def _earlier_high(self, history: History, number: int, first: int) -> float | None:
        start = history.levels[number].columns["elapsed"][first]
        highest = self.floor
        for level in history.levels[number + 1 :]:
            values = level.columns.get(self.series)
            if values is None:
                continue
            for moment, value in zip(level.columns["elapsed"], values, strict=True):
                if moment >= start:
                    break
                if value == value and (highest is None or value > highest):
                    highest = value
            if level.closed <= BUCKETS:
                break
        return highest

    def _alarm_over(self, history: History, alarm: Alarm) -> bool:
        level = history.levels[alarm.level]
        values, elapsed = level.columns[self.series], level.columns["elapsed"]
        if alarm.ruling.why is Why.DAILY:
            kept = [i for i, value in enumerate(values) if value == value]
            daily = compare_days([elapsed[i] for i in kept], [values[i] for i in kept])
            self.given_back = False
            return daily is not None and daily.recent < OVER_SHARE * alarm.ruling.rate
        half = [i for i in range(max(0, len(values) - BUCKETS // 2), len(values)) if values[i] == values[i]]
        if len(half) < MIN_BUCKETS:
            return False
        quarter = len(half) // 4
        early, late = half[:quarter], half[-quarter:]
        low, high = min(values[i] for i in early), min(values[i] for i in late)
        shape = alarm.ruling.shape
        assert shape is not None
        if high < shape.first + GIVEN_BACK * shape.growth:
            self.given_back = True
            return True
        self.given_back = False
        span = elapsed[late[0]] - elapsed[early[0]]
        return span > 0.0 and (high - low) / span < OVER_SHARE * alarm.ruling.rate


def growths(level: Level, first: int) -> Growths:
    """How much every memory series grew from bucket *first* of *level* to now."""

    def growth(name: str) -> float | None:
        column = level.columns.get(name)
        if column is None:
            return None
        kept = [value for value in column[first:] if value == value]
        if len(kept) < 2:
            return None
        part = max(1, len(kept) // 8)
        return min(kept[-part:]) - min(kept[:part])

    return Growths(
        rss=growth("anonymous"),
        heap=growth("heap"),
        blocks=growth("blocks"),
        large_blocks=growth("large_blocks"),
        native=growth("native"),
        retained=growth("retained"),
    )
