"""The history keeps minima on every scale, and never invents a reading."""

from __future__ import annotations

from math import isnan

import pytest

from memwatch.trend.history import BUCKETS, History, merge


def filled(count, read=lambda number: {"x": float(number)}):
    history = History()
    for number in range(count):
        history.append({"elapsed": float(number), "stamp": 1e9 + number} | read(number))
    return history


def test_a_bucket_of_level_k_is_the_minimum_of_two_to_the_k_samples():
    readings = [((number * 7919) % 101) + 1.0 for number in range(1024)]
    history = filled(1024, lambda number: {"x": readings[number]})
    for k, level in enumerate(history.levels[:9]):
        width = 2**k
        oracle = [min(readings[start : start + width]) for start in range(0, 1024 - width + 1, width)][-BUCKETS:]
        assert list(level.columns["x"]) == oracle, k


def test_clocks_are_averaged_over_a_bucket():
    level = filled(64).levels[3]
    assert list(level.columns["elapsed"]) == [start + 3.5 for start in range(0, 64, 8)]


def test_a_bucket_without_a_reading_is_absent_not_zero_and_not_interpolated():
    history = filled(64, lambda number: {"x": 5.0} if number % 16 == 3 else {})
    fine = list(history.levels[0].columns["x"])
    assert [number for number, value in enumerate(fine) if not isnan(value)] == [3, 19, 35, 51]
    assert list(history.levels[4].columns["x"]) == [5.0] * 4


def test_a_series_that_appears_late_lines_up_with_the_others():
    history = filled(100, lambda number: {"x": 1.0} if number >= 90 else {})
    for level in history.levels:
        assert len({len(column) for column in level.columns.values()}) == 1
    assert sum(not isnan(value) for value in history.levels[0].columns["x"]) == 10


def test_no_level_keeps_more_than_its_buckets():
    history = filled(5000)
    assert all(len(column) <= BUCKETS for level in history.levels for column in level.columns.values())


@pytest.mark.parametrize(("samples", "closed"), [(1, 1), (2, 2), (3, 1), (4, 3), (8, 4), (4096, 13)])
def test_a_level_closes_a_bucket_every_two_to_the_k_samples(samples, closed):
    history = filled(samples - 1)
    assert history.append({"elapsed": 0.0, "stamp": 0.0}) == closed


def test_merging_keeps_what_only_one_half_has():
    assert merge({"elapsed": 1.0, "x": 3.0}, {"elapsed": 3.0, "x": 2.0, "y": 9.0}) == {"elapsed": 2.0, "x": 2.0, "y": 9.0}
