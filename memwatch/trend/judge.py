"""Is the growth in one window a leak?  Every condition, its threshold, and where the threshold comes from.

Law: pure and total: a shape and its circumstances in, a ruling with its reason out.  Growth is a leak only if every
condition holds; the first that fails names the harmless explanation.
"""

from __future__ import annotations

import math
from enum import Enum
from math import isnan, log
from typing import NamedTuple

from memwatch.trend.states import Finding
from memwatch.trend.statistics import BLOCKS, LoadFit, Shape

MIB = 2.0**20


class Why(Enum):
    """Why a window's growth is what it is: the reason behind a ruling."""

    LEAK = "passed every test"
    DAILY = "grew from day to day"
    SMALL = "less than matters"
    SHORT = "for too short a time yet"
    UNSTEADY = "no steady direction"
    STEP = "most of it came at once"
    FELL = "some of it was given back"
    SATURATING = "flattening"
    LOAD = "goes with the load"
    RETURNING = "only back to where it has been"
    ALLOCATOR = "kept by the allocators"
    BOUNDED = "held by a bounded container"


class Rules(NamedTuple):
    """Thresholds of one strictness."""

    material: float
    """Part of the material growth that is needed."""
    steadiness: float
    """Student's t of the increments, for growth that is just material; growth twice as large needs `steadiness_large`."""
    steadiness_large: float
    falling: int
    """Increments that may be downwards, where the growth spans all seven."""
    step: float
    drawdown: float
    straight: float
    """On the better of the two clocks."""
    straight_other: float
    tail: float


LEAK_RULES = Rules(
    material=1.0,
    steadiness=4.5,  # a random walk passes 2.4 in one window of fifty; windows are many (chosen on the development corpus)
    steadiness_large=3.0,
    falling=1,
    step=0.45,
    drawdown=0.20,
    straight=0.95,
    straight_other=0.85,
    tail=0.25,
)
"""For memory at ordinary intervals.  Where nothing else is said, chosen by reasoning and kept because the corpus agreed."""

YOUNG_RULES = LEAK_RULES._replace(straight=0.99)
"""For growth that began when the process did: its last half must have brought as much as its first, but for noise.  Warm-ups and
caches that fill by what they have not seen yet slow down from the start on; leaks do not."""

BRISK_RULES = Rules(
    material=1.0,
    steadiness=5.0,
    steadiness_large=4.0,
    falling=1,
    step=0.35,
    drawdown=0.10,
    straight=0.95,
    straight_other=0.85,
    tail=0.6,
)
"""For intervals under 5 s: a run of a minute has no past to compare with, so that its shape must be plainer
(chosen on bench/accelerated.py)."""

COUNT_RULES = Rules(
    material=1.0,
    steadiness=5.0,
    steadiness_large=4.0,
    falling=0,
    step=0.35,
    drawdown=0.05,
    straight=0.95,
    straight_other=0.85,
    tail=0.5,
)
"""Counts are exact: stricter in shape, looser in size."""

GROWTH_RULES = Rules(
    material=0.4,
    steadiness=1.5,
    steadiness_large=1.5,
    falling=2,
    step=0.60,
    drawdown=0.35,
    straight=0.70,
    straight_other=0.5,
    tail=0.0,
)
"""`growing` is an early notice: it costs a baseline of evidence, not a page at night."""


class Circumstances(NamedTuple):
    """What a window is judged against."""

    material: float
    """Growth that matters, in units of the channel."""
    earlier_high: float | None = None
    """The highest level before this window (None: nothing is known)."""
    load: LoadFit | None = None
    """None where work is not known, or nobody has looked yet."""


class Ruling(NamedTuple):
    """What one window says."""

    finding: Finding
    why: Why
    growth: float
    duration: float
    since: float
    """When the window begins, on the clock of the samples."""
    material: float
    shape: Shape | None = None
    """None where the growth was too small to look closer."""

    @property
    def rate(self) -> float:
        if self.shape is not None:
            return self.shape.rate
        return self.growth / self.duration if self.duration > 0.0 else 0.0


FIXED_MIB = (50.0, 38.0)
"""Growth that matters in any process, over an hour or less and over 30 hours or more; between, by the logarithm of time.
The longer growth has been steady, the less of it is needed (chosen on the development corpus, rounded)."""

BASE_SHARE = (0.42, 0.12)
"""The same as a part of the level it began at: large processes fill large caches."""

BASE_LEAST = 0.04
"""No growth below this part of the base matters on any scale: processes breathe."""

LEAST_BYTES = 2.0 * MIB
"""At intervals under 5 s no growth below this matters either: two arenas of Python's allocator (1 MiB each from 3.10 on), which
become resident page by page while much is freed and new objects are put between the old.  Decides below some 0.3 s."""

