"""The law: only growth that repeats every time and does not fade is a leak."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memwatch.gate.judging import MOST_RUNS, Decision, MemoryGrowth, course_of, decide_memory, is_fading, worst
from memwatch.gate.readings import Growth, Reading, between
from pytest_memwatch.rules import Rule, parse_rule

MIB = 2**20
LIMIT = 100


@pytest.mark.parametrize(
    ("growths", "course"),
    [
        ([], "more"),
        ([500], "more"),
        ([500, 500], "more"),
        ([500, 500, 500], "leak"),
        ([100, 500, 500], "fine"),  # as much as the limit is allowed
        ([500, 0, 500], "fine"),  # CPython's [3, 0, 0] and [0, 1, 0]
        ([500, -500, 500], "fine"),
        ([900, 600, 300], "more"),  # fades
        ([900, 800, 790], "leak"),
        ([101, 5000, 101], "leak"),  # CPython's [10, 1, 1]
    ],
)
def test_growth_is_a_leak_if_it_repeats_every_time_and_does_not_fade(growths: list[int], course: str) -> None:
    assert course_of(growths, LIMIT, runs=3) == course


def test_growth_that_goes_on_fading_is_let_go_in_the_end() -> None:
    fading = [round(10**6 * 0.7**number) for number in range(MOST_RUNS)]
    assert course_of(fading[:-1], LIMIT, runs=3) == "more"
    assert course_of(fading, LIMIT, runs=3) == "fine"


@given(st.lists(st.integers(min_value=-(10**6), max_value=10**6), max_size=12), st.integers(min_value=0, max_value=10**6))
def test_one_quiet_repetition_acquits_whatever_the_others_say(growths: list[int], limit: int) -> None:
    assert course_of([*growths, limit], limit, runs=3) == "fine"


@given(st.integers(min_value=1, max_value=10**9), st.integers(min_value=3, max_value=9))
def test_constant_growth_over_the_limit_is_always_a_leak(growth: int, runs: int) -> None:
    assert course_of([growth] * runs, growth - 1, runs=runs) == "leak"
    assert not is_fading([growth] * runs)


def test_python_blocks_that_reuse_resident_memory_are_judged_by_the_heap() -> None:
    decision = decide_memory([Growth(50_000, 3 * MIB, 0, 0)] * 3, MIB, runs=3)
    assert decision == Decision("leak", "heap", (3 * MIB,) * 3)


def test_memory_outside_the_heap_is_judged_by_rss() -> None:
    assert decide_memory([Growth(0, 0, 0, 8 * MIB)] * 3, MIB, runs=3).metric == "rss"
    assert decide_memory([Growth(0, 4 * MIB, 0, 4 * MIB + 9000)] * 3, MIB, runs=3).metric == "heap"


def test_where_malloc_does_not_tell_rss_and_python_decide() -> None:
    assert decide_memory([Growth(0, 0, None, 8 * MIB)] * 3, MIB, runs=3).metric == "rss"
    assert decide_memory([Growth(9, 8 * MIB, None, 0)] * 3, MIB, runs=3).metric == "python"
    assert decide_memory([Growth(0, 0, None, 0)], MIB, runs=3).course == "fine"


def test_a_leak_counts_more_than_doubt_and_doubt_more_than_nothing() -> None:
    fine, more, leak = (Decision(course, course) for course in ("fine", "more", "leak"))  # type: ignore[arg-type]
    assert worst([fine, more, leak]) is leak and worst([fine, more]) is more and worst([]).course == "fine"


def test_what_cannot_be_read_is_absent_and_never_nothing() -> None:
    before = Reading(10, None, 5, None, None, None, None, None)
    growth = between(before, before._replace(malloc=9, rss=7))
    assert growth == Growth(0, None, 4, None) and growth.heap == 4
    assert growth._replace(malloc=None).heap is None


def test_memory_growth_is_an_assertion_error_that_can_be_sent_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MemoryGrowth("retains 5 MiB", {"growth": 5})))
    assert isinstance(error, AssertionError) and str(error) == "retains 5 MiB" and error.finding == {"growth": 5}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("growth:20%+1MB", Rule("growth", 0.2, 1_000_000)),
        ("peak: 10%", Rule("peak", 0.1, 0)),
        ("growth:512KiB", Rule("growth", 0.0, 524_288)),
    ],
)
def test_a_rule_is_a_share_and_a_size(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["growth", "growth:", "growth:20%1MB", "growth:+1MB", "growth:20%+", "cpu:20%", "growth:lots"])
def test_a_rule_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rule such as"):
        parse_rule(text)


def test_a_rule_allows_up_to_its_allowance() -> None:
    rule = parse_rule("growth:20%+1MB")
    assert rule.allows(10_000_000, 13_000_000) and not rule.allows(10_000_000, 13_000_001) and rule.allows(-5, 1_000_000)
