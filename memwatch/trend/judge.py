"""Is the growth in one window a leak?  Every condition, its threshold, and where the threshold comes from.

Law: pure and total: a shape and its circumstances in, a ruling with its reason out.  Growth is a leak only if every
condition holds; the first that fails names the harmless explanation.
"""

from __future__ import annotations

from enum import Enum
from math import isnan, log
from typing import NamedTuple

from memwatch.trend.states import Finding
from memwatch.trend.statistics import Shape

MIB = 2.0**20


class Why(Enum):
    """Why a window's growth is what it is: the reason behind a ruling."""

    LEAK = "passed every test"
    DAILY = "grew from day to day"
    SMALL = "less than matters"
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
    rising: int
    step: float
    drawdown: float
    straight: float
    """On the better of the two clocks."""
    straight_other: float
    tail: float


LEAK_RULES = Rules(
    material=1.0, steadiness=4.0, steadiness_large=2.4, rising=6, step=0.45, drawdown=0.20, straight=0.95, straight_other=0.85, tail=0.25
)
COUNT_RULES = Rules(
    material=1.0, steadiness=5.0, steadiness_large=4.0, rising=7, step=0.35, drawdown=0.05, straight=0.95, straight_other=0.85, tail=0.5
)
GROWTH_RULES = Rules(
    material=0.4, steadiness=1.5, steadiness_large=1.5, rising=5, step=0.60, drawdown=0.35, straight=0.70, straight_other=0.5, tail=0.0
)


class Circumstances(NamedTuple):
    """What a window is judged against."""

    material: float
    """Growth that matters, in units of the channel."""
    earlier_high: float | None = None
    """The highest level before this window (None: nothing is known)."""
    load_share: float = 0.0
    load_correlation: float = 0.0


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


def material_bytes(duration_s: float, scale: float, base: float, headroom: float | None, growth_limit: float) -> float:
    """Growth in bytes that matters over a window.

    Args:
        scale: 1 for intervals of 5 to 100 s, proportionally less or more outside: time as the sampling sees it.
        base: level at the window's beginning.
        headroom: bytes left to the limit, None without a limit.
    """
    hours = max(duration_s / scale / 3600.0, 1e-9)
    late = min(1.0, max(0.0, log(hours) / log(30.0)))
    fixed = 56.0 + (40.0 - 56.0) * late
    share = 0.5 * (0.12 / 0.5) ** late
    needed = max(fixed * MIB, base * share)
    if headroom is not None and headroom > 0.0:
        needed = max(needed, headroom * 0.12 * (0.03 / 0.12) ** late)
    return min(needed * min(1.0, scale), FAST_SHARE * growth_limit * duration_s) if scale < 1.0 else min(
        needed, FAST_SHARE * growth_limit * duration_s
    )


FAST_SHARE = 0.6
"""A window that grew this part of what `growth_limit` allows is material however short it is."""


def material_count(duration_s: float, scale: float, base: float, most: float) -> float:
    """As `material_bytes`, for exact counts: *most* is more than a pool of that resource usually holds."""
    return max(12.0, most * min(1.0, scale), 0.5 * base * min(1.0, scale))


def judge(shape: Shape, circumstances: Circumstances, rules: Rules) -> Why:
    """Why *shape* is not a leak by *rules*, or `Why.LEAK`."""
    needed = circumstances.material * rules.material
    if shape.growth < needed:
        return Why.SMALL
    if shape.largest_step > rules.step:
        return Why.STEP
    if shape.drawdown > rules.drawdown:
        return Why.FELL
    excess = min(1.0, shape.growth / needed - 1.0)
    steadiness = rules.steadiness + (rules.steadiness_large - rules.steadiness) * excess
    if shape.steadiness < steadiness or shape.rising < rules.rising:
        return Why.UNSTEADY
    time, work = shape.straight_time, shape.straight_work
    better, other = (time, time) if isnan(work) else (max(time, work), min(time, work))
    if better < rules.straight or other < rules.straight_other or shape.tail < rules.tail:
        return Why.SATURATING
    if shape.load_rise > 1.4 and (shape.growth < 2.5 * needed or shape.load_rise > 2.0):
        return Why.LOAD
    if circumstances.load_share >= 0.4 and circumstances.load_correlation > 0.3:
        return Why.LOAD
    high = circumstances.earlier_high
    if high is not None and shape.last - high < 0.5 * needed:
        return Why.RETURNING
    return Why.LEAK
