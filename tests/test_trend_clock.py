"""Elapsed seconds never run backwards and hold no suspend."""

from __future__ import annotations

from math import inf, nan

import pytest

from memwatch.trend.clock import Clock


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_time_that_is_no_number_is_dropped(bad):
    clock = Clock(10.0)
    assert clock.advance(100.0)
    assert not clock.advance(bad)
    assert clock.advance(110.0)
    assert clock.elapsed == 10.0


def test_a_suspend_is_cut_out():
    clock = Clock(10.0)
    clock.advance(100.0)
    assert clock.advance(100.0 + 8 * 3600)
    assert clock.elapsed == 10.0


def test_a_late_sample_is_only_late():
    clock = Clock(10.0)
    clock.advance(100.0)
    assert clock.advance(160.0)
    assert clock.elapsed == 60.0


def test_a_sample_from_the_past_is_dropped_but_a_clock_that_was_set_back_is_followed():
    clock = Clock(10.0)
    clock.advance(10_000.0)
    assert not clock.advance(5_000.0)
    assert clock.advance(10_010.0)
    assert [clock.advance(6_000.0 + 10 * number) for number in range(4)] == [False, False, True, True]
    assert clock.elapsed == 30.0
