"""What a window is judged against, and what a single condition does."""

from __future__ import annotations

import pytest

from memwatch.trend.history import History
from memwatch.trend.judge import LEAK_RULES, MIB, Circumstances, Why, judge, material_bytes, material_count
from memwatch.trend.states import Finding
from memwatch.trend.statistics import LoadFit, measure
from memwatch.trend.windows import Series, Setting, rule

GROWTH_LIMIT = 10 * MIB / 60
SETTING = Setting(elapsed=0.0, scale=1.0, growth_limit=GROWTH_LIMIT, headroom=None, work=None)
RSS = Series("rss", "anonymous", countable=False)


def line(start: float = 100.0, grown: float = 100.0) -> list[float]:
    return [(start + grown * number / 63) * MIB for number in range(64)]


def shape(values: list[float]):
    return measure([15.0 * number for number in range(64)], None, values)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (line(), Why.LEAK),
        (line(grown=20.0), Why.SMALL),
        ([100 * MIB] * 30 + [220 * MIB] * 34, Why.STEP),
        (line()[:40] + line(start=65.0)[40:], Why.FELL),
        ([(200 - 100 * 0.95**number) * MIB for number in range(64)], Why.SATURATING),
        ([(200 - 100 * 0.98**number) * MIB for number in range(64)], Why.SATURATING),
    ],
)
def test_the_first_condition_that_fails_names_the_explanation(values, why):
    assert judge(shape(values), Circumstances(material=50 * MIB), LEAK_RULES) is why


def test_growth_by_fits_and_starts_is_unsteady():
    levels = [0, 25, 25, 25, 50, 50, 75, 100]
    fits = [(100.0 + levels[number // 8]) * MIB for number in range(64)]
    assert judge(shape(fits), Circumstances(50 * MIB), LEAK_RULES) is Why.UNSTEADY


def test_a_rising_load_excuses_growth_unless_a_straight_line_fits_far_better():
    busier = shape(line())._replace(load_rise=2.5)
    assert judge(busier, Circumstances(50 * MIB), LEAK_RULES) is Why.LOAD
    assert judge(busier, Circumstances(50 * MIB, load=LoadFit(misfit=0.5)), LEAK_RULES) is Why.LOAD
    assert judge(busier, Circumstances(50 * MIB, load=LoadFit(misfit=0.001)), LEAK_RULES) is Why.LEAK


def test_growth_to_where_it_has_been_before_is_a_return():
    assert judge(shape(line()), Circumstances(50 * MIB, earlier_high=190 * MIB), LEAK_RULES) is Why.RETURNING
    assert judge(shape(line()), Circumstances(50 * MIB, earlier_high=110 * MIB), LEAK_RULES) is Why.LEAK


def test_what_matters_falls_with_time_and_rises_with_the_process():
    hours = [material_bytes(3600.0 * hour, 1.0, 300 * MIB, None, GROWTH_LIMIT) for hour in (1, 3, 10, 30, 100)]
    assert hours == sorted(hours, reverse=True)
    bases = [material_bytes(3600.0, 1.0, base * MIB, None, GROWTH_LIMIT) for base in (10, 300, 1000)]
    assert bases == sorted(bases)


def test_growth_near_the_critical_rate_matters_in_any_window():
    assert material_bytes(32.0, 0.1, 20 * MIB, None, GROWTH_LIMIT) < GROWTH_LIMIT * 32
    assert material_bytes(960.0, 1.0, 20 * MIB, None, 1000.0) < 1000.0 * 960


def test_a_large_process_breathes_by_more_than_a_small_one_leaks():
    assert material_bytes(32.0, 0.1, 400 * MIB, None, GROWTH_LIMIT) >= 16 * MIB


def test_a_limit_of_the_whole_machine_does_not_excuse_a_leak():
    assert material_bytes(3600.0, 1.0, 100 * MIB, 2.0**40, GROWTH_LIMIT) <= 128 * MIB


def test_tens_of_descriptors_matter_at_ordinary_intervals_and_a_dozen_in_a_minute():
    assert material_count(1.0, 10.0, 64.0) == 64.0
    assert material_count(0.1, 10.0, 64.0) == 12.0


def test_a_window_with_too_few_readings_says_nothing():
    history = History()
    for number in range(64):
        sparse = {"anonymous": (100.0 + number * 10) * MIB} if number % 8 == 3 else {}
        history.append({"elapsed": 15.0 * number, "stamp": 15.0 * number} | sparse)
    assert rule(history, 0, RSS, SETTING) is None


def test_a_window_of_rare_readings_is_judged_on_them_alone():
    history = History()
    for number in range(256):
        sparse = {"anonymous": (100.0 + 3 * number) * MIB} if number % 3 == 1 else {}
        history.append({"elapsed": 15.0 * number, "stamp": 15.0 * number} | sparse)
    ruling = rule(history, 0, RSS, SETTING)
    assert ruling is not None
    assert ruling.finding is Finding.LEAK
    assert ruling.rate == pytest.approx(3 * MIB / 15, rel=0.02)


@pytest.mark.parametrize(("samples", "finding"), [(20, Finding.GROWTH), (40, Finding.LEAK)])
def test_growth_beyond_doubt_needs_some_twenty_samples(samples, finding):
    history = History()
    for number in range(samples):
        history.append({"elapsed": 30.0 * number, "stamp": 30.0 * number, "anonymous": (100.0 + 20 * number) * MIB})
    ruling = rule(history, 0, RSS, SETTING)
    assert ruling is not None
    assert ruling.finding is finding
