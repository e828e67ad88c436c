"""The detector as a whole: what must not change a verdict, what must, and what it says."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from math import inf, nan, sin
from random import Random

import pytest

from memwatch.model import Verdict
from memwatch.trend import LeakDetector

MIB = 2.0**20
START = 1.7e9
Values = Mapping[str, float]


def play(samples: Iterable[Values], *, interval_s: float = 15.0, start: float = START, limit: float | None = None) -> list[Verdict]:
    detector = LeakDetector(interval_s, limit)
    return [detector.update(start + number * interval_s, values) for number, values in enumerate(samples)]


def run(count: int, rss: Callable[[int], float], **others: Callable[[int], float]) -> list[dict[str, float]]:
    """Samples with *rss* in MiB and others as they are; a little noise, always the same."""
    random = Random(7)
    return [
        {"rss": (rss(number) + random.uniform(0, 0.5)) * MIB} | {name: value(number) for name, value in others.items()}
        for number in range(count)
    ]


def leak(count: int = 400) -> list[dict[str, float]]:
    return run(count, lambda number: 100 + 0.5 * number)


def alarms(verdicts: Iterable[Verdict]) -> list[int]:
    states = ["", *(verdict.state for verdict in verdicts)]
    return [number for number, (before, state) in enumerate(itertools.pairwise(states)) if state == "leaking" != before]


def states(verdicts: Iterable[Verdict]) -> list[str]:
    return list(dict.fromkeys(verdict.state for verdict in verdicts))


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, 1.0, 1.7e9, 4e9])
def test_the_origin_of_the_clock_does_not_matter(start):
    verdicts = play(leak(), start=start)
    assert alarms(verdicts) == alarms(play(leak()))
    assert verdicts[-1].rate == pytest.approx(play(leak())[-1].rate, rel=1e-6)


def test_the_level_does_not_matter_as_long_as_it_is_small():
    higher = [{"rss": values["rss"] - 60 * MIB} for values in leak()]
    assert alarms(play(higher)) == alarms(play(leak()))


@pytest.mark.parametrize("interval_s", [5.0, 10.0, 15.0, 60.0])
def test_the_interval_does_not_matter_to_the_rate(interval_s):
    per_sample = 2 * MIB / 60 * interval_s
    count = int(90 * 60 / interval_s)
    verdict = play(run(count, lambda number: 60 + per_sample * number / MIB), interval_s=interval_s)[-1]
    assert verdict.state == "leaking"
    assert verdict.rate == pytest.approx(2 * MIB / 60, rel=0.05)
    assert verdict.rate_low <= 2 * MIB / 60 <= verdict.rate_high


@pytest.mark.parametrize("interval_s", [0.2, 0.5, 1.0, 15.0, 60.0, 300.0])
def test_a_plain_leak_is_found_within_some_hundred_samples_at_any_interval(interval_s):
    slope = 0.4 if interval_s < 5 else 0.6
    found = alarms(play(run(500, lambda number: 60 + slope * number), interval_s=interval_s))
    assert found and found[0] < 250


def test_missing_samples_delay_an_alarm_and_do_not_prevent_it():
    detector, random = LeakDetector(15.0), Random(3)
    found = None
    for number, values in enumerate(leak(700)):
        if random.random() < 0.4:
            continue
        if detector.update(START + 15.0 * number, values).state == "leaking":
            found = number
            break
    assert found is not None


def test_a_channel_read_rarely_is_judged_all_the_same():
    samples = leak(900)
    for number, values in enumerate(samples):
        if number % 20 == 0:
            values["heap"] = (50 + 0.5 * number) * MIB
    detector = LeakDetector(15.0)
    for number, values in enumerate(samples):
        detector.update(START + 15 * number, values)
    verdict = detector.verdicts()["heap"]
    assert verdict.state == "leaking"
    assert verdict.rate == pytest.approx(0.5 * MIB / 15, rel=0.1)


@pytest.mark.parametrize("bad", [nan, inf, -inf, -1.0, 1e300])
def test_a_reading_that_cannot_be_is_taken_as_absent(bad):
    spoilt = leak()
    for number in range(5, len(spoilt), 7):
        spoilt[number] = dict.fromkeys(("rss", "heap", "fds", "tasks", "cpu", "limit", "epoch", "requests"), bad)
    assert abs(alarms(play(spoilt))[0] - alarms(play(leak()))[0]) < 40


def test_anything_that_python_calls_a_mapping_of_numbers_is_survived():
    random = Random(11)
    detector = LeakDetector(10.0, limit=2.0**30)
    odd = [0.0, -0.0, 1.0, -5.0, nan, inf, -inf, 1e308, 5e-324, 2.0**40, 3, True]
    names = ["rss", "file", "heap", "native", "retained", "blocks", "fds", "tasks", "cpu", "limit", "epoch", "requests", "nonsense"]
    for _ in range(5000):
        time_s = random.choice([START + random.uniform(-1e6, 1e6), nan, inf, 0.0, -1e18])
        verdict = detector.update(time_s, {name: random.choice(odd) for name in names if random.random() < 0.6})
        assert verdict.reason
    assert all(verdict.reason for verdict in detector.verdicts().values())


def test_a_sample_from_the_past_changes_nothing():
    plain, detector = play(leak()), LeakDetector(15.0)
    verdicts = []
    for number, values in enumerate(leak()):
        verdicts.append(detector.update(START + 15 * number, values))
        if number % 10 == 0:
            assert detector.update(START - 1000, {"rss": 1.0}) is verdicts[-1]
    assert [verdict.state for verdict in verdicts] == [verdict.state for verdict in plain]


def test_a_suspend_is_not_growth_per_second():
    detector = LeakDetector(15.0)
    for number, values in enumerate(leak(600)):
        verdict = detector.update(START + 15 * number + (86400 if number >= 300 else 0), values)
    assert verdict.state == "leaking"
    assert verdict.rate == pytest.approx(0.5 * MIB / 15, rel=0.1)


# --- what must matter -------------------------------------------------------------------------------------------------


def test_a_restart_starts_over():
    detector = LeakDetector(15.0)
    for number, values in enumerate(leak()):
        before = detector.update(START + 15 * number, values | {"epoch": 1})
    after = detector.update(START + 15 * 400, {"rss": 100 * MIB, "epoch": 2})
    assert (before.state, after.state) == ("leaking", "warming-up")
    assert "1 of 64" in after.reason


def test_a_process_that_fills_up_as_far_as_the_one_before_is_not_a_leak():
    once = [100 + 0.3 * min(number, 300) for number in range(1500)]
    lives = [play([{"rss": level * MIB, "epoch": 1.0} for level in once])]
    assert alarms(lives[0]), "the first life is not known to be a fill: if this changes, take a larger fill"
    detector, found = LeakDetector(15.0), []
    for number, level in enumerate(once * 3):
        verdict = detector.update(START + 15 * number, {"rss": level * MIB, "epoch": number // len(once)})
        found.append(verdict.state == "leaking")
    assert not any(found[len(once) :])


def test_a_process_that_leaks_in_every_life_leaks_in_the_last_as_well():
    once = [100 + 0.3 * number for number in range(600)]
    detector, last = LeakDetector(15.0), {}
    for number, level in enumerate(once * 3):
        last[number // 600] = detector.update(START + 15 * number, {"rss": level * MIB, "epoch": number // 600}).state
    assert set(last.values()) == {"leaking"}


def test_mapped_files_are_not_a_leak():
    assert alarms(play(run(600, lambda number: 100 + number, file=lambda number: number * MIB))) == []


def test_the_limit_may_come_late_and_go():
    detector = LeakDetector(15.0)
    for number, values in enumerate(leak()):
        verdict = detector.update(START + 15 * number, values)
    assert verdict.limit is None and verdict.exhausted_in_s is None
    detector.set_limit(1024 * MIB)
    verdict = detector.update(START + 15 * 400, {"rss": 300 * MIB})
    assert verdict.limit == 1024 * MIB
    assert verdict.exhausted_in_s == pytest.approx(724 * 15 / 0.5, rel=0.1)
    verdict = detector.update(START + 15 * 401, {"rss": 300.5 * MIB, "limit": 512 * MIB})
    assert verdict.limit == 512 * MIB
    detector.set_limit(None)
    assert detector.update(START + 15 * 402, {"rss": 301 * MIB}).exhausted_in_s is None


def test_a_leak_with_little_time_left_is_critical_and_one_with_much_a_warning():
    assert play(leak(), limit=4096 * MIB)[-1].severity == "warning"
    assert play(leak(), limit=360 * MIB)[-1].severity == "critical"


def test_a_leak_above_the_growth_limit_is_critical():
    fast = run(300, lambda number: 100 + 4 * number)
    assert play(fast)[-1].severity == "critical"


def test_since_and_grown_speak_of_the_growth_on_the_clock_of_the_samples():
    verdict = play(leak())[-1]
    assert START <= verdict.since < START + 400 * 15
    assert 0 < verdict.grown < 200 * MIB


@pytest.mark.parametrize("channel", ["tasks", "threads", "fds", "children"])
def test_a_resource_that_leaks_is_the_cause_of_the_memory_it_holds(channel):
    counts = {channel: lambda number: 5.0 + 2 * number}
    samples = run(400, lambda number: 100 + number, heap=lambda number: (50 + number) * MIB, **counts)
    verdict = play(samples)[-1]
    assert verdict.state == "leaking"
    assert verdict.channel == channel
    assert verdict.kind == {"fds": "descriptors"}.get(channel, channel)
    assert verdict.rate == pytest.approx(2 / 15, rel=0.1)


def test_sockets_that_leak_are_descriptors():
    both = {"fds": lambda number: 9.0 + number, "sockets": lambda number: 2.0 + number}
    assert play(run(400, lambda number: 100.0, **both))[-1].kind == "descriptors"


def test_work_done_is_a_clock():
    """Traffic that dies down: in time the growth flattens, in requests it is straight."""

    def requests(number: int) -> float:
        return 1000 * (number + 1) ** 0.87

    def grown(number: int) -> float:
        return 60 + requests(number) / 1000

    told, untold = alarms(play(run(900, grown, requests=requests))), alarms(play(run(900, grown)))
    assert told
    assert not untold or told[0] < untold[0]


def test_a_random_walk_is_seldom_a_leak():
    wrong = 0
    for seed in range(40):
        random, level, levels = Random(seed), 0.0, []
        for _ in range(1500):
            level = 0.997 * level + random.gauss(0, 1.5)
            levels.append(120 + level)
        wrong += bool(alarms(play(run(1500, levels.__getitem__))))
    assert wrong <= 2


def test_the_interval_of_a_rate_is_never_finer_than_what_is_known():
    verdict = play(leak())[-1]
    assert verdict.rate_high - verdict.rate >= 0.1 * verdict.rate
    assert verdict.rate - verdict.rate_low >= 0.1 * verdict.rate


# --- look-alikes ------------------------------------------------------------------------------------------------------

LOOKALIKES: dict[str, Callable[[int], float]] = {
    "flat": lambda number: 100.0,
    "a warm-up that saturates": lambda number: 150 - 100 * 0.985**number,
    "a step that stays": lambda number: 100 + 80 * (number > 500),
    "a sawtooth": lambda number: 100 + 0.5 * (number % 120),
    "a cycle": lambda number: 100 + 40 * sin(number / 90),
    "spikes": lambda number: 100 + 200 * (number % 97 == 0),
    "a slow creep": lambda number: 100 + 0.01 * number,
    "a fall": lambda number: 300 - 0.1 * number,
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_look_alike_is_not_a_leak(name):
    assert alarms(play(run(1500, LOOKALIKES[name]))) == []


def test_a_fragmenting_allocator_is_not_a_leak_and_is_said_to_be_one():
    samples = run(
        600,
        lambda number: 100 + 0.4 * number,
        heap=lambda number: 40 * MIB,
        native=lambda number: 30 * MIB,
        retained=lambda number: (30 + 0.4 * number) * MIB,
    )
    verdicts = play(samples)
    assert alarms(verdicts) == []
    assert "the allocators keep" in verdicts[-1].reason
    assert verdicts[-1].kind == "fragmentation"


def test_every_channel_has_a_verdict_of_its_own():
    detector = LeakDetector(15.0)
    for number in range(300):
        memory = {"rss": 200 * MIB, "heap": 40 * MIB, "native": 30 * MIB, "retained": (5 + 0.5 * number) * MIB}
        detector.update(START + 15 * number, memory | {"threads": 4.0, "tasks": 3.0})
    verdicts = detector.verdicts()
    assert set(verdicts) == {"rss", "heap", "native", "retained", "threads", "tasks"}
    assert {verdict.state for verdict in verdicts.values()} == {"stable"}
    assert all(verdict.channel == channel and verdict.reason for channel, verdict in verdicts.items())
    assert "hold ready" in verdicts["retained"].reason


def test_the_same_growth_is_native_where_nothing_is_retained():
    live = {"heap": lambda number: 40 * MIB, "native": lambda number: 30 * MIB, "retained": lambda number: 5 * MIB}
    assert play(run(600, lambda number: 100 + 0.4 * number, **live))[-1].kind == "native"


# --- states and reasons -----------------------------------------------------------------------------------------------


def test_an_alarm_ends_when_the_growth_ends_and_returns_when_it_returns():
    def level(number: int) -> float:
        return 100 + 0.5 * min(number, 300) + 0.5 * max(0, number - 900)

    verdicts = play(run(1500, level))
    assert len(alarms(verdicts)) == 2
    assert states(verdicts)[:4] == ["warming-up", "growing", "leaking", "recovering"]
    assert "stable" in states(verdicts[:900])


def test_a_leak_that_stopped_is_never_called_harmless_while_what_it_took_is_held() -> None:
    level = [*(100 + 0.5 * n for n in range(300)), *(250.0 for _ in range(600)), *(110.0 for _ in range(400))]
    verdicts = play(run(len(level), lambda number: level[number]))
    assert "leaking" in states(verdicts[:300])
    held = verdicts[899]
    assert held.state == "stable"
    assert held.held == pytest.approx(150 * MIB, rel=0.1)
    assert "that leaked are still held" in held.reason
    assert not any("not a leak" in verdict.reason or "has been before" in verdict.reason for verdict in verdicts[330:900])
    assert "after 1" in next(verdict for verdict in verdicts if verdict.state == "recovering").reason  # all of it: some 150 MiB
    given_back = verdicts[-1]
    assert (given_back.state, given_back.held) == ("stable", 0.0)


def test_an_alarm_ends_when_the_memory_is_given_back():
    verdicts = play(run(800, lambda number: 100 + 0.5 * number if number < 300 else 110.0))
    assert verdicts[-1].state in ("recovering", "stable")
    assert any("gave back" in verdict.reason for verdict in verdicts)


def test_growth_in_a_bounded_container_is_not_a_leak_until_it_outgrows_its_bound():
    detector = LeakDetector(15.0)
    samples = leak(900)
    for number in range(300):
        detector.update(START + 15 * number, samples[number])
    verdict = detector.explain_as_bounded("lru_cache app.lookup holds 512 of 4096 entries", room=100 * MIB)
    assert verdict.state == "stable"
    told = [detector.update(START + 15 * number, samples[number]) for number in range(300, 900)]
    assert all(verdict.state != "leaking" for verdict in told[:150])
    assert any("512 of 4096 entries" in verdict.reason for verdict in told[:200])
    assert told[-1].state == "leaking"


REASONS = {
    "too few samples": (run(12, lambda number: 100.0), r"too few samples yet: 12 of 64"),
    "flat": (run(300, lambda number: 100.0), "flat"),
    "step": (run(300, lambda number: 100 + 90 * (number > 150)), "one step that stayed"),
    "saturating": (run(200, lambda number: 200 - 150 * 0.98**number), "flattened"),
    "given back": (run(400, lambda number: 100 + 1.0 * (number % 130)), "given back"),
    "leak": (leak(), r"grown steadily by [\d.]+ MiB in .*, \+2.00 MiB/min \(95 %"),
    "growing": (leak(110), "not yet the"),
    "load": (
        run(400, lambda number: 100 + 0.4 * number * (1 + number / 200), cpu=lambda number: number * (1 + number / 100)),
        "with the load",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_every_verdict_says_why(name):
    import re

    samples, pattern = REASONS[name]
    told = {verdict.reason for verdict in play(samples)}
    assert any(re.search(pattern, reason) for reason in told), sorted(told)[-3:]


# --- budget -----------------------------------------------------------------------------------------------------------


def deep_size(thing: object, seen: set[int]) -> int:
    if id(thing) in seen or isinstance(thing, type) or callable(thing):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, dict):
        size += sum(deep_size(key, seen) + deep_size(value, seen) for key, value in thing.items())
    elif isinstance(thing, (list, tuple, set)):
        size += sum(deep_size(item, seen) for item in thing)
    for name in getattr(type(thing), "__slots__", ()):
        size += deep_size(getattr(thing, name, None), seen)
    return size


def test_memory_stays_bounded_however_long_and_with_every_channel():
    names = ["rss", "file", "heap", "native", "retained", "blocks", "large_blocks", "fds", "sockets", "threads", "tasks"]
    detector, random = LeakDetector(10.0), Random(5)
    for number in range(20_000):
        values = {name: 1e8 + random.random() * 1e7 for name in names}
        detector.update(START + 10 * number, values | {"cpu": number, "requests": number})
    assert deep_size(detector, set()) < 256 * 1024


def test_an_interval_that_is_no_duration_is_refused():
    for bad in (0.0, -1.0, nan, inf):
        with pytest.raises(ValueError, match="interval_s"):
            LeakDetector(bad)


def test_the_time_left_is_that_of_resident_memory_where_it_grows_faster_than_the_heap() -> None:
    limit = 4096 * MIB
    detector = LeakDetector(10.0, limit=limit)
    verdict = None
    for number in range(900):
        grown = number * 0.3 * MIB
        rss, heap = 200 * MIB + grown, 60 * MIB + 0.6 * grown
        verdict = detector.update(1.8e9 + 10.0 * number, {"rss": rss, "heap": heap, "blocks": heap / 60, "cpu": number * 1.0})
    assert verdict is not None
    assert (verdict.state, verdict.channel) == ("leaking", "heap")
    assert verdict.rate == pytest.approx(0.6 * 0.03 * MIB, rel=0.1)
    left_s = (limit - (200 * MIB + 899 * 0.3 * MIB)) / (0.03 * MIB)
    assert verdict.exhausted_in_s == pytest.approx(left_s, rel=0.1)


@pytest.mark.parametrize("period", [1, 5, 20, 60, 120])
def test_the_kind_does_not_waver_where_the_python_heap_is_read_rarely(period: int) -> None:
    detector, kinds = LeakDetector(0.5, limit=24e9), []
    random = Random(1)
    for number in range(2400):
        grown = number * 0.5 * MIB
        values = {"rss": 40 * MIB + grown + random.random() * MIB, "native": 4.2 * MIB, "cpu": number * 0.1}
        if number % period == 0:
            heap = 20 * MIB + 0.95 * grown
            values |= {"heap": heap, "blocks": heap / 60, "large_blocks": 3000.0, "retained": 1.5 * MIB}
        verdict = detector.update(1.8e9 + number * 0.5, values)
        if verdict.state == "leaking" and (not kinds or kinds[-1] != verdict.kind):
            kinds.append(verdict.kind)
    assert kinds in (["python-heap"], ["none", "python-heap"])


def test_what_is_growing_is_never_called_no_leak_in_the_same_breath() -> None:
    random = Random(5)
    for seed in range(20):
        detector, level, rate = LeakDetector(0.5), 100.0, random.uniform(0.05, 0.5)
        for number in range(400):
            level += rate if number < 20 + 10 * seed else 0.0
            verdict = detector.update(1.8e9 + number * 0.5, {"rss": (level + random.random()) * MIB, "cpu": number * 0.1})
            if verdict.state == "growing":
                assert "not a leak" not in verdict.reason
                assert "no leak" not in verdict.reason


def test_at_an_interval_of_milliseconds_an_arena_that_fills_is_no_leak_and_what_goes_on_beyond_two_is() -> None:
    chance = Random(3)
    detector = LeakDetector(0.05)
    told = []
    for n in range(600):
        used = 22 * MIB + 0.145 * 0.05 * n * MIB  # 8.7 MiB/min
        resident = used // 4096 * 4096 + chance.randrange(4) * 4096
        told.append(detector.update(1000 + 0.05 * n, {"rss": resident, "cpu": 0.02 * n}).state)
    assert "leaking" not in told[:170]  # 1.2 MiB in 8.5 s
    assert told[-1] == "leaking"


def test_a_leak_that_has_stopped_ends_also_for_a_channel_that_is_read_ever_more_rarely() -> None:
    # The Python heap: the larger it is, the more its reading costs.
    chance = Random(3)
    detector = LeakDetector(0.2)
    states = []
    for n in range(900):
        grown = 0.1 * min(n, 260) * MIB
        values = {"rss": 60 * MIB + grown + chance.gauss(0, 0.02) * MIB, "cpu": 0.1 * min(n, 260) + 0.004 * n}
        if n % (2 if n < 200 else 8) == 0:
            values["heap"] = 10 * MIB + grown
        states.append(detector.update(1000 + 0.2 * n, values).state)
    assert "leaking" in states[:260]
    assert states[-1] == "stable"
