"""Which route's requests a growing level follows: a regression whose errors may be a random walk.  Pure.

Law: it takes numbers and returns numbers and one sentence.  Where the readings do not tell routes apart, it says so and blames
none.

The level of memory is regressed on cumulative requests per route, and on time.  What is left over, caches that fill, allocators
that round up, is partly white and partly a random walk; ordinary standard errors are wrong for that by factors.  So the mixture is
estimated (a local level model, by restricted likelihood over a grid), and level and counts go through the same filter, which makes
what is left over white: between plain levels (no walk) and plain differences (nothing but a walk).  Standard errors are then the
larger of the ordinary ones and Newey and West's.

Source: A. C. Harvey, Forecasting, Structural Time Series Models and the Kalman Filter (1989), 3.4 and 4.1, for filter and
likelihood; W. Newey and K. West, Econometrica 55 (1987), for the errors that survive correlation; D. Andrews and J. Monahan,
Econometrica 60 (1992), for whitening before them; S. Holm, Scandinavian Journal of Statistics 6 (1979), for blaming among many.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from operator import mul
from typing import NamedTuple

MOST_COLUMNS = 30
"""Routes that get a coefficient of their own, the busiest; the others share one."""
FEWEST_ROWS = 24
"""Readings below which nothing is said: eight routes, time and the filter leave some fourteen degrees of freedom."""
FEWEST_REQUESTS = 10
FEWEST_ACTIVE = 6
"""A route that was called in fewer windows than this could stand beside growth by chance."""
FEWEST_INFORMATIVE = 5.0
"""Windows that carry a coefficient, counted by their weight; below this one burst decides, and the central limit does not hold."""
FALSE_BLAME = 0.003
"""Chance that a look blames any route wrongly, by design; docs/explanation/attribution.md has what was simulated."""
LEAST_SHARE = 0.1
"""Of the level's growth: a route with less of it may be guilty, but not of this growth."""
MOST_TOGETHER = 4
"""Routes that can be blamed as one; "one of these eight" helps nobody."""
TOGETHER = (0.999, 0.97, 0.85)
"""Correlation above which routes are judged as one: at first those that are one for every purpose (a coefficient of either would
have an error, but which of them has it would be chance), then more where nobody could be blamed so."""
WALKS = (0.0, 0.001, 0.005, 0.02, 0.06, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)
"""The grid: variance of the walk's step over that of step and noise together."""
STEP = 4.5
"""Robust standard deviations of a whitened residual from which on it is a step of the allocator, and not noise."""
STEPS_AT_MOST = 0.1
"""Of the readings; more would be a way of growing."""
ALIASED = 1e-7
AS_LIKELY = 2.7
"""Difference of minus twice the log likelihood up to which a mixture is as good: chi square's 90 % with one degree of freedom."""
LOAD_MATTERS = 1.5
"""Standard errors from which on the requests of a window are taken to have an effect of their own on the level (guess)."""
SLOWING = 0.02
"""Chance of taking a steady leak for a cache that fills."""


class Effect(NamedTuple):
    """What one route, or several that cannot be told apart, does to the level."""

    members: tuple[int, ...]
    """Positions of the routes among the columns given."""
    per_request: float
    low: float
    high: float
    """95 % interval of `per_request`."""
    share: float
    """Part of the level's growth that goes with it; may be outside 0 to 1."""
    blamed: bool


class Attribution(NamedTuple):
    """What a look at the routes found."""

    effects: tuple[Effect, ...] = ()
    """Of the routes that could be judged."""
    note: str | None = None
    """Why nobody is blamed; None where somebody is."""


class _Fit(NamedTuple):
    estimates: list[float]
    errors: list[float]
    informative: list[float]
    freedom: int
    columns: list[list[float]]
    """Whitened."""


def _breathless() -> None:
    pass


