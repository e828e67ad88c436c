"""One window of one channel: from the buckets of a level to a ruling.

Law: everything a ruling depends on is in the history and in the setting; nothing is kept from one window to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memwatch.trend.days import MIN_SPAN_S, compare_days
from memwatch.trend.history import BUCKETS, History, Level
from memwatch.trend.judge import (
    BRISK_RULES,
    COUNT_RULES,
    GROWTH_RULES,
    LEAK_RULES,
    LOAD_RISE,
    NATIVE_STRETCH,
    YOUNG_RULES,
    Circumstances,
    Rules,
    Ruling,
    Why,
    judge,
    material_bytes,
    material_count,
)
from memwatch.trend.kinds import CARRIES, Growths, kept_by_allocators
from memwatch.trend.states import Finding
from memwatch.trend.statistics import BLOCKS, Shape, explained_by_load, measure

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

PLAIN_MATERIAL = 2.0
PLAIN_RATE = 0.8
"""Beyond doubt: twice what matters, at nearly the rate that is critical (guess)."""

YOUNG_SHARE = 0.4
"""Growth that began in this first part of the process's life may be its warm-up (chosen on the development corpus)."""

QUICK_SHARE = 0.32
"""Windows whose ends differ by less of what matters are not looked at further: 0.8 of what `growing` needs."""

MOST = {"fds": 64.0, "sockets": 64.0, "threads": 64.0, "tasks": 64.0, "children": 24.0}
"""Growth of a count that matters at ordinary intervals: pools of connections and threads hold up to tens (executors stop at
32, anyio at 40), so that a pool which fills is below it (guess)."""


SPAN_LEAST = 0.33
"""Readings of a series that span a smaller part of a window say nothing about it (guess)."""


class Setting(NamedTuple):
    """What a track is told about the process at a sample."""

    elapsed: float
    scale: float
    growth_limit: float
    headroom: float | None
    """Bytes of RSS left to the limit."""
    work: str | None
    """The clock of work there is ("work", "cpu"), if any."""


class Bound(NamedTuple):
    """Growth up to *ceiling* has an explanation."""

    ceiling: float
    reason: str


class Series(NamedTuple):
    """What is judged: a channel, the series of the history that holds it, and whether it is an exact count."""

    channel: str
    name: str
    countable: bool
    floor: float | None = None
    """The level of an earlier alarm (or life), above which new growth must rise."""
    bound: Bound | None = None


