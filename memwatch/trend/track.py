"""One channel through time: its windows on every scale, its state, its alarm.

Law: a level is judged when it closes a bucket, and only then (testing at every sample on every scale multiplies false
alarms); the state follows `states.TABLE`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from memwatch.model import Direction, State, Verdict
from memwatch.trend import reasons
from memwatch.trend.days import compare_days
from memwatch.trend.history import BUCKETS, History
from memwatch.trend.judge import Ruling, Why
from memwatch.trend.states import Finding, Standing
from memwatch.trend.statistics import T_95
from memwatch.trend.windows import MIN_BUCKETS, MIN_SAMPLES, QUICK_SHARE, Bound, Series, Setting, material_growth, rule

CONFIRMATIONS = 2
"""Windows in a row (each one bucket later than the one before) that must agree before there is an alarm."""

CONFIRMING_SAMPLES = 8
"""... and at intervals under 5 s the samples over which they must: with `MIN_SAMPLES`, growth has then lasted 72 samples."""

OVER_SHARE = 0.2
"""An alarm ends when growth goes on at less than this part of its rate ..."""

GIVEN_BACK = 0.5
"""... or when this part of what had grown is gone."""

STILL_PART = 0.1
STILL_SHARE = 0.3
"""A life had settled if its last tenth, or a little more, grew at a pace that would have made it less than this part of what
matters over the whole life (guess)."""

RATE_WIDENING = 2.0
"""The residuals of a memory series are autocorrelated, so that Student's interval is too narrow; bench/score.py prints coverage."""

RATE_FLOORS = (0.15, 0.4)
"""Half-width of a rate's interval is at least a part of the rate: allocators round up, warm-ups end, load changes.  The larger
part where the growth just matters, less with the root of more growth, down to the smaller (chosen for coverage of the true
rate at the alarm on the development corpus)."""


class Alarm(NamedTuple):
    """What an alarm was raised on."""

    level: int
    ruling: Ruling


