"""What there is to draw of a watched process: its curves, and what happened along them.

Law: pure; from a report alone.  Every picture (page, SVG, dashboard) is drawn from the `Curve` made here, so that they agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from memwatch.model import STATES, Event, Report, Sample, State
from memwatch.report.happenings import happened
from memwatch.report.words import as_of, is_bytes, memory_limit, title, unit, what_runs_out
from memwatch.units import format_left

MEMORY = ("rss", "heap", "native", "retained", "limit")
RESOURCES = ("fds", "sockets", "threads", "tasks", "children")
MARKED = ("pressure", "relief", "alert", "finding", "note", "end")
"""Events that stand beside a curve; verdict changes are its ground."""
MARKS_DRAWN = 200
"""More of them are a fence; the newest are drawn, and the list below a curve has all."""
GAP = 5.0
"""This many times as long as its neighbours, a step between two readings is a time nobody watched."""
NEIGHBOURS = 10
STRETCH = 1.25
"""A fitted line is drawn over this many times as long as the growth took at its rate, if it has lasted so long."""
MOST_AHEAD = 0.5
"""A projection takes at most this much of the time that was measured."""
LIMIT_NEAR = 3.0
"""A limit this many times above the highest reading would press the curve flat: it is told, not drawn, unless it is projected to
be reached within the picture."""


class NothingToDraw(ValueError):
    """Fewer than two readings: there is no curve; the message says so."""


@dataclass(frozen=True, slots=True)
class Series:
    """One channel over the times of its curve; None where it was not read."""

    channel: str
    title: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment."""

    time_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """How long a verdict stood."""

    from_s: float
    until_s: float
    state: State


@dataclass(frozen=True, slots=True)
class Trend:
    """The growth that was fitted: a line with its 95 % interval, through the middle of what was read."""

    channel: str
    from_s: float
    until_s: float
    middle: float
    """Level half way between the two times."""
    rate: float
    rate_low: float
    rate_high: float
    """Units of the channel per second."""

    def at(self, time_s: float, rate: float | None = None) -> float:
        """The line at a time; with *rate* one through the same middle."""
        return self.middle + (self.rate if rate is None else rate) * (time_s - (self.from_s + self.until_s) / 2)