def attribute(
    times: Sequence[float],
    counts: Sequence[Sequence[float]],
    levels: Sequence[float],
    *,
    breathe: Callable[[], None] = _breathless,
) -> Attribution:
    """Say which routes' requests the growth of *levels* goes with.

    Args:
        times: seconds, increasing; one for each reading, at most a few hundred.
        counts: for each route, its requests completed until each reading.
        levels: the level at each reading, in bytes or another unit.
        breathe: called after each 0.2 ms of work or less, to let other threads run.

    Returns:
        Effects of the routes called often enough, the blamed ones first, in units of the level per request.

    Cost: O(readings × routes²) 15 to 60 times: 40 ms for 8 routes, 245 ms for 30 (bench/attribution.py --cost).
    """
    count = len(levels)
    if count < FEWEST_ROWS:
        return Attribution(note=f"too few readings since the growth began ({count}, {FEWEST_ROWS} are needed)")
    increments = [[after - before for before, after in itertools.pairwise(column)] for column in counts]
    judged = [
        place
        for place, steps in enumerate(increments)
        if sum(steps) >= FEWEST_REQUESTS and sum([step > 0 for step in steps]) >= FEWEST_ACTIVE
    ]
    judged = sorted(judged, key=lambda place: -sum(increments[place]))[:MOST_COLUMNS]
    if not judged:
        return Attribution(note="no route was called often enough since the growth began")
    others = [place for place in range(len(counts)) if place not in judged and sum(increments[place]) > 0]
    rest = [sum(counts[place][row] for place in others) for row in range(count)] if others else None
    grown = _growth(levels)
    if grown <= 0.0:
        return Attribution(note="the level has not grown")
    groups: list[tuple[int, ...]] = [(place,) for place in judged]
    effects: tuple[Effect, ...] = ()
    note = ""
    before = -1
    for together in TOGETHER:
        columns = [_summed(counts, group) for group in groups]
        nuisance = [list(times)] + ([rest] if rest is not None else [])
        fit = _fit(times, columns + nuisance, levels, breathe)
        if fit is None:
            return Attribution(note="the routes' requests and time cannot be told apart")
        merged = _grouped(groups, fit, together)
        if len(merged) != len(groups):
            groups = merged
            columns = [_summed(counts, group) for group in groups]
            fit = _fit(times, columns + nuisance, levels, breathe)
            if fit is None:
                return Attribution(note="the routes' requests and time cannot be told apart")
        if len(groups) == before:
            continue  # nothing new to try
        before = len(groups)
        found, why = _judged(groups, columns, fit, grown)
        found, why = _confirmed(times, groups, columns, nuisance, levels, found, why, grown, breathe)
        if not effects or any(effect.blamed for effect in found):
            effects, note = found, why
        if any(effect.blamed for effect in effects):
            return Attribution(tuple(sorted(effects, key=lambda effect: (not effect.blamed, -effect.share))), None)
    return Attribution(effects, note)


def _judged(
    groups: Sequence[tuple[int, ...]], columns: Sequence[Sequence[float]], fit: _Fit, grown: float
) -> tuple[tuple[Effect, ...], str]:
    width = student(0.025, fit.freedom)
    tests = sorted(
        (
            fit.estimates[place] / fit.errors[place]
            for place in range(len(groups))
            if 0.0 < fit.errors[place] < math.inf and fit.estimates[place] > 0.0
        ),
        reverse=True,
    )
    # Holm: the largest against all, the next against the others, and none after the first that fails.
    threshold = math.inf
    for rank, test in enumerate(tests):
        needed = student(FALSE_BLAME / (len(groups) - rank), fit.freedom)
        if test < needed:
            break
        threshold = test
    effects = []
    together = ""
    for place, group in enumerate(groups):
        estimate, error = fit.estimates[place], fit.errors[place]
        if not error < math.inf:
            continue  # a mixture of others
        share = estimate * (columns[place][-1] - columns[place][0]) / grown if grown > 0.0 else 0.0
        stands_out = (
            estimate > 0.0
            and error > 0.0
            and estimate / error >= threshold
            and fit.informative[place] >= FEWEST_INFORMATIVE
            and share >= LEAST_SHARE
        )
        blamed = stands_out and len(group) <= MOST_TOGETHER
        if stands_out and not blamed:
            together = f"it goes with requests of {len(group)} routes that go up and down together and cannot be told apart"
        effects.append(Effect(group, estimate, estimate - width * error, estimate + width * error, share, blamed))
    if together:
        return tuple(effects), together
    time = len(groups)
    by_time = fit.estimates[time] / fit.errors[time] if 0.0 < fit.errors[time] < math.inf else 0.0
    if by_time > student(FALSE_BLAME, fit.freedom):
        return tuple(effects), "the growth goes on with time, whatever is requested"
    return tuple(effects), "the requests vary too little, or the level too much, to tell the routes apart"


