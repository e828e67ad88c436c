"""What the regression finds and what it refuses to say, on series that are made here; bench/attribution.py has the hostile ones."""

from __future__ import annotations

import itertools
import math
import random
import sys

import pytest

from memwatch.routes.history import CHANNELS, LEVELS, ROWS, History, Reading
from memwatch.routes.regression import FEWEST_ROWS, Attribution, attribute, student

KIB = 1024.0


def traffic(rng: random.Random, routes: int, rows: int) -> list[list[float]]:
    """Cumulative requests."""
    found = []
    for _ in range(routes):
        mean, total, level, column = rng.uniform(20, 100), 0.0, 0.0, []
        for _ in range(rows):
            level = 0.8 * level + rng.gauss(0, 0.2)
            total += max(0.0, round(rng.gauss(mean * math.exp(level), math.sqrt(mean))))
            column.append(total)
        found.append(column)
    return found


def walk(rng: random.Random, rows: int, size: float) -> list[float]:
    level, levels = 0.0, []
    for _ in range(rows):
        level += rng.gauss(0, size)
        levels.append(level)
    return levels


def times(rows: int) -> list[float]:
    return [10.0 * row for row in range(rows)]


def blamed(found: Attribution) -> list[tuple[int, ...]]:
    return [effect.members for effect in found.effects if effect.blamed]


def test_the_route_that_leaks_is_named_with_its_bytes_per_request() -> None:
    hits = covered = 0
    for seed in range(12):
        rng = random.Random(seed)
        counts = traffic(rng, 5, 100)
        noise = walk(rng, 100, 40 * KIB)
        found = attribute(times(100), counts, [8 * KIB * counts[3][row] + noise[row] for row in range(100)])
        assert blamed(found) in ([(3,)], [])
        if blamed(found):
            hits += 1
            effect = found.effects[0]
            assert effect.per_request == pytest.approx(8 * KIB, rel=0.25)
            covered += effect.low <= 8 * KIB <= effect.high
            assert found.note is None
    assert hits >= 11
    assert covered >= 10


def test_without_noise_the_answer_is_exact() -> None:
    counts = traffic(random.Random(1), 4, 60)
    found = attribute(times(60), counts, [1e9 + 100.0 * counts[0][row] + 7.0 * counts[2][row] for row in range(60)])
    by_route = {effect.members: effect for effect in found.effects}
    assert by_route[(0,)].per_request == pytest.approx(100.0, rel=1e-6)
    assert by_route[(2,)].per_request == pytest.approx(7.0, rel=1e-5)
    assert by_route[(1,)].per_request == pytest.approx(0.0, abs=1e-4)
    assert by_route[(0,)].blamed


def test_noise_that_wanders_blames_nobody() -> None:
    wrong = 0
    for seed in range(40):
        rng = random.Random(seed)
        counts = traffic(rng, 6, 100)
        drift = abs(rng.gauss(0, 20)) * KIB
        wrong += bool(
            blamed(attribute(times(100), counts, [drift * row + level for row, level in enumerate(walk(rng, 100, 60 * KIB))]))
        )
    assert wrong <= 2


def test_growth_with_time_is_said_to_be_that() -> None:
    rng = random.Random(3)
    counts = traffic(rng, 4, 100)
    found = attribute(times(100), counts, [300 * KIB * row + rng.gauss(0, 50 * KIB) for row in range(100)])
    assert blamed(found) == []
    assert found.note == "the growth goes on with time, whatever is requested"


def test_routes_in_proportion_are_blamed_together_and_not_singly() -> None:
    rng = random.Random(5)
    counts = traffic(rng, 4, 120)
    counts[1] = list(counts[0])
    levels = [6 * KIB * counts[0][row] + rng.gauss(0, 40 * KIB) for row in range(120)]
    found = attribute(times(120), counts, levels)
    assert [sorted(members) for members in blamed(found)] == [[0, 1]]
    assert found.effects[0].per_request == pytest.approx(3 * KIB, rel=0.2)


def test_a_step_of_the_allocator_blames_nobody() -> None:
    rng = random.Random(7)
    counts = traffic(rng, 4, 100)
    levels = [(8 * 2**20 if row >= 50 else 0.0) + 10 * KIB * row + rng.gauss(0, 20 * KIB) for row in range(100)]
    assert blamed(attribute(times(100), counts, levels)) == []


def test_memory_of_requests_under_way_is_no_leak() -> None:
    rng = random.Random(11)
    counts = traffic(rng, 4, 120)
    now = [0.0, *(counts[2][row] - counts[2][row - 1] for row in range(1, 120))]
    levels = [20 * KIB * now[row] + 30 * KIB * row + rng.gauss(0, 30 * KIB) for row in range(120)]
    assert blamed(attribute(times(120), counts, levels)) == []


def test_a_cache_that_fills_is_no_leak() -> None:
    rng = random.Random(13)
    counts = traffic(rng, 4, 120)
    full = counts[1][-1] / 5
    levels = [30 * 2**20 * (1 - math.exp(-counts[1][row] / full)) + rng.gauss(0, 40 * KIB) for row in range(120)]
    found = attribute(times(120), counts, levels)
    assert blamed(found) == []


def test_a_handful_of_requests_beside_growth_proves_nothing() -> None:
    rng = random.Random(17)
    counts = traffic(rng, 3, 100)
    counts[2] = [0.0 if row < 50 else 3.0 for row in range(100)]
    levels = [(5 * 2**20 if row >= 50 else 0.0) + rng.gauss(0, 20 * KIB) for row in range(100)]
    found = attribute(times(100), counts, levels)
    assert blamed(found) == []
    assert all(2 not in effect.members for effect in found.effects)


