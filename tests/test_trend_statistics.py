"""Numbers about a window: against oracles where there are some."""

from __future__ import annotations

import statistics
from math import inf, isnan
from random import Random

import pytest

from memwatch.trend.days import compare_days
from memwatch.trend.statistics import explained_by_load, lower_quartile, measure, slope


def test_the_slope_is_that_of_the_standard_library():
    random = Random(1)
    xs = [random.uniform(0, 100) for _ in range(50)]
    ys = [3 * x + random.gauss(0, 5) for x in xs]
    fitted, error = slope(xs, ys)
    assert fitted == pytest.approx(statistics.linear_regression(xs, ys).slope)
    assert 0 < error < 0.1


def test_the_slope_survives_epoch_seconds():
    xs = [1.7e9 + 0.5 * number for number in range(64)]
    assert slope(xs, [1000.0 * 0.5 * number + 5e8 for number in range(64)])[0] == pytest.approx(1000.0)


def test_a_slope_without_a_clock_is_unknown():
    assert slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == (0.0, inf)


def test_a_straight_line_is_straight_steady_and_without_steps():
    shape = measure([float(i) for i in range(64)], None, [10.0 * i for i in range(64)])
    assert shape.straight_time == pytest.approx(1.0)
    assert shape.rate == pytest.approx(10.0)
    assert (shape.active, shape.falling) == (7, 0)
    assert shape.largest_step == pytest.approx(1 / 7)
    assert shape.drawdown == 0.0
    assert isnan(shape.straight_work)


def test_a_curve_that_saturates_is_not_straight():
    shape = measure([float(i) for i in range(64)], None, [100 * (1 - 0.95**i) for i in range(64)])
    assert shape.straight_time < 0.5
    assert shape.tail < 0.4


def test_growth_straight_in_work_is_seen_as_such():
    work = [float(i * i) for i in range(64)]
    shape = measure([float(i) for i in range(64)], work, [2 * done for done in work])
    assert shape.straight_work == pytest.approx(1.0, abs=0.05)
    assert shape.straight_time > 1.3


def test_what_lay_flat_before_the_growth_is_not_part_of_it():
    shape = measure([float(i) for i in range(64)], None, [100.0] * 24 + [100.0 + 5 * i for i in range(40)])
    assert shape.active == 4
    assert shape.rate == pytest.approx(5.0, rel=0.05)
    assert shape.straight_time == pytest.approx(1.0, abs=0.05)


def test_a_step_is_one_large_increment():
    assert measure([float(i) for i in range(64)], None, [0.0] * 30 + [50.0] * 34).largest_step == pytest.approx(1.0)


def test_a_fall_is_a_drawdown():
    values = [float(i) for i in range(32)] + [float(i) for i in range(20, 52)]
    assert measure([float(i) for i in range(64)], None, values).drawdown > 0.05


def test_the_lower_quartile_ignores_spikes():
    assert lower_quartile([1.0, 1.0, 1.0, 500.0, 1.0, 900.0, 1.0, 1.0]) == 1.0


def test_load_explains_memory_that_follows_it_and_not_a_leak_beside_it():
    random = Random(2)
    loads = [1 + 0.02 * i + random.gauss(0, 0.3) for i in range(64)]
    times = [float(i) for i in range(64)]
    work = [sum(loads[: i + 1]) for i in range(64)]
    smooth = [(work[min(63, i + 1)] - work[max(0, i - 1)]) / (min(63, i + 1) - max(0, i - 1)) for i in range(64)]
    fit = explained_by_load(times, work, [100 * load for load in smooth])
    assert fit.share > 0.8
    assert fit.correlation > 0.8
    assert fit.misfit > 1
    fit = explained_by_load(times, work, [10.0 * i + random.gauss(0, 3) for i in range(64)])
    assert not (fit.share >= 0.4 and fit.correlation > 0.3)
    assert fit.misfit < 0.1


def hourly(days, value):
    times = [3600.0 * hour for hour in range(days * 24)]
    return times, [value(hour) for hour in range(days * 24)]


def test_growth_under_a_daily_cycle_is_found_from_day_to_day():
    from math import pi, sin

    daily = compare_days(*hourly(4, lambda hour: 100 * sin(hour * pi / 12) + hour))
    assert daily is not None
    assert daily.steady
    assert daily.rate == pytest.approx(1 / 3600)


def test_a_daily_cycle_alone_and_a_single_step_are_not_growth_from_day_to_day():
    from math import pi, sin

    flat = compare_days(*hourly(4, lambda hour: 100 * sin(hour * pi / 12)))
    step = compare_days(*hourly(4, lambda hour: 100.0 * (hour > 50)))
    assert flat is not None and not flat.steady
    assert step is not None and not step.steady


def test_two_days_are_too_few():
    assert compare_days(*hourly(2, float)) is None
