"""When evidence is taken, and that the inquiry itself stays small."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from memwatch.evidence import sites, sources, survivors
from memwatch.evidence.findings import Moment
from memwatch.evidence.inquiry import CENSUS_DUTY, Inquiry
from memwatch.evidence.told import Paths, measured
from memwatch.model import Verdict
from memwatch.testing import FakeClock

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere: the heap is looked at in a forked child on Linux only")


def run(program: str, timeout: float = 240.0) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@linux_only
@pytest.mark.slow
def test_a_day_of_suspicions_that_come_and_go_leaves_the_inquiry_as_small_as_it_was() -> None:
    told = run("""
        import gc, json, os, sys, time
        from memwatch.evidence import Inquiry, Moment
        from memwatch.model import Verdict
        from memwatch.testing import FakeClock

        clock = FakeClock()
        inquiry = Inquiry("auto", clock=clock.monotonic)
        inquiry.begin()
        readings = {"rss": 1e8, "heap": 5e7, "native": 2e7, "blocks": 1e6, "fds": 10.0}
        concluded = 0

        def tick(state, grown, channel="heap"):
            global concluded
            now = clock.monotonic()
            values = readings | {channel: readings.get(channel, 0.0) + grown}
            verdict = Verdict(channel, state, "increasing", rate=1e5, grown=max(grown, 1.0), kind="python-heap")
            conclusion = inquiry.observe(Moment(now, verdict, now - 300, values))
            concluded += conclusion is not None
            while inquiry.looking:
                inquiry.poll()
                time.sleep(0.001)
            clock.advance(10.0)

        def cycle(n):
            junk = [{"n": i, "text": str(i) * 5} for i in range(2000)]
            for step in range(20): tick("stable", 0.0)
            for step in range(10): tick("growing", 2e5 * step)
            for step in range(14): tick("leaking", 2e6 + 3e5 * step, "fds" if n % 5 == 0 else "heap")
            for step in range(4): tick("recovering", 0.0)

        def size():
            gc.collect()
            rss = int(open("/proc/self/statm").read().split()[1]) * 4096
            return sys.getallocatedblocks(), rss, len(os.listdir("/proc/self/fd"))

        for n in range(20): cycle(n)
        before = size()
        for n in range(160): cycle(n)  # with the 20 before, 8640 ticks of 10 s: a day
        after = size()
        print(json.dumps({"concluded": concluded, "blocks": after[0] - before[0], "bytes": after[1] - before[1],
                          "descriptors": after[2] - before[2], "own": inquiry.sampling.module.statistics()["own_bytes"]}))
        sys.stdout.flush(); os._exit(0)
    """)
    assert told["concluded"] >= 180
    assert told["blocks"] < 3000
    assert told["bytes"] < 2 * 2**20
    assert told["descriptors"] == 0
    assert told["own"] < 12 * 2**20


def moment(clock: FakeClock, state: Any, **more: Any) -> Moment:
    readings = {"rss": 1e8, "blocks": 1e9} | more.pop("readings", {})
    return Moment(clock.monotonic(), Verdict("rss", state, "increasing", rate=1e5, **more), None, readings)


@linux_only
def test_a_suspicion_that_flickers_takes_a_census_only_as_often_as_its_cost_allows() -> None:
    clock = FakeClock()
    inquiry = Inquiry("auto", clock=clock.monotonic)
    censuses = 0
    for _ in range(30):
        inquiry.observe(moment(clock, "growing", grown=1.0))
        censuses += inquiry.looking
        while inquiry.looking:
            inquiry.poll()
        clock.advance(1.0)
        inquiry.observe(moment(clock, "stable"))
    assert 1 <= censuses < 30
    clock.advance(60.0 / CENSUS_DUTY)
    inquiry.observe(moment(clock, "growing", grown=1.0))
    assert inquiry.looking
    inquiry.end()
    assert not inquiry.looking


def test_nothing_is_looked_at_while_all_is_well() -> None:
    clock = FakeClock()
    inquiry = Inquiry("auto", clock=clock.monotonic)
    for _ in range(100):
        assert inquiry.observe(moment(clock, "stable")) is None
        assert not inquiry.looking
        clock.advance(10.0)


@linux_only
def test_a_leak_that_is_over_before_the_child_has_answered_ends_the_child() -> None:
    clock = FakeClock()
    inquiry = Inquiry("auto", clock=clock.monotonic)
    inquiry.observe(moment(clock, "growing", grown=1.0))
    assert inquiry.looking
    inquiry.observe(moment(clock, "stable"))
    assert not inquiry.looking
    assert inquiry.own_descriptors == 0


def level(time_s: float) -> sites.Level:
    from array import array

    return sites.Level(time_s, array("Q"), array("d"), array("d"), array("q"), {})


def test_a_baseline_is_from_soon_after_growth_began_or_else_from_before() -> None:
    levels = sites.Levels()
    levels.kept = [level(0.0), level(100.0), level(200.0), level(300.0)]
    assert levels.at(95.0).time_s == 100.0  # type: ignore[union-attr]
    assert levels.at(205.0).time_s == 200.0  # type: ignore[union-attr]
    assert levels.at(-50.0).time_s == 0.0  # type: ignore[union-attr]
    assert sites.Levels().at(5.0) is None


class Still:
    """A source of sites where nothing happens."""

    name = "still"

    def live(self, born_after_s: float = 0.0) -> dict[int, sources.Live]:
        return {}

    def stack(self, key: int) -> tuple[Any, ...]:
        return ()

    def stop(self) -> None: ...


def test_baselines_of_a_week_are_few_and_the_older_the_sparser() -> None:
    levels = sites.Levels(every=1)
    for tick in range(60_480):
        levels.tick(Still(), tick * 10.0, {})
    times = [kept.time_s for kept in levels.kept]
    assert len(times) <= sites.Levels.KEPT
    assert times[0] == 0.0
    newest = times[-1]
    ages = [newest - time_s for time_s in times]
    # Whatever moment growth began at, a baseline is not much older than that.
    assert all(older <= 12 * max(younger, 20.0) for older, younger in itertools.pairwise(ages))


def test_growth_of_what_was_there_all_the_time_has_no_error_and_churn_has() -> None:
    mib = 2.0**20
    before = {1: sources.Live(100 * mib, 1000, 1600), 2: sources.Live(10 * mib, 100, 160)}
    after = {1: sources.Live(101 * mib, 1010, 1616), 2: sources.Live(10 * mib, 100, 160)}
    fresh = {1: sources.Live(mib, 10, 16), 2: sources.Live(10 * mib, 100, 160)}
    grown = {row.key: row for row in sites.growths(before, after, fresh)}
    assert grown[1].bytes == mib
    assert grown[1].error_bytes == pytest.approx(mib / 4, rel=0.05)
    assert grown[2].error_bytes > mib  # all of it was replaced meanwhile


def test_survivors_are_old_enough_and_stand_for_the_growth_of_their_stack() -> None:
    class Sampled:
        def blocks(self, since_s: float, limit: int) -> list[tuple[int, int, float, int, float]]:
            old = [(4096 + n, 50, 65536.0, 7, 10.0) for n in range(1000)]
            young = [(9_000_000 + n, 50, 65536.0, 7, 99.5) for n in range(1000)]
            other = [(5_000_000 + n, 50, 65536.0, 8, 50.0) for n in range(10)]
            return old + young + other

    chosen = survivors.survivors(Sampled(), {7: 3e6, 8: 1e6}, 0.0, 100.0, most=100)  # type: ignore[arg-type]
    assert all(block.address < 9_000_000 for block in chosen)
    weights = {key: sum(block.weight_bytes for block in chosen if block.stack == key) for key in (7, 8)}
    assert weights == {7: pytest.approx(3e6), 8: pytest.approx(1e6)}
    assert sum(block.stack == 7 for block in chosen) == 75


def test_measured_growth_counts_large_python_blocks_and_falls_back_on_the_rate() -> None:
    verdict = Verdict("heap", "leaking", rate=1000.0)
    now = Moment(100.0, verdict, None, {"heap": 50e6, "native": 30e6})
    assert measured(now, {"heap": 40e6, "native": 28e6}, 0.0) == 12e6
    assert measured(now, {"heap": 50e6, "native": 30e6}, 0.0) == 100_000  # neither was read in between


def line(**what: Any) -> dict[str, Any]:
    return {"what": "path", "status": 0, "weight": 1.0, "stack": 1, "type": "str", "place": "module a → b", "trail": ["str"]} | what


def test_a_bound_explains_growth_only_where_it_holds_most_of_it_and_is_not_full() -> None:
    now = Moment(0.0, Verdict("heap", "leaking", grown=1e6), None, {})
    held = [line(bound=["lru_cache f", 50, 100, "entries"])] * 7 + [line()] * 3
    assert Paths(held, {}, 10.0, counted=False).bounded(now) is not None
    assert Paths(held[:5] + [line()] * 5, {}, 10.0, counted=False).bounded(now) is None
    assert Paths([line(bound=["lru_cache f", 99, 100, "entries"])] * 10, {}, 10.0, counted=False).bounded(now) is None


def test_shares_of_holders_are_of_the_growth_that_was_measured_and_what_was_lost_is_among_them() -> None:
    lines = [line()] * 6 + [{"what": "lost", "stacks": {"3": 4.0}, "looked_at": 10}]
    found = Paths(lines, {}, 20.0, counted=False).evidence(None)
    assert [(suspect.label.split(":")[0], suspect.share) for suspect in found.suspects] == [
        ("module a → b", 0.3),
        ("nothing that Python can see", 0.2),
    ]
    assert found.explains == pytest.approx(0.5)


def _allocate_fast() -> float:
    """A gigabyte that is freed at once; returns how many samples it took."""
    sampler = pytest.importorskip("memwatch.evidence._sampler", reason="elsewhere: the extension is not built")
    before = sampler.statistics()["samples"]
    for _ in range(10_000):
        bytearray(100_000)
    return float(sampler.statistics()["samples"] - before)


def test_a_burst_of_allocations_is_not_sampled_without_bound_not_even_while_something_is_looked_into() -> None:
    sampling = sources.Sampling(None)
    try:
        sampling.refine(4096)
        assert _allocate_fast() < 2_000
        sampling.refine(None)
        assert _allocate_fast() < 1_000
    finally:
        sampling.stop()


def test_a_mean_that_was_asked_for_is_kept_whatever_is_allocated_and_a_watchers_governor_is_back_after_a_test_was_looked_into() -> (
    None
):
    adapting = sources.Sampling(None)
    try:
        before = adapting.module.statistics()
        asked = sources.Sampling(65536)
        assert _allocate_fast() > 5_000
        assert adapting.module.statistics()["mean_bytes"] == 65536
        asked.give_back(before)
        assert _allocate_fast() < 1_000
        assert sources.Sampling.in_use()
    finally:
        adapting.stop()
    assert not sources.Sampling.in_use()


@pytest.fixture
def busy() -> Iterator[sources.Sampling]:
    """A sampler that has found that the program allocates much."""
    sampling = sources.Sampling(None)
    sampling.adapt(0.0)
    sampling.module.set_mean(2**20)
    yield sampling
    sampling.stop()


@pytest.mark.parametrize("late_s", [0.0, 0.05, 0.5])
def test_a_busy_programs_small_blocks_are_sampled_for_an_eighth_of_the_time_however_late_a_turn_comes(
    late_s: float, busy: sources.Sampling
) -> None:
    chance = random.Random(4)
    now_s, paused_s, rhythm = 10.0, 0.0, set()
    for _ in range(4000):
        wait_s = busy.take_turns(now_s) + late_s * chance.random()
        if busy.module.statistics()["paused"]:
            paused_s += wait_s
            rhythm.add(round(wait_s, 2))
        now_s += wait_s
    assert paused_s / (now_s - 10.0) == pytest.approx(1 - sources.DUTY, abs=0.01)
    assert len(rhythm) > 30  # no beat that a program could keep
    assert busy.module.statistics()["duty"] == sources.DUTY


def test_a_process_that_was_stopped_for_a_day_is_sampled_again_within_seconds(busy: sources.Sampling) -> None:
    now_s = busy.take_turns(10.0) + 10.0 + 86_400.0
    slept_s = 0.0
    while slept_s == 0.0 or busy.module.statistics()["paused"]:
        wait_s = busy.take_turns(now_s)
        if busy.module.statistics()["paused"]:
            slept_s += wait_s
        now_s += wait_s
    assert 0 < slept_s < 15


def test_a_program_that_allocates_little_is_sampled_all_the_time(busy: sources.Sampling) -> None:
    now_s = 10.0
    for _ in range(20):
        now_s += busy.take_turns(now_s)
    busy.module.set_mean(sources.FINEST_BYTES)
    assert busy.take_turns(now_s) == math.inf
    figures = busy.module.statistics()
    assert (figures["paused"], figures["duty"]) == (0.0, 1.0)


def test_while_somebody_else_samples_too_or_a_mean_was_asked_for_nothing_is_left_out(busy: sources.Sampling) -> None:
    now_s = 10.0
    while not busy.module.statistics()["paused"]:
        now_s += busy.take_turns(now_s)
    asked = sources.Sampling(2**20)
    try:
        assert not busy.module.statistics()["paused"]
        for _ in range(5):
            assert busy.take_turns(now_s) == asked.take_turns(now_s) == math.inf
            now_s += 1.0
        assert busy.module.statistics()["duty"] == 1.0
    finally:
        asked.stop()
    assert busy.take_turns(now_s) < 1.0


def test_whoever_goes_on_sampling_after_a_busy_programs_watcher_has_stopped_gets_every_block() -> None:
    busy = sources.Sampling(None)
    busy.adapt(0.0)
    busy.module.set_mean(2**20)
    now_s = 10.0
    while not busy.module.statistics()["paused"]:
        now_s += busy.take_turns(now_s)
    asked = sources.Sampling(2**20)
    busy.module.pause()  # a turn that was under way
    busy.stop()
    figures = asked.module.statistics()
    asked.stop()
    assert (figures["paused"], figures["duty"]) == (0.0, 1.0)


def test_a_tool_that_stands_on_the_hooks_is_left_there_and_all_is_sampled(busy: sources.Sampling) -> None:
    now_s = 10.0
    tracemalloc.start()
    try:
        while busy.take_turns(now_s) < math.inf:
            now_s += 0.2
        figures = busy.module.statistics()
        assert (figures["paused"], figures["duty"]) == (0.0, 1.0)
    finally:
        tracemalloc.stop()


@linux_only
def test_under_a_suspicion_and_in_a_child_that_was_forked_all_is_sampled() -> None:
    told = run("""
        import json, os, sys
        from memwatch.evidence import Inquiry, Moment
        from memwatch.model import Verdict
        from memwatch.testing import FakeClock

        clock = FakeClock()
        inquiry = Inquiry("auto", clock=clock.monotonic)
        inquiry.begin()

        def tick(state):
            now = clock.monotonic()
            verdict = Verdict("heap", state, "increasing", rate=1e5, grown=1e6, kind="python-heap")
            inquiry.observe(Moment(now, verdict, now - 300, {"rss": 1e8, "heap": 5e7, "blocks": 1e6}))

        def fall_asleep():
            inquiry.sampling.module.set_mean(2**20)
            while not figures()["paused"]:
                clock.advance(min(1.0, inquiry.take_turns()))

        def figures():
            return inquiry.sampling.module.statistics()

        tick("stable")
        fall_asleep()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            inquiry.after_fork()
            now = figures()
            os._exit(int(now["paused"] or now["duty"] < 1))
        forked = os.waitpid(child, 0)[1]
        tick("growing")
        suspected = [figures()["paused"], figures()["duty"], inquiry.take_turns()]
        tick("stable")
        inquiry.end()
        print(json.dumps({"child": forked, "suspected": suspected}))
        """)
    assert told == {"child": 0, "suspected": [0.0, 1.0, math.inf]}


def test_the_sampler_of_a_watched_program_that_allocates_much_takes_turns() -> None:
    told = run("""
        import json, time
        import memwatch
        from memwatch.evidence import _sampler

        memwatch.start(interval="50ms")
        paused, deadline = set(), time.monotonic() + 60
        while len(paused) < 2 and time.monotonic() < deadline:
            for _ in range(200):
                json.dumps([bytes(300_000) is None, {"n": [str(n) for n in range(100)]}])
            figures = _sampler.statistics()
            if figures["duty"] < 1:
                paused.add(figures["paused"])
        memwatch.stop()
        print(json.dumps({"seen": sorted(paused)}))
        """)
    assert told == {"seen": [0.0, 1.0]}


def test_a_program_that_allocates_fast_is_sampled_more_coarsely_and_a_quiet_one_finely() -> None:
    class Counted:
        samples = 0.0
        means: list[int] = []  # noqa: RUF012

        def statistics(self) -> dict[str, float]:
            return {"samples": self.samples, "mean_bytes": self.means[-1] if self.means else sources.FIRST_BYTES}

        def set_mean(self, mean_bytes: int) -> None:
            self.means.append(mean_bytes)

    sampling = sources.Sampling.__new__(sources.Sampling)
    sampling.module, sampling.mean_bytes = Counted(), sources.FIRST_BYTES
    sampling._adapts, sampling._fine, sampling._taken, sampling._cycle = True, False, None, None
    sampling.adapt(0.0)
    sampling.adapt(10.0)  # nothing was allocated
    assert sampling.mean_bytes == sources.FINEST_BYTES
    sampling.module.samples = 10 * 10 * sources.SAMPLES_PER_S
    sampling.adapt(20.0)  # ten times as many as are wanted
    assert sampling.mean_bytes == pytest.approx(10 * sources.FINEST_BYTES, rel=0.01)
    assert sampling.module.means[-1] == sampling.mean_bytes
