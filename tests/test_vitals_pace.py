"""When each reading is taken."""

import errno
import gc
import os
import weakref
from collections.abc import Callable

import pytest

from memwatch.vitals.pace import DUTY, FORECAST_WAIT_S, FREE_BELOW_S, LONGEST_WAIT_S, MODEST_S, Pace, Timetable


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


@pytest.mark.parametrize("cost_s", [0.002, 0.05])
def test_a_dear_reading_takes_at_most_its_duty_of_the_time(cost_s):
    work = Work()
    work.run(work.timetable(lambda: cost_s, Pace(DUTY, size=lambda: 1.0, guess_s=cost_s)), 5000.0)
    assert 0 < work.spent_s <= DUTY * 5000.0


@pytest.mark.parametrize(("cost_s", "every_s"), [(0.0003, 10.0), (MODEST_S, 10.0), (0.0003, 60.0)])
def test_a_modest_reading_keeps_to_its_duty_at_the_default_interval(cost_s, every_s):
    work = Work()
    work.run(work.timetable(lambda: cost_s, Pace(DUTY)), 6000.0, every_s)
    assert 0 < work.spent_s <= DUTY * 6000.0 * 1.001


@pytest.mark.parametrize("cost_s", [0.0003, 0.0007, 0.00095])
def test_a_modest_reading_is_taken_once_a_second_by_who_samples_faster(cost_s):
    work = Work()
    work.run(work.timetable(lambda: cost_s, Pace(DUTY)), 60.0, every_s=0.25)
    assert work.taken == [float(second) for second in range(60)]


def growing(work: Work, *, per_s: float, fixed_s: float, unit_s: float, guess_s: float) -> Timetable:
    """What a leak looks like: the more there is, the more a reading costs."""

    def size() -> float:
        return 1.0 + per_s * work.now_s

    return work.timetable(lambda: fixed_s + unit_s * size(), Pace(DUTY, size=size, guess_s=guess_s))


def test_a_slow_leak_is_read_again_and_again_whatever_the_first_small_reading_cost():
    work = Work()
    timetable = growing(work, per_s=5.0, fixed_s=35e-6, unit_s=1e-7, guess_s=2e-7)
    work.run(timetable, 24 * 3600.0, every_s=10.0)
    waits = [later - earlier for earlier, later in zip(work.taken, work.taken[1:], strict=False)]
    assert len(work.taken) > 200
    # In the end a reading costs 43 ms, and may be taken every 430 s.
    assert max(waits) <= 450.0
    assert work.spent_s <= DUTY * 24 * 3600.0


def test_a_growing_count_is_read_at_every_tick_while_that_is_cheap():
    work = Work()
    timetable = growing(work, per_s=25.0, fixed_s=35e-6, unit_s=1e-7, guess_s=2e-7)
    cheap_s = (FREE_BELOW_S - 35e-6) / 1e-7 / 25.0 - 1.0
    work.run(timetable, cheap_s)
    assert len(work.taken) >= 0.95 * cheap_s / 0.5


def test_a_count_that_outgrows_what_time_earns_is_read_every_five_minutes_all_the_same():
    work = Work()
    work.run(growing(work, per_s=60.0, fixed_s=35e-6, unit_s=2e-6, guess_s=3e-6), 1000.0)
    late = [taken for taken in work.taken if taken > 30.0]
    assert late and late[0] - max(taken for taken in work.taken if taken <= 30.0) <= FORECAST_WAIT_S


def test_one_disturbed_reading_of_a_small_count_does_not_put_the_next_one_off_for_ever():
    work = Work()
    disturbed = iter([0.02])
    timetable = work.timetable(lambda: next(disturbed, 35e-6), Pace(DUTY, size=lambda: 10.0 + 15.0 * work.now_s, guess_s=3e-6))
    work.run(timetable, FORECAST_WAIT_S + 1.0)
    assert work.taken[0] == 0.0 and len(work.taken) > 1


@pytest.mark.parametrize("first_s", [60.0, 1e9])
def test_no_single_measurement_is_believed_longer_than_an_hour(first_s):
    work = Work()
    costs = iter([first_s])
    work.run(work.timetable(lambda: next(costs, 0.0001), Pace(DUTY)), LONGEST_WAIT_S + 20.0, every_s=10.0)
    assert work.taken == [0.0, LONGEST_WAIT_S, LONGEST_WAIT_S + 10.0]


def test_a_prediction_puts_the_first_reading_off_five_minutes_at_most():
    work = Work()
    work.run(work.timetable(lambda: 0.5, Pace(DUTY, size=lambda: 1e11, guess_s=4e-12)), 1000.0)
    assert work.taken == [FORECAST_WAIT_S]


def test_a_jump_in_size_is_not_read_blindly():
    work = Work()
    size = [10.0]
    timetable = work.timetable(lambda: 35e-6 + size[0] * 2e-6, Pace(DUTY, size=lambda: size[0], guess_s=3e-6))
    work.run(timetable, 5.0)
    size[0] = 10_000.0
    work.run(timetable, 100.0)
    assert work.taken[-1] < 5.0


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


SHORTAGES = [
    OSError(number, os.strerror(number)) for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR)
]


@pytest.mark.parametrize("shortage", [*SHORTAGES, MemoryError()], ids=repr)
@pytest.mark.parametrize("pace", [Pace(), Pace(DUTY), Pace(rest_s=300.0)])
def test_a_passing_shortage_is_no_fault_of_the_source_which_is_tried_again(shortage, pace):
    short, told = [True], []

    def source() -> dict[str, float]:
        if short[0]:
            raise shortage
        return {"x": 1.0}

    timetable = Timetable({"source": source}, {"source": pace}, clock=lambda: 0.0)
    for _ in range(3):
        assert timetable.read(lambda name, error: told.append(name)) == {}
    assert told == [] and timetable.failed == {}
    short[0] = False
    assert timetable.read() == {"x": 1.0}


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