ROOM_SHARE = (0.12, 0.03)
"""The same as a part of what is left to the limit: a leak that cannot matter before the next deploy is `growing` ..."""

ROOM_CAP = 2.0
"""... but never more than this many times `FIXED_MIB`: the limit may be the whole machine."""

FAST_SHARE = 0.6
"""A window that grew by this part of what `growth_limit` allows is material however short it is."""

NATIVE_STRETCH = 1.25
"""RSS that grows without the visible heap is fragmentation more often than a leak: it must grow by so much more."""

LOAD_RISE = 1.4
LOAD_RISE_ALWAYS = 2.0
LOAD_EXCUSES = 2.5
"""While the load rises by the first, growth below so many times what matters is put down to it; by the second, any growth."""

LOAD_MISFIT = 0.02
"""... unless a straight line in time or work leaves this part of what the load leaves unexplained."""

LOAD_SHARE = 0.4
LOAD_CORRELATION = 0.3
"""Growth of which regression on the load takes away this share, at this correlation, is put down to the load."""

NEW_HIGH = 0.5
"""Part of what matters by which growth must rise above everything that was before the window."""

COUNT_LEAST = 12.0
"""Counts that matter at the shortest intervals: two thirds of 20 in 45 s (a leak of one every two seconds)."""

COUNT_SHARE = 0.5


def material_bytes(duration_s: float, scale: float, base: float, headroom: float | None, growth_limit: float) -> float:
    """Growth in bytes that matters over a window.

    Args:
        scale: 1 for intervals of 5 to 100 s, proportionally less or more outside: time as the sampling sees it.
        base: level at the window's beginning.
        headroom: bytes left to the limit, None without a limit.
        growth_limit: bytes per second.
    """
    hours = max(duration_s / scale / 3600.0, 1e-9)
    late = min(1.0, max(0.0, log(hours) / log(30.0)))
    fixed = (FIXED_MIB[0] + (FIXED_MIB[1] - FIXED_MIB[0]) * late) * MIB
    needed = max(fixed, base * between(BASE_SHARE, late))
    if headroom is not None:
        needed = max(needed, min(headroom * between(ROOM_SHARE, late), ROOM_CAP * fixed))
    return max(
        min(needed * min(1.0, scale), FAST_SHARE * growth_limit * duration_s),
        BASE_LEAST * base,
        LEAST_BYTES if scale < 1.0 else 0.0,
    )


def between(ends: tuple[float, float], part: float) -> float:
    """Interpolate geometrically."""
    return ends[0] * math.pow(ends[1] / ends[0], part)


def material_count(scale: float, base: float, most: float) -> float:
    """As `material_bytes`, for exact counts: *most* is more than a pool of that resource usually holds."""
    return max(COUNT_LEAST, min(1.0, scale) * max(most, COUNT_SHARE * base))


FEWER = {7: 1.0, 6: 1.08, 5: 1.25, 4: 1.6}
"""Student's t at the same significance (0.2 %, one-sided) with fewer increments: 4.3, 4.8, 5.9 and 7.2 ... over 4.3."""


def judge(shape: Shape, circumstances: Circumstances, rules: Rules) -> Why:
    """Why *shape* is not a leak by *rules*, or `Why.LEAK`."""
    needed = circumstances.material * rules.material
    if shape.growth < needed:
        return Why.SMALL
    if shape.largest_step > rules.step * max(1.0, 5.0 / shape.active):
        return Why.STEP
    if shape.drawdown > rules.drawdown:
        return Why.FELL
    time, work = shape.straight_time, shape.straight_work
    better, other = (time, time) if isnan(work) else (max(time, work), min(time, work))
    if better < rules.straight or other < rules.straight_other or shape.tail < rules.tail:
        return Why.SATURATING
    excess = min(1.0, shape.growth / needed - 1.0)
    steadiness = rules.steadiness + (rules.steadiness_large - rules.steadiness) * excess
    falling = rules.falling if shape.active == BLOCKS - 1 else rules.falling - 1
    if shape.steadiness < steadiness * FEWER[shape.active] or shape.falling > max(0, falling):
        return Why.UNSTEADY
    load = circumstances.load
    rising = shape.load_rise > LOAD_RISE and (load is None or load.misfit > LOAD_MISFIT)
    if rising and (shape.growth < LOAD_EXCUSES * needed or shape.load_rise > LOAD_RISE_ALWAYS):
        return Why.LOAD
    if load is not None and load.share >= LOAD_SHARE and load.correlation > LOAD_CORRELATION:
        return Why.LOAD
    high = circumstances.earlier_high
    if high is not None and shape.last - high < NEW_HIGH * needed:
        return Why.RETURNING
    return Why.LEAK
