"""When each reading is taken."""

import gc
import weakref
from collections.abc import Callable

import pytest

from memwatch.vitals.pace import DUTY, FREE_BELOW_S, Pace, Timetable


class Work:
    """A fake clock, and sources that cost what they are told to."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.spent_s = 0.0
        self.taken: list[float] = []

    def source(self, cost_s: Callable[[], float]) -> Callable[[], dict[str, float]]:
        def read() -> dict[str, float]:
            self.spent_s += cost_s()
            self.taken.append(self.now_s)
            return {"value": self.now_s}

        return read

    def timetable(self, cost_s: Callable[[], float], pace: Pace) -> Timetable:
        return Timetable({"work": self.source(cost_s)}, {"work": pace}, clock=lambda: self.now_s, cost_clock=lambda: self.spent_s)

    def run(self, timetable: Timetable, seconds: float, every_s: float = 0.5) -> None:
        for _ in range(round(seconds / every_s)):
            timetable.read()
            self.now_s += every_s


def test_a_cheap_reading_is_taken_at_every_tick():
    work = Work()
    work.run(work.timetable(lambda: FREE_BELOW_S * 0.9, Pace(DUTY)), 50.0)
    assert len(work.taken) == 100


def test_a_reading_of_6_ms_is_taken_once_a_minute():
    work = Work()
    work.run(work.timetable(lambda: 0.006, Pace(DUTY)), 601.0)
    assert work.taken[:3] == [0.0, 60.0, 120.0]


@pytest.mark.parametrize("cost_s", [0.0003, 0.002, 0.05])
def test_a_dear_reading_takes_at_most_its_duty_of_the_time(cost_s):
    work = Work()
    work.run(work.timetable(lambda: cost_s, Pace(DUTY, size=lambda: 1.0, guess_s=cost_s)), 5000.0)
    assert 0 < work.spent_s <= DUTY * 5000.0


def test_the_first_dear_reading_waits_until_its_predicted_cost_is_earned():
    work = Work()
    work.run(work.timetable(lambda: 0.010, Pace(DUTY, size=lambda: 4e9, guess_s=0.010 / 4e9)), 150.0)
    assert work.taken == [100.0]


def test_a_reading_becomes_frequent_again_when_what_it_reads_has_shrunk():
    work = Work()
    size = [1e9]
    timetable = work.timetable(lambda: size[0] * 1e-11, Pace(DUTY, size=lambda: size[0], guess_s=1e-11))
    work.run(timetable, 250.0)
    assert work.taken == [100.0, 200.0]
    size[0] = 1e6
    work.run(timetable, 5.0)
    assert len(work.taken) == 12


def test_a_reading_rests_however_cheap_it_is():
    work = Work()
    work.run(work.timetable(lambda: 0.0, Pace(DUTY, rest_s=300.0)), 700.0)
    assert work.taken == [0.0, 300.0, 600.0]


def test_a_reading_that_would_cost_too_much_is_not_taken_even_when_all_are_asked_for():
    work = Work()
    size = [30.0]
    timetable = work.timetable(lambda: 0.001, Pace(DUTY, refuse_above_s=0.020, size=lambda: size[0], guess_s=0.001))
    work.run(timetable, 5000.0)
    assert timetable.read(complete=True) == {}
    size[0] = 10.0
    assert timetable.read(complete=True) == {"value": 5000.0}


def test_a_complete_reading_does_not_wait():
    work = Work()
    timetable = work.timetable(lambda: 0.010, Pace(DUTY))
    assert timetable.read() and not timetable.read()
    assert timetable.read(complete=True) == {"value": 0.0}


def test_a_source_that_raises_is_told_once_and_disabled_and_the_others_go_on():
    told = []
    timetable = Timetable({"bad": lambda: {"x": 1 / 0}, "good": lambda: {"y": 1}}, {}, clock=lambda: 0.0)
    for _ in range(3):
        assert timetable.read(lambda name, error: told.append((name, type(error)))) == {"y": 1.0}
    assert told == [("bad", ZeroDivisionError)]
    assert timetable.failed == {"bad": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize("returned", [None, 3.0, {"x": "much"}])
def test_a_source_that_returns_no_numbers_is_disabled(returned):
    timetable = Timetable({"odd": lambda: returned}, {}, clock=lambda: 0.0)
    assert timetable.read() == {}
    assert list(timetable.failed) == ["odd"]


def test_a_failed_source_keeps_nothing_of_the_program_alive():
    class Precious:
        pass

    references = []

    def bad() -> dict[str, float]:
        precious = Precious()
        references.append(weakref.ref(precious))
        raise RuntimeError("no")

    timetable = Timetable({"bad": bad}, {}, clock=lambda: 0.0)
    timetable.read()
    gc.collect()
    assert references[0]() is None


def test_an_exception_about_the_whole_process_escapes():
    def gone() -> dict[str, float]:
        raise LookupError("gone")

    timetable = Timetable({"any": gone}, {}, clock=lambda: 0.0, passes=(LookupError,))
    with pytest.raises(LookupError):
        timetable.read()
    assert timetable.failed == {}


def test_a_restart_forgets_failures_and_costs():
    fails = [True]

    def source() -> dict[str, float]:
        if fails[0]:
            raise OSError("not yet")
        return {"x": 1.0}

    timetable = Timetable({"source": source}, {}, clock=lambda: 0.0)
    timetable.read()
    fails[0] = False
    assert timetable.read() == {}
    timetable.restart()
    assert timetable.read() == {"x": 1.0}
