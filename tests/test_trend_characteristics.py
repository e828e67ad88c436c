"""Operating characteristics: how often the detector is right, on many runs it was not told about.

The bounds are looser than what bench/score.py and bench/accelerated.py print, so that they hold on a bad day.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from memwatch.trend import LeakDetector

BENCH = Path(__file__).resolve().parent.parent / "bench"
SEEDS = range(12)


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCH))


accelerated = load("accelerated")


def first_alarm(run, seed, seconds, only=None):
    """Seconds until `leaking`, and the kind then; None if never."""
    detector = LeakDetector(accelerated.INTERVAL_S)
    for number, values in enumerate(run(Random(f"test{seed}"), seconds)):
        seen = values if only is None else {name: values[name] for name in only}
        verdict = detector.update(1.7e9 + number * accelerated.INTERVAL_S, seen)
        if verdict.state == "leaking":
            return number * accelerated.INTERVAL_S, verdict.kind
    return None


@pytest.mark.parametrize("run", accelerated.LEAKS, ids=lambda run: run.__name__)
def test_a_leak_in_a_run_of_45_s_is_found_and_its_kind_named(run):
    alarms = [first_alarm(run, seed, 45.0) for seed in SEEDS]
    assert sum(alarm is not None for alarm in alarms) >= len(SEEDS) - 1
    assert all(alarm[1] in accelerated.LEAKS[run] for alarm in alarms if alarm)


@pytest.mark.parametrize("run", accelerated.LOOKALIKES, ids=lambda run: run.__name__)
def test_a_look_alike_in_a_run_of_60_s_is_not_called_a_leak(run):
    assert sum(first_alarm(run, seed, 60.0) is not None for seed in SEEDS) <= 1


def test_a_leak_is_found_from_outside_where_rss_is_all_there_is():
    alarms = [first_alarm(accelerated.leak_native, seed, 45.0, only=("rss", "fds", "threads", "cpu")) for seed in SEEDS]
    assert sum(alarm is not None for alarm in alarms) >= len(SEEDS) - 3


@pytest.fixture(scope="module")
def scores():
    """Every eighth trace of the development corpus; the order of kinds makes that a stratified sample."""
    pytest.importorskip("numpy", reason="elsewhere: the corpus is stored as numpy arrays")
    corpus, scoring = load("corpus"), load("scoring")
    if not (corpus.DEV / "traces.npz").exists():
        pytest.skip("elsewhere: the corpus is not part of an installed package")
    traces = corpus.load()[3::8]
    return scoring.summarise([scoring.score(trace, LeakDetector) for trace in traces])


def test_on_recorded_life_precision_and_recall_are_high(scores):
    assert scores.traces == 29
    assert scores.precision >= 0.75
    assert scores.recall >= 0.75


def test_on_recorded_life_leaks_are_found_before_they_are_large(scores):
    assert scores.leaked_mib < 120


def test_on_recorded_life_the_interval_of_the_rate_holds_the_truth(scores):
    assert scores.rate_error < 0.2
    assert scores.coverage >= 0.7


def test_an_update_costs_little_and_a_detector_is_small(scores):
    assert scores.microseconds < 400
    assert scores.kib < 256
