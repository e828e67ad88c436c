from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

import memwatch
from memwatch.model import Report
from memwatch.pressure import Pressure, ReliefHooks
from memwatch.record import Record, find_records, read_report
from memwatch.testing import FakeClock, RecordingSink, ScriptedSource
from memwatch.watcher import Watcher

MIB = 2.0**20


def ramp(mib_per_tick: float = 2.0, start_mib: float = 100.0, ticks: int = 400) -> list[dict[str, float]]:
    """A straight leak of small Python objects."""
    return [
        {
            "rss": (start_mib + mib_per_tick * n) * MIB,
            "heap": (start_mib / 2 + mib_per_tick * n) * MIB,
            "blocks": 1e6 + 2e4 * n,
            "cpu": n * 1.0,
        }
        for n in range(ticks)
    ]


def watcher_of(readings: Any, tmp_path: Path | None = None, **options: Any) -> tuple[Watcher, FakeClock]:
    clock = FakeClock()
    options.setdefault("memory_limit", "4GiB")
    directory = tmp_path if tmp_path is not None else False
    return Watcher(interval="10s", directory=directory, clock=clock, source=ScriptedSource(readings), **options), clock


def run(watcher: Watcher, clock: FakeClock, ticks: int, interval_s: float = 10.0) -> list[str]:
    states = []
    for _ in range(ticks):
        states.append(watcher.tick().state)
        clock.advance(interval_s)
    return states