@dataclass(frozen=True, slots=True)
class Projection:
    """Where the growth leads: from the last reading to the limit."""

    channel: str
    from_s: float
    level: float
    until_s: float
    limit: float
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One picture: series over common times."""

    unit: str
    """`bytes` or `count`."""
    times: tuple[float, ...]
    """Unix times; where nobody watched, a moment without any reading stands in between."""
    series: tuple[Series, ...]
    spans: tuple[Span, ...] = ()
    marks: tuple[Mark, ...] = ()
    trend: Trend | None = None
    projection: Projection | None = None
    limit: float | None = None
    draws_limit: bool = False
    until_s: float = 0.0
    """Where the picture ends: behind the last reading if there is a projection."""
    gaps: tuple[int, ...] = ()
    """Places in `times` where nobody watched."""


def memory_curve(report: Report) -> Curve | None:
    """The bytes of a process; None if nothing was read, or too little to draw a line."""
    return _curve(report, MEMORY, "bytes")


def resource_curve(report: Report) -> Curve | None:
    """Its descriptors, threads, tasks and children; None if nothing was read, or too little to draw a line."""
    return _curve(report, RESOURCES, "count")


def curves(report: Report) -> dict[str, Curve]:
    """What a page draws: `memory` and `resources`, where there is enough to draw a line.

    Cost: about a quarter of writing a page (bench/page.py): make them once, and hand them on.
    """
    found = {"memory": memory_curve(report), "resources": resource_curve(report)}
    return {name: curve for name, curve in found.items() if curve is not None}


def _curve(report: Report, channels: Sequence[str], what: str) -> Curve | None:
    samples = [sample for sample in report.history if any(name in sample.values for name in channels)]
    if len(samples) < 2:
        return None
    channel = report.verdict.channel
    wanted = [*channels, channel] if unit(channel) == what and channel not in channels else list(channels)
    times, columns, gaps = _columns(samples, wanted)
    series = tuple(
        Series(name, title(name), tuple(values)) for name, values in columns.items() if any(value is not None for value in values)
    )
    ours = unit(channel) == what
    projection = _projection(report, series, times[-1]) if ours else None
    highest = max(value for one in series if one.channel != "limit" for value in one.values if value is not None)
    limit = memory_limit(report) if what == "bytes" else (report.verdict.limit if ours else None)
    until_s = times[-1]
    if projection is not None:
        until_s = min(projection.until_s, times[-1] + MOST_AHEAD * (times[-1] - times[0]))
    reached = projection is not None and projection.until_s <= until_s
    return Curve(
        unit=what,
        times=times,
        series=tuple(one for one in series if one.channel != "limit"),
        spans=tuple(_spans(report, times[0], times[-1])),
        marks=_marks([*report.events, *_restarts(report.history)], times[0], times[-1]),
        trend=_trend(report, series, times) if ours else None,
        projection=projection,
        limit=limit,
        draws_limit=limit is not None and (reached or limit <= LIMIT_NEAR * highest),
        until_s=until_s,
        gaps=gaps,
    )


def _columns(
    samples: Sequence[Sample], channels: Iterable[str]
) -> tuple[tuple[float, ...], dict[str, list[float | None]], tuple[int, ...]]:
    """Times and values, with an empty moment wherever nobody watched for long."""
    steps = [later.time_s - earlier.time_s for earlier, later in itertools.pairwise(samples)]
    times: list[float] = []
    columns: dict[str, list[float | None]] = {name: [] for name in channels}
    gaps: list[int] = []
    for place, sample in enumerate(samples):
        if times and sample.time_s <= times[-1]:
            continue  # the clock was set back: a picture has one direction
        if place and _is_gap(steps, place - 1):
            gaps.append(len(times))
            times.append((times[-1] + sample.time_s) / 2)
            for values in columns.values():
                values.append(None)
        times.append(sample.time_s)
        for name, values in columns.items():
            values.append(sample.values.get(name))
    return tuple(times), columns, tuple(gaps)


def _is_gap(steps: Sequence[float], place: int) -> bool:
    around = [*steps[max(0, place - NEIGHBOURS) : place], *steps[place + 1 : place + 1 + NEIGHBOURS]]
    if len(around) < 3 or steps[place] <= GAP * min(around):
        return False
    return steps[place] > GAP * sorted(around)[len(around) // 2] and steps[place] > 1.5 * max(around)


def _spans(report: Report, start_s: float, end_s: float) -> Iterator[Span]:
    """The verdict over time.  Before the first change that is known it was warming up, unless changes were pruned away."""
    changes = [
        (event.time_s, cast("State", event.details["state"]))
        for event in report.events
        if event.what == "verdict" and event.details.get("state") in STATES
    ]
    state: State = "warming-up" if changes else report.verdict.state
    at_s = start_s
    for time_s, following in changes:
        if time_s >= end_s:
            break
        if following == state:  # told again, of another channel or with other figures
            continue
        if time_s > at_s:
            yield Span(at_s, time_s, state)
            at_s = time_s
        state = following
    if end_s > at_s:
        yield Span(at_s, end_s, state)


def _marks(events: Iterable[Event], start_s: float, end_s: float) -> tuple[Mark, ...]:
    """What happened within the picture, and a little after: the end comes behind the last reading."""
    events = sorted(events, key=lambda event: event.time_s)
    margin_s = 0.02 * (end_s - start_s)
    found = [
        Mark(min(max(event.time_s, start_s), end_s), event.what, happened(event))
        for event in events
        if event.what in MARKED and start_s - margin_s <= event.time_s <= end_s + margin_s
    ]
    return tuple(found[-MARKS_DRAWN:])


def _restarts(history: Iterable[Sample]) -> Iterator[Event]:
    """Where a watch began anew in the same record: its uptime counts from zero again.  Coarse points have none."""
    before = 0.0
    for sample in history:
        if 0.0 <= sample.uptime_s < before:
            yield Event(sample.time_s, "note", {"note": "the watch was started again"})
        before = sample.uptime_s


def _of(series: Iterable[Series], channel: str) -> Series | None:
    return next((one for one in series if one.channel == channel), None)


def _trend(report: Report, series: Iterable[Series], times: Sequence[float]) -> Trend | None:
    verdict = report.verdict
    drawn = _of(series, verdict.channel)
    if verdict.state not in ("leaking", "growing") or verdict.since is None or drawn is None:
        return None
    from_s = max(verdict.since, times[0])
    if verdict.rate > 0 and verdict.grown > 0:
        # The rate is that of the growth that was measured, which may be the later part of it.
        from_s = max(from_s, times[-1] - STRETCH * verdict.grown / verdict.rate)
    points = [(time_s, value) for time_s, value in zip(times, drawn.values, strict=True) if value is not None and time_s >= from_s]
    if len(points) < 2:
        return None
    until_s = points[-1][0]
    centre_s = (from_s + until_s) / 2
    # The least squares for a line of this slope, wherever the readings lie in the stretch.
    middle = sum(value - verdict.rate * (time_s - centre_s) for time_s, value in points) / len(points)
    low = verdict.rate if verdict.rate_low is None else verdict.rate_low
    high = verdict.rate if verdict.rate_high is None else verdict.rate_high
    return Trend(verdict.channel, from_s, until_s, middle, verdict.rate, low, high)


def _projection(report: Report, series: Iterable[Series], end_s: float) -> Projection | None:
    verdict = report.verdict
    left_s = verdict.exhausted_in_s
    if report.process.fate != "running" or verdict.state not in ("leaking", "growing") or not left_s or not verdict.limit:
        return None
    channel = "rss" if is_bytes(verdict.channel) else verdict.channel
    limit = memory_limit(report) if is_bytes(verdict.channel) else verdict.limit
    drawn = _of(series, channel)
    levels = [value for value in drawn.values if value is not None] if drawn is not None else []
    if not levels or limit is None or levels[-1] >= limit:
        return None
    text = f"out of {what_runs_out(verdict.channel)} {format_left(left_s)}"
    since_s = max(end_s, as_of(report) or end_s)
    return Projection(channel, end_s, levels[-1], since_s + left_s, limit, text)
