"""What a window of one series looks like: growth, steadiness, straightness, what load explains.  No opinions here.

Law: a function here takes numbers and returns numbers; thresholds live in `judge`.  Everything is computed on
differences from the window's own beginning, because a textbook slope on epoch seconds is numerically wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import inf, nan, sqrt
from typing import NamedTuple

BLOCKS = 8
"""A window is cut into this many blocks: seven increments give a sign test (6 of 7: p = 0.06) and a t-test with 6 degrees of
freedom, and leave eight buckets a block in a full window (leak-detection literature uses 5 to 10; the choice is a guess)."""

LEAST_ACTIVE = 4
"""Growth that fills the window's last four increments can be judged; with fewer, a shorter window can do it better."""

LEAST_TRIMMED = 32
"""Readings a window must have for a flat beginning to be told from two that happen to be equal (four a block; guess)."""

FLAT_PART = 0.06
"""Blocks that differ by less than this part of the whole growth are before the growth (guess)."""

T_95 = 2.447
"""Student's t, 95 % two-sided, for the 6 degrees of freedom of a line through `BLOCKS` points."""


class Shape(NamedTuple):
    """A window of one series, seen as `BLOCKS` lower quartiles."""

    start: float
    """Centre of the first block that grows, seconds since the first sample."""
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
    active: int
    """How many increments the growth spans: 7, or fewer where the window begins before the growth."""
    falling: int
    """How many of them are not upwards."""
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
    """Growth over the last half of *clock*, over a straight line's; inf where the clock stood still."""
    begin, end = (clock[0] + clock[1]) / 2, (clock[-1] + clock[-2]) / 2
    low, high = (levels[0] + levels[1]) / 2, (levels[-1] + levels[-2]) / 2
    if end <= begin or high <= low:
        return inf
    middle = (begin + end) / 2
    after = next(i for i in range(1, len(clock)) if clock[i] >= middle)
    span = clock[after] - clock[after - 1]
    part = (middle - clock[after - 1]) / span if span > 0.0 else 1.0
    centre = levels[after - 1] + part * (levels[after] - levels[after - 1])
    return (high - centre) / ((high - low) / 2)


def onset(levels: Sequence[float]) -> int:
    """The block in which growth begins: the last of the first half before which, and in which, the level is still flat."""
    flat = FLAT_PART * (levels[-1] - levels[0])
    low = high = levels[0]
    begin = 0
    for block in range(1, BLOCKS - LEAST_ACTIVE):
        low, high = min(low, levels[block]), max(high, levels[block])
        if high - low > flat:
            break
        begin = block
    return begin


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
    done = None if work is None else [sum(work[a:b]) / (b - a) for a, b in pieces]
    load_rise = nan
    if done is not None:
        early = (done[2] - done[0]) / (moments[2] - moments[0])
        late = (done[7] - done[5]) / (moments[7] - moments[5])
        load_rise = late / early if early > 0.0 else nan
    begin = onset(levels) if count >= LEAST_TRIMMED else 0
    if begin:
        levels, moments = levels[begin:], moments[begin:]
        done = None if done is None else done[begin:]
    increments = [after - before for before, after in itertools.pairwise(levels)]
    active = len(increments)
    growth = levels[-1] - levels[0]
    upward = sum([step for step in increments if step > 0.0])
    mean = growth / active
    spread = sqrt(sum([(step - mean) ** 2 for step in increments]) / (active - 1) / active)
    highest, fall = levels[0], 0.0
    for level in levels:
        if level > highest:
            highest = level
        elif highest - level > fall:
            fall = highest - level
    rate, error = slope(moments, levels)
    return Shape(
        start=moments[0],
        end=moments[-1],
        first=levels[0],
        last=levels[-1],
        growth=growth,
        rate=rate,
        rate_error=error,
        steadiness=mean / spread if spread > 0.0 else inf if mean > 0.0 else 0.0,
        active=active,
        falling=sum([step <= 0.0 for step in increments]),
        largest_step=max(increments) / upward if upward > 0.0 else 1.0,
        drawdown=fall / growth if growth > 0.0 else inf,
        straight_time=straightness(moments, levels),
        straight_work=nan if done is None else straightness(done, levels),
        tail=increments[-1] / mean if mean > 0.0 else 0.0,
        load_rise=load_rise,
        times=tuple(moments),
        levels=tuple(levels),
    )


class LoadFit(NamedTuple):
    """What load has to do with the growth of a window."""

    share: float = 0.0
    """Part of the growth that regression on the load takes away, both freed of their own straight lines."""
    correlation: float = 0.0
    """Of load and level, freed of their straight lines, so that a load that merely rises does not take the blame for a leak."""
    misfit: float = inf
    """Residual of the better straight clock (time or work) over the residual of a fit on load alone: small is a leak."""


def explained_by_load(times: Sequence[float], work: Sequence[float], values: Sequence[float]) -> LoadFit:
    """How much of the growth goes with the load (work per second at each reading)."""
    count = len(times)
    if count < 12:
        return LoadFit()
    loads = []
    for i in range(count):
        a, b = max(0, i - 1), min(count - 1, i + 1)
        span = times[b] - times[a]
        loads.append((work[b] - work[a]) / span if span > 0.0 else 0.0)
    by_time, by_work, by_load = _residual(times, values), _residual(work, values), _residual(loads, values)
    misfit = min(by_time[1], by_work[1]) / by_load[1] if by_load[1] > 0.0 else inf
    slope_v, slope_l = by_time[0], _residual(times, loads)[0]
    centre, mean_l, mean_v = sum(times) / count, sum(loads) / count, sum(values) / count
    sll = svv = slv = 0.0
    for time, load, value in zip(times, loads, values, strict=True):
        dl = load - mean_l - slope_l * (time - centre)
        dv = value - mean_v - slope_v * (time - centre)
        sll += dl * dl
        svv += dv * dv
        slv += dl * dv
    if sll <= 0.0 or svv <= 0.0 or slope_v <= 0.0:
        return LoadFit(misfit=misfit)
    return LoadFit((slv / sll) * slope_l / slope_v, slv / sqrt(sll * svv), misfit)


def _residual(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope and residual sum of squares of a line."""
    count = len(xs)
    mean_x, mean_y = sum(xs) / count, sum(ys) / count
    sxx = sxy = syy = 0.0
    for x, y in zip(xs, ys, strict=True):
        dx, dy = x - mean_x, y - mean_y
        sxx += dx * dx
        sxy += dx * dy
        syy += dy * dy
    return (sxy / sxx, max(0.0, syy - sxy * sxy / sxx)) if sxx > 0.0 else (0.0, syy)
