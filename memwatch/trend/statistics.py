"""What a window of one series looks like: growth, steadiness, straightness, what load explains.  No opinions here.

Law: a function here takes numbers and returns numbers; thresholds live in `judge`.  Everything is computed on
differences from the window's own beginning, because a textbook slope on epoch seconds is numerically wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

BLOCKS = 8
"""A window is cut into this many blocks: seven increments give a sign test (6 of 7: p = 0.06) and a t-test with 6 degrees of
freedom, and leave eight buckets a block in a full window (leak-detection literature uses 5 to 10; the choice is a guess)."""

T_95 = 2.447
"""Student's t, 95 % two-sided, for the 6 degrees of freedom of a line through `BLOCKS` points."""


class Shape(NamedTuple):
    """A window of one series, seen as `BLOCKS` lower quartiles."""

    start: float
    """Centre of the first block, seconds since the first sample."""
    end: float
    first: float
    """Level of the first block."""
    last: float
    growth: float
    rate: float
    """Least squares through the blocks, per second."""
    rate_error: float
    """Standard error of `rate`."""
    steadiness: float
    """Mean of the increments over the standard error of that mean (Student's t against no growth)."""
    rising: int
    """How many of the increments are upwards."""
    largest_step: float
    """The largest increment's part of all upward movement."""
    drawdown: float
    """The largest fall below an earlier block, as part of the growth."""
    straight_time: float
    """Growth of the last half over what a straight line in time would have grown: 1 is straight, 0 has stopped."""
    straight_work: float
    """The same with work done in place of time; NaN where work is not known."""
    tail: float
    """Growth of the last block over an average block's: 0 has stopped just now."""
    load_rise: float
    """Work per second in the last quarter over that in the first."""
    times: tuple[float, ...]
    levels: tuple[float, ...]

    @property
    def duration(self) -> float:
        return self.end - self.start


def lower_quartile(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 4]


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Fit a line; return its slope and the slope's standard error (0, inf where x does not vary)."""
    count = len(xs)
    mean_x = sum(xs) / count
    mean_y = sum(ys) / count
    sxx = sxy = syy = 0.0
    for x, y in zip(xs, ys, strict=True):
        dx, dy = x - mean_x, y - mean_y
        sxx += dx * dx
        sxy += dx * dy
        syy += dy * dy
    if sxx <= 0.0 or count < 3:
        return 0.0, inf
    fitted = sxy / sxx
    residual = max(0.0, syy - fitted * sxy)
    return fitted, sqrt(residual / (count - 2) / sxx)


def straightness(clock: Sequence[float], levels: Sequence[float]) -> float:
    """Growth over the last half of *clock*, over a straight line's; inf where the clock stood still in one half."""
    begin, middle, end = (clock[0] + clock[1]) / 2, (clock[3] + clock[4]) / 2, (clock[6] + clock[7]) / 2
    low, centre, high = (levels[0] + levels[1]) / 2, (levels[3] + levels[4]) / 2, (levels[6] + levels[7]) / 2
    expected = (high - low) * (end - middle) / (end - begin) if end > begin else 0.0
    return (high - centre) / expected if expected > 0.0 else inf


def measure(times: Sequence[float], work: Sequence[float] | None, values: Sequence[float]) -> Shape:
    """Describe a window.

    Args:
        times, values: at least `BLOCKS` readings, oldest first; times increase.
        work: a cumulative count of work done at those times, or None.

    Cost: O(n log n); about 35 us for 64 readings (bench/score.py prints the whole detector's cost).
    """
    count = len(values)
    cuts = [count * block // BLOCKS for block in range(BLOCKS + 1)]
    pieces = list(itertools.pairwise(cuts))
    levels = [lower_quartile(values[a:b]) for a, b in pieces]
    moments = [sum(times[a:b]) / (b - a) for a, b in pieces]
    increments = [after - before for before, after in itertools.pairwise(levels)]
    growth = levels[-1] - levels[0]
    upward = sum(step for step in increments if step > 0.0)
    mean = growth / (BLOCKS - 1)
    spread = sqrt(sum((step - mean) ** 2 for step in increments) / (BLOCKS - 2) / (BLOCKS - 1))
    highest, fall = levels[0], 0.0
    for level in levels:
        if level > highest:
            highest = level
        elif highest - level > fall:
            fall = highest - level
    rate, error = slope(moments, levels)
    straight_work = load_rise = float("nan")
    if work is not None:
        done = [sum(work[a:b]) / (b - a) for a, b in pieces]
        straight_work = straightness(done, levels)
        early = (done[2] - done[0]) / (moments[2] - moments[0])
        late = (done[7] - done[5]) / (moments[7] - moments[5])
        load_rise = late / early if early > 0.0 else float("nan")
    return Shape(
        start=moments[0],
        end=moments[-1],
        first=levels[0],
        last=levels[-1],
        growth=growth,
        rate=rate,
        rate_error=error,
        steadiness=mean / spread if spread > 0.0 else inf if mean > 0.0 else 0.0,
        rising=sum(step > 0.0 for step in increments),
        largest_step=max(increments) / upward if upward > 0.0 else 1.0,
        drawdown=fall / growth if growth > 0.0 else inf,
        straight_time=straightness(moments, levels),
        straight_work=straight_work,
        tail=increments[-1] / mean if mean > 0.0 else 0.0,
        load_rise=load_rise,
        times=tuple(moments),
        levels=tuple(levels),
    )


def explained_by_load(times: Sequence[float], work: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """How much of the growth goes with the load: (share of the growth, partial correlation).

    Load is work per second at each reading.  Both load and values are first freed of their own straight lines, so that a
    load that merely rises while a leak goes on does not take the blame for it.
    """
    count = len(times)
    if count < 12:
        return 0.0, 0.0
    loads = []
    for i in range(count):
        a, b = max(0, i - 1), min(count - 1, i + 1)
        span = times[b] - times[a]
        loads.append((work[b] - work[a]) / span if span > 0.0 else 0.0)
    centre = sum(times) / count
    xs = [time - centre for time in times]
    sxx = sum(x * x for x in xs)
    if sxx <= 0.0:
        return 0.0, 0.0
    mean_l, mean_v = sum(loads) / count, sum(values) / count
    slope_l = sum(x * load for x, load in zip(xs, loads, strict=True)) / sxx
    slope_v = sum(x * value for x, value in zip(xs, values, strict=True)) / sxx
    sll = svv = slv = 0.0
    for x, load, value in zip(xs, loads, values, strict=True):
        dl = load - mean_l - slope_l * x
        dv = value - mean_v - slope_v * x
        sll += dl * dl
        svv += dv * dv
        slv += dl * dv
    if sll <= 0.0 or svv <= 0.0 or slope_v <= 0.0:
        return 0.0, 0.0
    return (slv / sll) * slope_l / slope_v, slv / sqrt(sll * svv)