def _confirmed(
    times: Sequence[float],
    groups: Sequence[tuple[int, ...]],
    columns: Sequence[list[float]],
    nuisance: Sequence[list[float]],
    levels: Sequence[float],
    found: tuple[Effect, ...],
    why: str,
    grown: float,
    breathe: Callable[[], None],
) -> tuple[tuple[Effect, ...], str]:
    """Blame only what stands two more questions, each a column more.

    Is it memory of requests under way, which goes with a window's requests and not with their sum?  And does it slow down, as a
    cache does that fills?
    """
    kept = []
    for effect in found:
        if not effect.blamed:
            kept.append(effect)
            continue
        place = groups.index(effect.members)
        own = columns[place]
        now = [0.0, *(after - before for before, after in itertools.pairwise(own))]
        now[0] = now[1]
        middle = own[0] + (own[-1] - own[0]) / 2
        late = [max(0.0, value - middle) for value in own]
        extra: list[list[float]] = []
        fit = _fit(times, [*columns, *nuisance, now], levels, breathe)
        if fit is not None and abs(fit.estimates[-1]) > LOAD_MATTERS * fit.errors[-1]:
            extra = [now]
            (again,), _ = _judged([effect.members], [own], _only(fit, place, len(columns)), grown)
            needed = student(FALSE_BLAME / len(groups), fit.freedom)
            effect = again._replace(blamed=again.blamed and fit.estimates[place] >= needed * fit.errors[place])
            if not effect.blamed:
                why = "what grows goes with the requests under way rather than with those completed"
        if effect.blamed:
            fit = _fit(times, [*columns, *nuisance, *extra, late], levels, breathe)
            if fit is not None and fit.estimates[-1] < -student(SLOWING, fit.freedom) * fit.errors[-1]:
                # It slows down: what counts is what is left of it in the second half of the requests.
                early = [value - then for value, then in zip(own, late, strict=True)]
                fit = _fit(times, [*columns[:place], late, *columns[place + 1 :], *nuisance, *extra, early], levels, breathe)
                if fit is not None:
                    ((again,), _) = _judged([effect.members], [late], _only(fit, place, len(columns)), grown)
                    effect = again._replace(share=effect.share, blamed=again.blamed and again.low > 0.0)
                if not effect.blamed:
                    why = "what grows with the requests slows down, as a cache does that fills"
        kept.append(effect)
    return tuple(kept), why


def _only(fit: _Fit, place: int, time: int) -> _Fit:
    """The fit of one route and of time."""
    picked = (place, time)
    return fit._replace(
        estimates=[fit.estimates[at] for at in picked],
        errors=[fit.errors[at] for at in picked],
        informative=[fit.informative[at] for at in picked],
    )