@pytest.mark.parametrize(
    ("counts", "levels", "note"),
    [
        ([[1.0 * row for row in range(10)]], [1.0 * row for row in range(10)], rf"too few readings .*\(10, {FEWEST_ROWS} are"),
        ([[0.0] * 60], [1.0 * row for row in range(60)], "no route was called often enough"),
        ([], [1.0 * row for row in range(60)], "no route was called often enough"),
        ([[9.0 * row for row in range(60)]], [5.0 - row for row in range(60)], "has not grown"),
        ([[9.0 * row for row in range(60)]], [7.0 * row for row in range(60)], "cannot be told apart|vary too little|with time"),
        ([[9.0 * row for row in range(60)]], [5.0] * 60, "has not grown"),
    ],
)
def test_what_cannot_be_told_is_said(counts: list[list[float]], levels: list[float], note: str) -> None:
    import re

    found = attribute(times(len(levels)), counts, levels)
    assert blamed(found) == []
    assert found.note is not None
    assert re.search(note, found.note)


def test_the_answer_does_not_depend_on_the_origin_of_clock_level_or_counts() -> None:
    rng = random.Random(19)
    counts = traffic(rng, 3, 80)
    levels = [4 * KIB * counts[1][row] + rng.gauss(0, 30 * KIB) for row in range(80)]
    plain = attribute(times(80), counts, levels)
    moved = attribute(
        [1.8e9 + time for time in times(80)],
        [[value + 1e7 for value in column] for column in counts],
        [level + 1e10 for level in levels],
    )
    assert [effect.members for effect in moved.effects] == [effect.members for effect in plain.effects]
    for one, other in zip(plain.effects, moved.effects, strict=True):
        assert other.per_request == pytest.approx(one.per_request, rel=1e-4, abs=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_numbers_come_an_answer_does(seed: int) -> None:
    rng = random.Random(seed)
    rows, routes = rng.randrange(0, 60), rng.randrange(0, 40)
    counts = []
    for _ in range(routes):
        total, column = 0.0, []
        for _ in range(rows):
            total += rng.choice((0, 0, 0, 1, 5, 10 ** rng.randrange(9)))
            column.append(total)
        counts.append(column)
    moments = sorted(rng.choice((1.0, 2.0, rng.uniform(0, 1e6))) for _ in range(rows))
    levels = [rng.choice((0.0, 1e12, rng.uniform(-1e9, 1e9))) for _ in range(rows)]
    found = attribute(moments, counts, levels)
    for effect in found.effects:
        assert math.isfinite(effect.per_request)
        assert effect.low <= effect.per_request <= effect.high


def test_other_threads_are_let_in_every_few_hundred_lines_of_work() -> None:
    counts = traffic(random.Random(23), 30, 128)
    done, moments = 0, []

    def one_more(*_: object) -> object:  # lines run, not time: that depends on who else is at work
        nonlocal done
        done += 1
        return one_more

    traced = sys.gettrace()
    sys.settrace(one_more)
    try:
        levels = [4 * KIB * counts[1][row] for row in range(128)]
        attribute(times(128), counts, levels, breathe=lambda: moments.append(done))
    finally:
        sys.settrace(traced)
    gaps = sorted(after - before for before, after in itertools.pairwise(moments))
    assert gaps[len(gaps) // 2] < 1_000
    assert gaps[int(0.99 * len(gaps))] < 10_000


@pytest.mark.parametrize(
    ("upper", "freedom", "value"),
    [(0.025, 5, 2.5706), (0.025, 20, 2.0860), (0.025, 1000, 1.9623), (0.01, 30, 2.4573), (0.001, 10, 4.1437), (0.0003, 60, 3.6250)],
)
def test_students_t_is_that_of_the_tables(upper: float, freedom: int, value: float) -> None:
    assert student(upper, freedom) == pytest.approx(value, rel=0.01)


# -- history -------------------------------------------------------------------------------------------------------------------


def reading(time_s: float, *counts: float, heap: float | None = None) -> Reading:
    from array import array

    values: list[float | None] = [None] * len(CHANNELS)
    values[0] = heap
    return Reading(time_s, array("d", counts), tuple(values))


def test_history_is_bounded_and_reaches_back_days() -> None:
    history = History()
    for tick in range(60_000):
        history.add(reading(10.0 * tick, float(tick)))
    assert sum(len(rows) for rows in history._levels) <= ROWS * LEVELS
    window = history.since(10.0 * 60_000 - 3 * 86400)
    assert 64 <= len(window) <= ROWS
    assert window[0].time_s <= 10.0 * 60_000 - 3 * 86400 + 5120


@pytest.mark.parametrize("back", [100, 500, 1000, 5000])
def test_a_window_has_64_to_128_readings_and_a_line_stays_that_line(back: int) -> None:
    history = History()
    for tick in range(10_000):
        history.add(reading(10.0 * tick, 3.0 * tick, heap=7.0 * tick))
    window = history.since(10.0 * (10_000 - back))
    assert 60 <= len(window) <= ROWS
    for row in window:
        assert row.counts[0] == pytest.approx(0.3 * row.time_s)
        assert row.values[0] == pytest.approx(0.7 * row.time_s)


def test_a_route_that_came_later_had_no_requests_before() -> None:
    history = History()
    history.add(reading(0.0, 4.0))
    history.add(reading(10.0, 6.0, 8.0))
    for tick in range(2, 300):
        history.add(reading(10.0 * tick, 6.0, 8.0))
    first = history.since(0.0)[0]
    assert list(first.counts) in ([5.0, 4.0], [5.5, 6.0])