def fill(path: Path) -> None:
    """Write until the disk is full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, b"x" * 4096):
            pass
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(descriptor)


@pytest.fixture(autouse=True)
def _quiet_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="memwatch")


def test_a_leak_is_told_once_to_the_sinks_and_to_on_leak_and_again_when_it_has_doubled() -> None:
    sink, leaks = RecordingSink(), RecordingSink()
    watcher, clock = watcher_of(ramp(), sinks=[sink], on_leak=leaks)
    states = run(watcher, clock, 300)
    assert "leaking" in states
    first = leaks.reports[0]
    assert (first.verdict.state, first.verdict.kind) == ("leaking", "python-heap")
    grown = [report.verdict.grown for report in leaks.reports]
    assert all(later >= 2 * earlier for earlier, later in itertools.pairwise(grown))
    assert len(leaks.reports) >= 2
    assert len(sink.reports) >= len(leaks.reports)


def test_the_rate_is_that_of_the_leak_and_the_time_left_is_that_to_the_limit() -> None:
    watcher, clock = watcher_of(ramp(2.0))
    run(watcher, clock, 200)
    verdict = watcher.report().verdict
    assert verdict.rate == pytest.approx(0.2 * MIB, rel=0.1)
    left_s = (4096 - (100 + 2.0 * 199)) / 0.2
    assert verdict.exhausted_in_s == pytest.approx(left_s, rel=0.2)


def test_a_leak_whose_kind_goes_to_and_fro_is_told_once() -> None:
    # malloc and the Python heap grow alike: now the one is judged first, now the other.
    chance = random.Random(1)
    readings = []
    for n in range(300):
        noise = chance.gauss(0, 0.02)
        grown = {"rss": 60 + 0.1 * n + noise, "heap": 10 + 0.04 * n, "native": 20 + 0.06 * n + 0.1 * abs(noise)}
        readings.append({name: value * MIB for name, value in grown.items()} | {"blocks": 1e5 + 100 * n, "cpu": 0.1 * n})
    clock = FakeClock()
    watcher = Watcher(interval="200ms", directory=False, clock=clock, source=ScriptedSource(readings))
    run(watcher, clock, 300, interval_s=0.2)
    told = [event.details for event in watcher.report().events if event.what == "verdict" and event.details["state"] == "leaking"]
    assert 1 <= len(told) <= 2, [details["kind"] for details in told]


def test_a_level_that_is_entered_again_and_again_is_an_event_each_time_and_one_alert() -> None:
    sink = RecordingSink()
    readings = [{"rss": (750.0 if n % 4 < 2 else 500.0) * MIB} for n in range(120)]
    watcher, clock = watcher_of(readings, memory_limit="1000MiB", sinks=[sink])
    run(watcher, clock, 20)
    events = watcher.report().events
    assert sum(event.what == "pressure" and event.details["level"] == "warning" for event in events) >= 4
    assert sum(event.what == "alert" and event.details["alert"] == "peak" for event in events) == 1
    assert len(sink.reports) == 1
    run(watcher, clock, 40)  # minutes later it is news again
    assert sum(event.what == "alert" and event.details["alert"] == "peak" for event in watcher.report().events) == 2


def test_a_sink_that_raises_is_disabled_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    good = RecordingSink()

    def bad(report: Report) -> None:
        raise RuntimeError("no network")

    watcher, clock = watcher_of(ramp(), sinks=[bad, good])
    run(watcher, clock, 300)
    assert len(good.reports) >= 2
    (name,) = [name for name in watcher.failures if "bad" in name]
    assert watcher.failures[name] == "RuntimeError: no network"
    assert sum("no network" in record.message for record in caplog.records) == 1
    assert any(event.what == "plug" and event.details["plug"] == name for event in watcher.report().events)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_not_even_an_exit_raised_by_a_sink_escapes_the_tick(error: BaseException) -> None:
    def exits(report: Report) -> None:
        raise error

    watcher, clock = watcher_of(ramp(), on_leak=exits)
    assert "leaking" in run(watcher, clock, 200)
    assert any("exits" in name for name in watcher.failures)


def test_a_source_that_raises_is_listed_and_watching_goes_on() -> None:
    watcher, clock = watcher_of([OSError("gone"), {"rss": 5.0}])
    run(watcher, clock, 3)
    assert watcher.failures == {"source scripted": "OSError: gone"}
    assert watcher.statistics().channels["rss"].current == 5.0


def test_an_error_whose_message_cannot_be_shown_is_survived() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise ValueError

    watcher, clock = watcher_of([Hostile(), {"rss": 1.0}])
    run(watcher, clock, 2)
    assert "Hostile" in watcher.failures["source scripted"]


def test_a_sink_may_stop_the_watcher_without_a_deadlock(tmp_path: Path) -> None:
    def stops(report: Report) -> None:
        watcher.stop()

    watcher, clock = watcher_of(ramp(), tmp_path, on_leak=stops)
    done = threading.Thread(target=run, args=(watcher, clock, 200), daemon=True)
    done.start()
    done.join(30)
    assert not done.is_alive()
    (path,) = find_records(tmp_path)
    assert read_report(path).process.fate == "exited"


def test_nothing_is_written_after_stop(tmp_path: Path) -> None:
    watcher, clock = watcher_of(ramp(), tmp_path)
    run(watcher, clock, 3)
    watcher.stop()
    watcher.tick()
    (path,) = find_records(tmp_path)
    with Record(path) as record:
        assert len(list(record.samples())) == 3


def test_a_hook_may_take_a_snapshot_and_a_tick_inside_a_tick_takes_nothing() -> None:
    hooks, seen = ReliefHooks(), []
    watcher, clock = watcher_of([{"rss": 100.0 * MIB}], memory_limit="100MiB", hooks=hooks)

    def hook(pressure: Pressure) -> None:
        seen.append(watcher.snapshot().values["rss"])
        watcher.tick()

    hooks.add(hook)
    run(watcher, clock, 1)
    assert seen == [100.0 * MIB]
    assert watcher.statistics().samples == 1


def test_pressure_is_told_once_per_level_and_every_relief_step_is_recorded_with_what_it_freed(tmp_path: Path) -> None:
    hooks, told = ReliefHooks(), []
    readings = [{"rss": value * MIB} for value in (50, 75, 76, 90, 91, 50)]
    clock = FakeClock()
    source = ScriptedSource(reading for reading in readings for _ in range(1))
    watcher = Watcher(
        interval="10s", directory=tmp_path, memory_limit="100MiB", clock=clock, source=source, hooks=hooks, on_pressure=told.append,
        cleanup_interval=False,
    )  # fmt: skip
    hooks.add(lambda pressure: 1234)
    run(watcher, clock, 1)
    run(watcher, clock, 12)
    watcher.stop()
    assert [pressure.level for pressure in told][:1] == ["warning"]
    (path,) = find_records(tmp_path)
    events = read_report(path).events
    steps = [event.details for event in events if event.what == "relief"]
    assert steps[0]["freed"] == 1234
    assert any("gc.collect" in step["step"] for step in steps)
    assert all("rss_freed" in step for step in steps)
    assert any(event.what == "pressure" and event.details["level"] == "warning" for event in events)


def test_a_peak_alert_and_an_exhaustion_alert_are_distinct_from_a_leak() -> None:
    watcher, clock = watcher_of([{"rss": 100.0 * MIB}] * 3 + [{"rss": 3000.0 * MIB}] * 40)
    states = run(watcher, clock, 43)
    alerts = [event.details["alert"] for event in watcher.report().events if event.what == "alert"]
    assert "leaking" not in states
    assert alerts == ["peak"]
    watcher, clock = watcher_of(ramp(30.0), memory_limit="8GiB")
    run(watcher, clock, 150)
    alerts = [event.details["alert"] for event in watcher.report().events if event.what == "alert"]
    assert "exhaustion" in alerts


def test_the_periodic_cleanup_runs_periodic_hooks_and_nothing_else_of_the_program() -> None:
    hooks, ran = ReliefHooks(), []
    hooks.add(lambda pressure: ran.append("periodic"), level="periodic")
    hooks.add(lambda pressure: ran.append("warning"))
    watcher, clock = watcher_of([{"rss": 10.0 * MIB}], hooks=hooks, cleanup_interval="1m")
    run(watcher, clock, 31)
    assert ran == ["periodic"] * 5


def test_statistics_tell_current_average_and_peak_of_every_channel() -> None:
    watcher, clock = watcher_of([{"rss": 10.0}, {"rss": 40.0, "fds": 3.0}, {"rss": 10.0}])
    run(watcher, clock, 3)
    statistics = watcher.statistics()
    rss, fds = statistics.channels["rss"], statistics.channels["fds"]
    assert (statistics.samples, rss.current, rss.average, rss.peak) == (3, 10.0, 20.0, 40.0)
    assert (fds.current, fds.average) == (3.0, 3.0)
    assert fds.taken == pytest.approx(rss.taken - 10.0)


def test_a_trend_is_told_per_channel_and_an_unknown_channel_is_refused_with_those_there_are() -> None:
    watcher, clock = watcher_of(ramp())
    assert watcher.trend("rss").state == "warming-up"
    run(watcher, clock, 200)
    assert watcher.trend("rss").direction == "increasing"
    with pytest.raises(KeyError, match=r"no channel 'rsss' is judged; there are .*rss"):
        watcher.trend("rsss")


def test_the_wall_clock_may_jump_either_way_and_the_trend_and_the_order_of_samples_hold(tmp_path: Path) -> None:
    watcher, clock = watcher_of(ramp(), tmp_path)
    run(watcher, clock, 60)
    clock.set_wall(clock.time() + 86400.0)
    run(watcher, clock, 60)
    clock.set_wall(clock.time() - 3 * 86400.0)
    run(watcher, clock, 60)
    verdict = watcher.report().verdict
    assert verdict.state == "leaking"
    assert verdict.rate == pytest.approx(0.2 * MIB, rel=0.15)
    assert abs((verdict.since or 0) - clock.time()) < 3600
    notes = [event for event in watcher.report().events if event.what == "note"]
    assert [round(event.details["seconds"]) for event in notes] == [86400, -3 * 86400]
    watcher.stop()


def test_a_machine_that_sleeps_is_not_seen_as_a_jump_of_memory() -> None:
    readings = [{"rss": (100 + (n % 2)) * MIB, "cpu": n * 0.1} for n in range(300)]
    watcher, clock = watcher_of(readings)
    states = run(watcher, clock, 150)
    clock.advance(8 * 3600.0)
    states += run(watcher, clock, 150)
    assert "leaking" not in states
    assert "growing" not in states


def test_a_second_start_returns_the_running_watcher_and_says_what_it_ignores(caplog: pytest.LogCaptureFixture) -> None:
    first = memwatch.start(directory=False, interval="30s")
    try:
        assert memwatch.start() is first
        assert memwatch.start(interval="30s") is first
        assert caplog.records == []
        assert memwatch.start(interval="20s", name="other") is first
        assert "interval, name given to start() again is ignored" in caplog.text
    finally:
        memwatch.stop()
    assert memwatch.current() is None


def test_a_second_start_adds_its_sinks_to_the_running_watcher() -> None:
    sink = RecordingSink()
    watcher = memwatch.start(directory=False)
    try:
        memwatch.start(sinks=[sink])
        memwatch.start(sinks=[sink])
        assert list(watcher._audience.sinks.values()) == [sink]
    finally:
        memwatch.stop()


def test_labels_given_when_it_is_watched_already_are_added_and_none_is_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = memwatch.start(directory=tmp_path, interval="1h", labels={"team": "shop"}, evidence="off", socket="off")
    try:
        watcher.tick()
        assert watcher.record_path is not None
        memwatch.start(labels={"version": "1.4.2", "team": "shop"})
        assert caplog.text == ""
        watcher.tick()
        assert dict(watcher.report().process.labels) == {"team": "shop", "version": "1.4.2"}
        assert dict(read_report(watcher.record_path).process.labels) == {"team": "shop", "version": "1.4.2"}
        memwatch.start(labels={"version": "2"})
        assert "labels given to start() again is ignored" in caplog.text
        assert watcher.report().process.labels["version"] == "1.4.2"
    finally:
        memwatch.stop()


def test_a_watcher_may_be_started_again_and_begins_anew() -> None:
    watcher = Watcher(interval="50ms", directory=False)
    for _ in range(3):
        with watcher:
            assert watcher.running
        assert not watcher.running
        watcher.stop()


def test_the_kill_switch_makes_start_a_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMWATCH_DISABLE", "1")
    watcher = memwatch.start()
    assert not watcher.running
    assert memwatch.current() is None
    assert watcher.report().verdict.state == "warming-up"


def test_a_malformed_setting_is_an_error_of_start_itself() -> None:
    with pytest.raises(memwatch.SettingError, match="interval: '10'"):
        memwatch.start(interval="10")
    assert memwatch.current() is None


def test_what_is_not_callable_is_refused_where_it_is_given() -> None:
    with pytest.raises(TypeError, match=r"must be callable or have one of .*, not int"):
        Watcher(directory=False, sinks=[3])


def test_the_running_watcher_reads_this_process_and_reports_it() -> None:
    with Watcher(interval="50ms", directory=False) as watcher:
        values = watcher.snapshot().values
        report = watcher.report()
    assert 5 * MIB < values["rss"] < 4096 * MIB
    assert report.process.command
    assert {"rss", "cpu", "threads", "fds"} <= set(values)


def test_its_own_thread_and_descriptors_are_not_counted(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import sys, os, threading, time, memwatch
        before = (len(os.listdir("/proc/self/fd")) - 1, threading.active_count())
        watcher = memwatch.start(directory=sys.argv[1], interval="50ms")
        while watcher.statistics().samples < 3: time.sleep(0.01)
        values = watcher.snapshot().values
        print(before == (values["fds"], values["threads"]), before, values["fds"], values["threads"])
        """,
        tmp_path / "records",
    )
    assert done.stdout.startswith("True"), done.stdout