def _growth(levels: Sequence[float]) -> float:
    """From the first eighth to the last, to the ends of the window."""
    part = max(1, len(levels) // 8)
    return (sum(levels[-part:]) - sum(levels[:part])) / part * len(levels) / (len(levels) - part)


# -- the fit -------------------------------------------------------------------------------------------------------------------


def _fit(
    times: Sequence[float], columns: Sequence[Sequence[float]], levels: Sequence[float], breathe: Callable[[], None]
) -> _Fit | None:
    """The best mixture's fit, steps taken out; None if it is singular."""
    scaled, scales = _scaled(columns)
    level, unit = _scaled([levels])
    gaps = _gaps(times)
    breaks: set[int] = set()
    best = None
    for _ in range(4):
        best = _search(gaps, scaled, level[0], breaks, breathe)
        if best is None:
            return None
        news = _steps(best[0], len(levels), breaks)
        if not news:
            break
        breaks |= news
    if best is None:
        return None
    fit = _with_errors(best[0], breathe)
    if best[1] is not best[0]:
        more = _with_errors(best[1], breathe)
        fit = fit._replace(errors=list(map(max, fit.errors, more.errors)))
    return fit._replace(
        estimates=[value * unit[0] / scale for value, scale in zip(fit.estimates, scales, strict=True)],
        errors=[value * unit[0] / scale for value, scale in zip(fit.errors, scales, strict=True)],
    )


def _scaled(columns: Sequence[Sequence[float]]) -> tuple[list[list[float]], list[float]]:
    """Every column from 0, of a span about 1: textbook sums on large offsets are numerically wrong."""
    scaled, scales = [], []
    for column in columns:
        first = column[0]
        scale = max(abs(value - first) for value in column) or 1.0
        scaled.append([(value - first) / scale for value in column])
        scales.append(scale)
    return scaled, scales


def _gaps(times: Sequence[float]) -> list[float]:
    """Time between readings, in units of the usual."""
    gaps = [max(after - before, 0.0) for before, after in itertools.pairwise(times)]
    usual = sorted(gaps)[len(gaps) // 2] or 1.0
    return [gap / usual for gap in gaps]


class _Solved(NamedTuple):
    merit: float
    """Minus twice the restricted log likelihood."""
    estimates: list[float]
    inverse: list[list[float]]
    variance: float
    freedom: int
    residuals: list[float]
    rows: list[int]
    columns: list[list[float]]


def _search(
    gaps: Sequence[float], columns: Sequence[list[float]], level: list[float], breaks: set[int], breathe: Callable[[], None]
) -> tuple[_Solved, _Solved] | None:
    """The mixture of the largest restricted likelihood: every second one of the grid, then the neighbours of the best.  And the one
    with the most walk among those that are nearly as likely."""
    tried: dict[int, _Solved | None] = {}

    def at(place: int) -> float:
        if place not in tried:
            tried[place] = _solve(gaps, columns, level, WALKS[place], breaks, breathe)
        solved = tried[place]
        return math.inf if solved is None else solved.merit

    best = min(range(0, len(WALKS), 2), key=at)
    best = min((place for place in (best - 1, best, best + 1) if 0 <= place < len(WALKS)), key=at)
    found = tried[best]
    if found is None:
        return None
    # More of a walk is as likely: its errors are as likely, too.
    more = next(
        (place for place in range(len(WALKS) - 1, best, -1) if place in tried and at(place) <= found.merit + AS_LIKELY), best
    )
    return found, (tried[more] or found)


def _solve(
    gaps: Sequence[float],
    columns: Sequence[list[float]],
    level: list[float],
    walk: float,
    breaks: set[int],
    breathe: Callable[[], None],
) -> _Solved | None:
    gains, weights, rows = _filter(gaps, walk, breaks)
    white = []
    for column in columns:
        white.append(_whitened(column, gains, weights))
        breathe()
    target = _whitened(level, gains, weights)
    freedom = len(rows) - len(columns)
    if freedom < 5:
        return None
    gram = [[0.0] * len(columns) for _ in columns]
    for i, first in enumerate(white):
        for j in range(i + 1):
            gram[i][j] = gram[j][i] = sum(map(mul, first, white[j]))
        breathe()
    against = [sum(map(mul, column, target)) for column in white]
    inverse, log_determinant = _inverse(gram, breathe)
    estimates = [sum(map(mul, row, against)) for row in inverse]
    residuals = target[:]
    for estimate, column in zip(estimates, white, strict=True):
        if estimate:
            residuals = [left - estimate * value for left, value in zip(residuals, column, strict=True)]
    variance = sum(map(mul, residuals, residuals)) / freedom
    merit = freedom * math.log(max(variance, 1e-300)) - 2.0 * sum(map(math.log, weights)) + log_determinant
    return _Solved(merit, estimates, inverse, variance, freedom, residuals, rows, white)


def _filter(gaps: Sequence[float], walk: float, breaks: set[int]) -> tuple[list[float | None], list[float], list[int]]:
    """The local level model's filter: its gain at each reading (None: begin anew), each innovation's weight, and its reading."""
    noise = 1.0 - walk
    gains: list[float | None] = [None]
    weights: list[float] = []
    rows: list[int] = []
    uncertain = noise
    for row, gap in enumerate(gaps, start=1):
        if row in breaks:
            gains.append(None)
            uncertain = noise
            continue
        predicted = uncertain + walk * gap
        spread = predicted + noise
        gain = predicted / spread if spread > 0.0 else 1.0
        gains.append(gain)
        weights.append(1.0 / math.sqrt(spread) if spread > 0.0 else 1.0)
        rows.append(row)
        uncertain = predicted * (1.0 - gain)
    return gains, weights, rows


def _whitened(values: Sequence[float], gains: Sequence[float | None], weights: Sequence[float]) -> list[float]:
    innovations = []
    expected = values[0]
    for value, gain in zip(values, gains, strict=True):
        if gain is None:
            expected = value
            continue
        surprise = value - expected
        innovations.append(surprise)
        expected += gain * surprise
    return list(map(mul, innovations, weights))


def _inverse(gram: Sequence[Sequence[float]], breathe: Callable[[], None]) -> tuple[list[list[float]], float]:
    """Inverse by Cholesky's method on the scale of correlations, and the logarithm of the determinant.

    A column that is a mixture of earlier ones gets rows of zeros: its coefficient cannot be known.
    """
    size = len(gram)
    scale = [math.sqrt(gram[i][i]) or 1.0 for i in range(size)]
    lower: list[list[float]] = []
    alive: list[bool] = []
    log_determinant = 0.0
    for i in range(size):
        row: list[float] = []
        for j in range(i):
            value = gram[i][j] / scale[i] / scale[j] - sum(map(mul, row[:j], lower[j]))
            row.append(value / lower[j][j] if alive[j] else 0.0)
        pivot = gram[i][i] / scale[i] ** 2 - sum(map(mul, row, row))
        good = pivot > ALIASED
        alive.append(good)
        row.append(math.sqrt(pivot) if good else 1.0)
        lower.append(row)
        if good:
            log_determinant += math.log(pivot) + 2.0 * math.log(scale[i])
    # Rows of the triangle's inverse, then their products.
    solved: list[list[float]] = []
    for i in range(size):
        row = [0.0] * size
        if alive[i]:
            row[i] = 1.0 / lower[i][i]
            for j in range(i):
                row[j] = -sum(lower[i][k] * solved[k][j] for k in range(j, i)) / lower[i][i]
        solved.append(row)
        breathe()
    inverse = [[0.0] * size for _ in range(size)]
    turned = [[solved[k][i] for k in range(size)] for i in range(size)]
    for i in range(size):
        for j in range(i + 1):
            inverse[i][j] = inverse[j][i] = sum(map(mul, turned[i], turned[j])) / scale[i] / scale[j]
    return inverse, log_determinant


def _steps(solved: _Solved, readings: int, known: set[int]) -> set[int]:
    """Readings at which the level jumps up: an allocator that takes an arena, a table that doubles, a model that is loaded.

    Only upwards.  What falls has been freed, and taking falls out would blame the route that makes garbage for all the garbage that
    is collected later.
    """
    ordered = sorted(map(abs, solved.residuals))
    spread = 1.4826 * ordered[len(ordered) // 2]
    if spread <= 0.0:
        return set()
    over = sorted(
        ((residual, row) for residual, row in zip(solved.residuals, solved.rows, strict=True) if residual > STEP * spread),
        reverse=True,
    )
    room = int(STEPS_AT_MOST * readings) - len(known)
    return {row for _, row in over[: max(room, 0)]}


def _with_errors(solved: _Solved, breathe: Callable[[], None]) -> _Fit:
    """Standard errors: the larger of the ordinary and of Newey and West's, on whitened readings."""
    size = len(solved.columns)
    count = len(solved.residuals)
    lags = int(4 * (count / 100) ** (2 / 9))
    errors, informative = [], []
    for i in range(size):
        breathe()
        own = solved.inverse[i][i]
        if own <= 0.0:
            errors.append(math.inf)
            informative.append(0.0)
            continue
        # What each reading does to the estimate: the part of the column that no other column has.
        influence = [0.0] * count
        for weight, column in zip(solved.inverse[i], solved.columns, strict=True):
            if weight:
                influence = [sofar + weight * value for sofar, value in zip(influence, column, strict=True)]
        scores = list(map(mul, influence, solved.residuals))
        long_run = sum(map(mul, scores, scores))
        for lag in range(1, lags + 1):
            long_run += 2.0 * (1.0 - lag / (lags + 1)) * sum(map(mul, scores[lag:], scores))
        long_run *= count / solved.freedom
        errors.append(math.sqrt(max(own * solved.variance, long_run)))
        squares = list(map(mul, influence, influence))
        quartic = sum(map(mul, squares, squares))
        informative.append(sum(squares) ** 2 / quartic if quartic > 0.0 else 0.0)
    return _Fit(solved.estimates, errors, informative, solved.freedom, solved.columns)


# -- routes that go together ---------------------------------------------------------------------------------------------------


def _summed(counts: Sequence[Sequence[float]], group: Sequence[int]) -> list[float]:
    if len(group) == 1:
        return list(counts[group[0]])
    return [sum(values) for values in zip(*(counts[place] for place in group), strict=True)]


def _grouped(groups: Sequence[tuple[int, ...]], fit: _Fit, together: float) -> list[tuple[int, ...]]:
    """Join the columns that go up and down together, once what time explains is taken from each."""
    time = fit.columns[len(groups)]
    own = sum(map(mul, time, time)) or 1.0
    freed = []
    for column in fit.columns[: len(groups)]:
        part = sum(map(mul, column, time)) / own
        left = [value - part * then for value, then in zip(column, time, strict=True)]
        norm = math.sqrt(sum(map(mul, left, left))) or 1.0
        freed.append([value / norm for value in left])
    owner = list(range(len(groups)))
    for i, j in _pairs(len(groups)):
        if sum(map(mul, freed[i], freed[j])) >= together:
            low, high = sorted((owner[i], owner[j]))
            owner = [low if place == high else place for place in owner]
    joined: dict[int, tuple[int, ...]] = {}
    for place, group in zip(owner, groups, strict=True):
        joined[place] = joined.get(place, ()) + group
    return list(joined.values())


def _pairs(count: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(count) for j in range(i))


# -- Student's t ---------------------------------------------------------------------------------------------------------------


def student(upper: float, freedom: int) -> float:
    """The value that Student's t exceeds with probability *upper* (below 0.5); to 1 % from five degrees of freedom and 1e-4 on.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23 and 26.7.5.
    """
    root = math.sqrt(-2.0 * math.log(upper))
    z = root - (2.515517 + root * (0.802853 + root * 0.010328)) / (1.0 + root * (1.432788 + root * (0.189269 + root * 0.001308)))
    v = float(freedom)
    squared = z * z
    return z * (
        1.0
        + (squared + 1.0) / (4.0 * v)
        + ((5.0 * squared + 16.0) * squared + 3.0) / (96.0 * v * v)
        + (((3.0 * squared + 19.0) * squared + 17.0) * squared - 15.0) / (384.0 * v**3)
    )