def rule(history: History, number: int, series: Series, setting: Setting) -> Ruling | None:
    """Judge the window that level *number* holds now; None where it says nothing (too few buckets, or too few readings).

    Cost: about 2 us where nothing grew (95 % of calls), 60 us for a full test.
    """
    level = history.levels[number]
    values = level.columns.get(series.name)
    if values is None or len(values) < MIN_BUCKETS:
        return None
    count = len(values)
    first = count // 8 if level.closed <= BUCKETS else 0
    samples = (count - first) << number
    if samples < (NOTICE_SAMPLES if setting.scale < 1.0 else MIN_BUCKETS):
        return None
    elapsed = level.columns["elapsed"]
    kept: Sequence[int] = range(first, count)
    eighth = len(kept) // 8
    if level.sparse(series.name):
        kept = [i for i in kept if values[i] == values[i]]
        if len(kept) < MIN_BUCKETS:
            return None
        eighth = len(kept) // 8
        head, tail = min([values[i] for i in kept[:eighth]]), min([values[i] for i in kept[-eighth:]])
    else:
        head, tail = min(values[first : first + eighth]), min(values[-eighth:])
    duration, since = elapsed[kept[-1]] - elapsed[kept[0]], level.columns["stamp"][kept[0]]
    material = material_growth(series, duration, head, setting)
    if tail - head < QUICK_SHARE * material and duration < MIN_SPAN_S:
        return Ruling(Finding.FLAT, Why.SMALL, tail - head, duration, since, material)
    times = [elapsed[i] for i in kept]
    readings = [values[i] for i in kept]
    work = _work(level, kept, setting)
    shape = measure(times, work, readings)
    if shape.active < BLOCKS - 1:
        duration = times[-1] - shape.start
        since = level.columns["stamp"][kept[len(kept) * (BLOCKS - 1 - shape.active) // BLOCKS]]
        material = material_growth(series, duration, shape.first, setting)
        if setting.scale < 1.0:
            samples = samples * (shape.active + 1) // BLOCKS
    grown = growths(level, first) if series.name == "anonymous" else None
    if grown is not None and grown.heap is not None and grown.heap < CARRIES * shape.growth:
        material *= NATIVE_STRETCH
    fit = explained_by_load(times, work, readings) if work is not None and shape.load_rise > LOAD_RISE else None
    circumstances = Circumstances(material, earlier_high(history, number, first, series), fit)
    why = judge(shape, circumstances, GROWTH_RULES)
    if series.bound is not None and shape.last <= series.bound.ceiling:
        return Ruling(Finding.FLAT, Why.BOUNDED, shape.growth, duration, since, material, shape)
    if grown is not None and shape.growth >= QUICK_SHARE * material and kept_by_allocators(grown):
        return Ruling(Finding.FLAT, Why.ALLOCATOR, shape.growth, duration, since, material, shape)
    finding = Finding.FLAT
    if why is Why.LEAK:
        finding = Finding.GROWTH
        if samples < MIN_SAMPLES and not _plain(shape, samples, material, series, setting):
            why = Why.SHORT
        else:
            rules = _rules(series, setting, young=shape.start < YOUNG_SHARE * setting.elapsed)
            why = judge(shape, circumstances, rules)
            if why is Why.LEAK and work is not None:
                fit = fit or explained_by_load(times, work, readings)
                why = judge(shape, circumstances._replace(load=fit), rules)
            finding = Finding.LEAK if why is Why.LEAK else Finding.GROWTH
    if finding is not Finding.LEAK and not series.countable:
        daily = compare_days(times, readings)
        if daily is not None and daily.steady and daily.rate * duration >= material:
            finding, why = Finding.LEAK, Why.DAILY
            shape = shape._replace(rate=daily.rate, rate_error=daily.rate_error, growth=daily.rate * duration)
    if finding is not Finding.FLAT and series.channel == "retained":
        finding, why = Finding.FLAT, Why.ALLOCATOR
    return Ruling(finding, why, shape.growth, duration, since, material, shape)


def _rules(series: Series, setting: Setting, *, young: bool) -> Rules:
    if series.countable:
        return COUNT_RULES
    if setting.scale < 1.0:
        return BRISK_RULES
    return YOUNG_RULES if young else LEAK_RULES


def _plain(shape: Shape, samples: int, material: float, series: Series, setting: Setting) -> bool:
    """Whether growth is so large and fast that fewer samples will do: minutes may be all there is before the limit."""
    return (
        setting.scale >= 1.0
        and not series.countable
        and samples >= PLAIN_SAMPLES
        and shape.duration >= PLAIN_S
        and shape.growth >= PLAIN_MATERIAL * material
        and shape.rate >= PLAIN_RATE * setting.growth_limit
    )


def _work(level: Level, kept: Sequence[int], setting: Setting) -> list[float] | None:
    """The clock of work at the buckets *kept*; None if there is none all along."""
    clock = level.columns.get(setting.work) if setting.work else None
    if clock is None:
        return None
    work = [clock[i] for i in kept]
    return None if any(value != value for value in work) else work


def material_growth(series: Series, duration_s: float, base: float, setting: Setting) -> float:
    """Growth of *series* that matters over *duration_s*, in its units."""
    if series.countable:
        return material_count(setting.scale, base, MOST[series.channel])
    return material_bytes(duration_s, setting.scale, base, setting.headroom, setting.growth_limit)


def earlier_high(history: History, number: int, first: int, series: Series) -> float | None:
    """The highest level before bucket *first* of level *number* that coarser levels remember, or the floor."""
    start = history.levels[number].columns["elapsed"][first]
    highest = series.floor
    for level in history.levels[number + 1 :]:
        values = level.columns.get(series.name)
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


def growths(level: Level, first: int) -> Growths:
    """How much every memory series grew from bucket *first* of *level* to now.

    A series that is read rarely was last read a while ago: what it grew by is told for the whole window at the pace of its
    readings, and not at all where they span less than a third of it.
    """
    elapsed = level.columns["elapsed"]
    duration = elapsed[-1] - elapsed[first]

    def growth(name: str) -> float | None:
        column = level.columns.get(name)
        if column is None:
            return None
        kept = [i for i in range(first, len(column)) if column[i] == column[i]]
        if len(kept) < 2:
            return None
        part = max(1, len(kept) // 8)
        head, tail = kept[:part], kept[-part:]
        span = sum([elapsed[i] for i in tail]) / part - sum([elapsed[i] for i in head]) / part
        if span <= 0.0 or span < SPAN_LEAST * duration:
            return None
        return (min([column[i] for i in tail]) - min([column[i] for i in head])) * duration / span

    return Growths(
        rss=growth("anonymous"),
        heap=growth("heap"),
        blocks=growth("blocks"),
        large_blocks=growth("large_blocks"),
        native=growth("native"),
        retained=growth("retained"),
    )