def test_the_program_ends_at_once_and_quietly_with_a_watcher_running(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import sys, memwatch
        memwatch.start(directory=sys.argv[1], interval="1h")
        memwatch.current().tick()
        raise ValueError("the program's own end")
        """,
        tmp_path / "records",
        check=False,
        timeout=20,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: the program's own end"
    assert "memwatch" not in done.stderr.split("Traceback")[0]
    (path,) = find_records(tmp_path / "records")
    process = read_report(path).process
    assert (process.fate, process.end) == ("exited", "uncaught ValueError")


def test_a_sub_interpreter_is_refused_politely(python: Any) -> None:
    done = python(
        """
        import sys
        try:
            import _interpreters as interpreters
            current = interpreters.create("legacy")
        except ImportError:
            import _xxsubinterpreters as interpreters
            current = interpreters.create(isolated=False)
        source = '''
        import memwatch
        watcher = memwatch.start(directory=False)
        assert not watcher.running
        assert memwatch.current() is None
        print("refused", flush=True)
        '''
        import textwrap
        error = interpreters.run_string(current, textwrap.dedent(source))
        assert error is None, error
        """
    )
    assert "refused" in done.stdout
    assert "this is a sub-interpreter" in done.stderr


def test_a_full_disk_ends_recording_with_one_line_and_the_program_and_the_watch_go_on(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watcher, clock = watcher_of(ramp(), small_disk)
    run(watcher, clock, 5)
    filler = small_disk / "filler"
    fill(filler)
    states = run(watcher, clock, 200)
    assert "leaking" in states
    messages = [record.message for record in caplog.records if "without a record" in record.message]
    assert len(messages) == 1
    assert str(small_disk) in messages[0]
    (path,) = find_records(small_disk)
    with Record(path) as record:
        before = len(list(record.samples()))
    assert before >= 5
    filler.unlink()
    run(watcher, clock, 60)
    assert "being written again" in caplog.text
    with Record(path) as record:
        assert len(list(record.samples())) > before
        assert any(event.details.get("state") == "leaking" for event in record.events())
    watcher.stop()


def test_a_record_deleted_under_the_watcher_is_begun_anew(tmp_path: Path) -> None:
    watcher, clock = watcher_of(ramp(), tmp_path)
    run(watcher, clock, 5)
    for path in tmp_path.iterdir():
        path.unlink()
    run(watcher, clock, 60)
    (path,) = find_records(tmp_path)
    with Record(path) as record:
        assert len(list(record.samples())) >= 20
    watcher.stop()


def test_a_directory_that_cannot_be_made_is_one_line_with_the_fix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    watcher, clock = watcher_of(ramp(), tmp_path / "file" / "below")
    assert "leaking" in run(watcher, clock, 200)
    messages = [record.message for record in caplog.records if "without a record" in record.message]
    assert len(messages) == 1
    assert "MEMWATCH_DIR" in messages[0]


def test_memory_does_not_grow_over_a_simulated_day_of_samples() -> None:
    import tracemalloc

    readings = [{"rss": (100 + n % 7) * MIB, "heap": (50 + n % 5) * MIB, "cpu": n * 0.1, "fds": 5.0 + n % 3} for n in range(1000)]
    watcher, clock = watcher_of(readings * 20, cleanup_interval=False)
    run(watcher, clock, 8_000)
    tracemalloc.start()
    try:
        first = tracemalloc.get_traced_memory()[0]
        run(watcher, clock, 8_000)
        grown = tracemalloc.get_traced_memory()[0] - first
    finally:
        tracemalloc.stop()
    assert grown < 300_000