class Track:
    """The trend of one channel."""

    __slots__ = ("_born", "_confirmed", "_rising", "alarm", "given_back", "over", "rulings", "series", "standing", "streaks")

    def __init__(self, channel: str, name: str, *, countable: bool) -> None:
        self.series = Series(channel, name, countable)
        self.standing = Standing()
        self.rulings: list[Ruling | None] = []
        self.streaks: list[int] = []
        self._born = 0.0
        """Elapsed seconds when this life began."""
        self._rising = 0
        """Bit k: the ruling of level k is not FLAT."""
        self._confirmed = 0
        """Bit k: level k has called it a leak often enough in a row."""
        self.alarm: Alarm | None = None
        self.over = 0.0
        self.given_back = False

    @property
    def state(self) -> State:
        return self.standing.state

    def restart(self, history: History) -> None:
        """Forget everything (another process answers) but the level at which the one before had settled, if it had."""
        settled = self._settled(history)
        self.standing.meet(Finding.RESTART)
        self._forget_rulings()
        self.alarm = None
        columns = (level.columns.get(self.series.name, ()) for level in history.levels)
        top = max((value for column in columns for value in column if value == value), default=None)
        self.series = self.series._replace(floor=top if settled else None, bound=None)
        self._born = max(history.levels[0].columns["elapsed"], default=0.0)

    def _settled(self, history: History) -> bool:
        """Whether the level lay still for the last part of this life, so that the next may fill up as far without a word."""
        if self.state != "stable":
            return False
        life_s = history.levels[0].columns["elapsed"][-1] - self._born
        for ruling in self.rulings:
            if ruling is not None and ruling.duration >= STILL_PART * life_s:
                return ruling.growth * life_s < STILL_SHARE * ruling.material * ruling.duration
        return False

    def explain(self, history: History, reason: str, room: float | None, setting: Setting) -> None:
        """Take the present growth as bounded, up to *room* above the present level (by default once what matters)."""
        values = [value for value in history.levels[0].columns.get(self.series.name, ()) if value == value]
        if not values:
            return
        usual = material_growth(self.series, 3600.0, values[-1], setting)
        material = max((ruling.material for ruling in self.rulings if ruling), default=usual)
        self.series = self.series._replace(bound=Bound(max(values) + max(room or 0.0, material), reason))
        self.alarm = None
        self._forget_rulings()
        self.standing.meet(Finding.EXPLAINED)

    def update(self, history: History, closed: int, setting: Setting) -> bool:
        """Judge the *closed* finest levels anew and move the state; return whether it changed."""
        for number in range(closed):
            self._judge_level(history, number, setting)
        finding = self._finding(history)
        alarm = self.alarm
        if self.state == "leaking" and alarm is not None and closed >= alarm.level and self._alarm_over(history, alarm):
            finding = Finding.OVER
        if not self.standing.meet(finding):
            return False
        if self.state == "leaking":
            confirmed = [number for number in range(len(self.rulings)) if self._confirmed >> number & 1]
            number = max(confirmed, key=self._growth_at)
            ruling = self.rulings[number]
            if ruling is not None:
                self.alarm = Alarm(number, ruling)
        elif self.state == "recovering" and self.alarm is not None:
            column = history.levels[self.alarm.level].columns[self.series.name]
            self.series = self.series._replace(floor=max((value for value in column if value == value), default=None))
            self.over = setting.elapsed
            self._forget_rulings()
        return True

    @property
    def suspected(self) -> bool:
        """Whether some window calls it a leak, confirmed or not."""
        return any(self.streaks)

    def leaked(self) -> float:
        """What the last alarm's growth came to until it was over."""
        alarm, floor = self.alarm, self.series.floor
        if alarm is None:
            return 0.0
        if alarm.ruling.shape is None or floor is None:
            return alarm.ruling.growth
        return max(alarm.ruling.growth, floor - alarm.ruling.shape.first)

    def held(self, history: History) -> float:
        """What is left of a leak that has stopped; 0 where nothing leaked, or most of it was given back."""
        alarm = self.alarm
        if self.state != "stable" or alarm is None or alarm.ruling.shape is None or self.given_back:
            return 0.0
        values = history.levels[0].columns[self.series.name]
        latest = next((value for value in reversed(values) if value == value), 0.0)
        left, leaked = latest - alarm.ruling.shape.first, self.leaked()
        return min(left, leaked) if left >= GIVEN_BACK * leaked else 0.0

    def worst_ruling(self) -> Ruling | None:
        """The ruling that explains the state best: the worst finding, among equals the growth that matters most."""
        rank = {Finding.LEAK: 2, Finding.GROWTH: 1}

        def weight(ruling: Ruling) -> tuple[int, float, float]:
            return rank.get(ruling.finding, 0), ruling.growth / ruling.material, ruling.duration

        return max((ruling for ruling in self.rulings if ruling is not None), key=weight, default=None)

    def verdict(self, history: History, setting: Setting, limit: float | None, rss_rate: float = 0.0) -> Verdict:
        """What to say of this channel now.

        Args:
            rss_rate: bytes per second by which resident memory grows, which is what runs into the limit; 0 if it does not (yet).
        """
        channel, state, ruling = self.series.channel, self.state, self.worst_ruling()
        if state == "leaking" and self.alarm is not None:
            return self._leaking(self.alarm, ruling, setting, limit, rss_rate)
        if history.samples < MIN_SAMPLES and state == "warming-up":
            return Verdict(channel, state, limit=limit, reason=reasons.too_few(history.samples, MIN_SAMPLES))
        if ruling is None and state == "recovering" and self.alarm is not None:
            since_s = setting.elapsed - self.over
            reason = reasons.recovering(channel, self.leaked(), given_back=self.given_back, since_s=since_s)
            return Verdict(channel, state, limit=limit, reason=reason)
        held = self.held(history)
        if held and self.alarm is not None:
            reason = reasons.stopped(channel, held, setting.elapsed - self.over)
            since = self.alarm.ruling.since
            return Verdict(channel, state, since=since, grown=self.leaked(), limit=limit, reason=reason, held=held)
        if ruling is None and self.series.bound is not None:
            return Verdict(channel, state, limit=limit, reason=reasons.bounded(channel, self.series.bound.reason))
        if ruling is None:
            early: State = "warming-up" if state == "stable" else state
            return Verdict(channel, early, limit=limit, reason=reasons.too_rare(channel))
        direction: Direction = "stable"
        if ruling.finding is not Finding.FLAT:
            direction = "increasing"
        elif ruling.growth < -QUICK_SHARE * ruling.material:
            direction = "decreasing"
        if state == "recovering" and self.alarm is not None:
            since_s = setting.elapsed - self.over
            reason = reasons.recovering(channel, self.leaked(), given_back=self.given_back, since_s=since_s)
        elif ruling.finding is not Finding.FLAT:
            reason = reasons.growing(channel, ruling)
        elif state == "growing":
            reason = reasons.settling(channel, ruling, self.series.bound.reason if self.series.bound else None)
        else:
            reason = reasons.harmless(channel, ruling, self.series.bound.reason if self.series.bound else None)
        # A rate has an interval where somebody looked closer than "too small to matter".
        low, high = (None, None) if state == "stable" and ruling.why is Why.SMALL else _interval(ruling)
        return Verdict(
            channel, state, direction, ruling.rate, low, high, since=ruling.since, grown=ruling.growth, limit=limit, reason=reason
        )

    def _leaking(self, alarm: Alarm, ruling: Ruling | None, setting: Setting, limit: float | None, rss_rate: float) -> Verdict:
        if ruling is None or ruling.finding is not Finding.LEAK:
            ruling = alarm.ruling
        low, high = _interval(ruling)
        exhausted = None
        if setting.headroom is not None and not self.series.countable and ruling.rate > 0.0:
            exhausted = max(0.0, setting.headroom) / max(ruling.rate, rss_rate)
        return Verdict(
            self.series.channel,
            "leaking",
            "increasing",
            ruling.rate,
            low,
            high,
            since=ruling.since,
            grown=ruling.growth,
            limit=limit,
            exhausted_in_s=exhausted,
            reason=reasons.leaking(self.series.channel, ruling, low, high, exhausted),
            severity="warning",
        )

    def _growth_at(self, number: int) -> float:
        ruling = self.rulings[number]
        return ruling.growth if ruling is not None else 0.0

    def _forget_rulings(self) -> None:
        self.rulings = []
        self.streaks = []
        self._rising = self._confirmed = 0

    def _finding(self, history: History) -> Finding:
        if self._confirmed:
            return Finding.LEAK
        if self._rising:
            return Finding.GROWTH
        return Finding.SHORT if history.samples < MIN_SAMPLES else Finding.FLAT

    def _judge_level(self, history: History, number: int, setting: Setting) -> None:
        while len(self.rulings) <= number:
            self.rulings.append(None)
            self.streaks.append(0)
        ruling = self.rulings[number] = rule(history, number, self.series, setting)
        bit = 1 << number
        if ruling is None or ruling.finding is Finding.FLAT:
            self.streaks[number] = 0
            self._rising &= ~bit
            self._confirmed &= ~bit
            return
        self._rising |= bit
        self.streaks[number] = self.streaks[number] + 1 if ruling.finding is Finding.LEAK else 0
        if self.streaks[number] >= confirmations(number, setting):
            self._confirmed |= bit
        else:
            self._confirmed &= ~bit

    def _alarm_over(self, history: History, alarm: Alarm) -> bool:
        level = history.levels[alarm.level]
        values, elapsed = level.columns[self.series.name], level.columns["elapsed"]
        if alarm.ruling.why is Why.DAILY:
            kept = [i for i, value in enumerate(values) if value == value]
            daily = compare_days([elapsed[i] for i in kept], [values[i] for i in kept])
            self.given_back = False
            return daily is not None and daily.recent < OVER_SHARE * alarm.ruling.rate
        half = _latter_half(values)
        for coarser in history.levels[alarm.level + 1 :]:
            if len(half) >= MIN_BUCKETS:
                break
            # A channel that is read rarely has few values in so short a time; the same in a longer one.
            values, elapsed = coarser.columns.get(self.series.name, array("d")), coarser.columns["elapsed"]
            half = _latter_half(values)
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


def _latter_half(values: Sequence[float]) -> list[int]:
    """Places of what was read in the later half of a level's window."""
    return [place for place in range(max(0, len(values) - BUCKETS // 2), len(values)) if values[place] == values[place]]


def _interval(ruling: Ruling) -> tuple[float | None, float | None]:
    """The 95 % interval of a ruling's rate."""
    if ruling.shape is None:
        return None, None
    narrow, wide = RATE_FLOORS
    part = max(narrow, wide / max(1.0, ruling.growth / ruling.material) ** 0.5)
    half = max(part * abs(ruling.rate), RATE_WIDENING * T_95 * ruling.shape.rate_error)
    return ruling.rate - half, ruling.rate + half


def confirmations(number: int, setting: Setting) -> int:
    """How many windows in a row level *number* must agree on: never fewer than two; a block of samples where a fill
    of half a minute must not pass for a leak."""
    return max(CONFIRMATIONS, CONFIRMING_SAMPLES >> number) if setting.scale < 1.0 else CONFIRMATIONS
