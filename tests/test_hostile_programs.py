"""Programs that do what programs do: close every descriptor, fork from many threads, break logging, hand over odd values."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memwatch.model import Process
from memwatch.record import Record, RecordError, RecordWriter, find_records, read_report, record_name
from memwatch.testing import FakeClock, RecordingSink, ScriptedSource
from memwatch.watcher import Watcher


def test_a_program_that_closes_every_descriptor_keeps_its_files_and_descriptors_to_itself(tmp_path: Path, python: Any) -> None:
    # Ticks by hand: what is closed in the middle of a commit (some 50 µs of an interval) cannot be told from ours.
    done = python(
        """
        import sys, os, memwatch
        watcher = memwatch.Watcher(directory=sys.argv[1])
        for _ in range(4): watcher.tick()
        for fd in range(3, 256):
            try: os.close(fd)
            except OSError: pass
        logs = [open(os.path.join(sys.argv[2], f"app{i}.log"), "a+b", buffering=0) for i in range(8)]
        for n in range(8):
            for log in logs: log.write(b"line %d\\n" % n)
            watcher.tick()
        watcher.stop()
        for log in logs: log.write(b"still mine\\n")
        for log in logs:
            log.seek(0)
            lines = log.read().splitlines()
            assert lines == [b"line %d" % k for k in range(8)] + [b"still mine"], lines[:5]
        print(watcher.failures)
        """,
        tmp_path / "records",
        tmp_path,
    )
    assert done.stdout.strip() == "{}", done.stderr
    records = find_records(tmp_path / "records")
    assert len(records) == 2
    assert sorted(read_report(path).statistics.samples for path in records) == [4, 12]


def test_a_record_is_begun_again_when_the_program_has_had_an_interval_to_close_the_rest(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import sys, os, memwatch
        watcher = memwatch.Watcher(directory=sys.argv[1])
        for _ in range(4): watcher.tick()
        first = watcher.record_path
        before = set(os.listdir("/proc/self/fd"))
        os.close(max(int(fd) for fd in before if "memwatch" in os.path.realpath(f"/proc/self/fd/{fd}")))
        watcher.tick()  # the program is still closing: nothing is opened that it could close next
        assert watcher.record_path is None
        assert not set(os.listdir("/proc/self/fd")) - before
        watcher.tick()
        assert watcher.record_path not in (None, first)
        watcher.stop()
        print(watcher.failures)
        """,
        tmp_path,
    )
    assert done.stdout.strip() == "{}", done.stderr


def test_threads_that_fork_at_the_same_time_and_starts_and_stops_meanwhile_never_hang(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import faulthandler, os, sys, threading, time, warnings, memwatch
        warnings.simplefilter("ignore")  # of 3.12 and later: this program forks beside threads of its own
        sys.setswitchinterval(1e-5)
        faulthandler.dump_traceback_later(50, exit=True)
        def forks():
            for _ in range(40):
                pid = os.fork()
                if pid == 0: os._exit(0)
                os.waitpid(pid, 0)
        def restarts():
            for _ in range(40):
                memwatch.start(interval="50ms", directory=False)
                time.sleep(0.002)
                memwatch.stop()
        threads = [threading.Thread(target=target) for target in (forks, forks, forks, restarts)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        watcher = memwatch.start(interval="50ms", directory=False)
        while watcher.statistics().samples < 3: time.sleep(0.01)
        names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
        memwatch.stop()
        print(names.count("memwatch"))
        """,
        timeout=90,
    )
    assert done.stdout.strip() == "1"
    assert done.stderr == ""


def test_a_child_forked_while_another_thread_starts_memwatch_can_start_it_too(python: Any) -> None:
    done = python(
        """
        import memwatch, os, threading, signal
        memwatch.start(interval="1s", directory=False)
        stop = False
        def again():
            while not stop: memwatch.start(interval="1s", directory=False)
        thread = threading.Thread(target=again); thread.start()
        killed = 0
        for i in range(10):
            pid = os.fork()
            if pid == 0:
                signal.alarm(10)
                memwatch.start(directory=False)
                os._exit(0)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        stop = True; thread.join()
        print(killed)
        """
    )
    assert done.stdout.strip() == "0"


def test_a_signal_handler_may_stop_memwatch_while_the_program_starts_it(python: Any) -> None:
    done = python(
        """
        import faulthandler, memwatch, signal, time
        faulthandler.dump_traceback_later(40, exit=True)
        signal.signal(signal.SIGALRM, lambda *_: memwatch.stop())
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            memwatch.start(interval="50ms", directory=False)
            memwatch.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("went on")
        """,
        timeout=60,
    )
    assert done.stdout.strip() == "went on"


def test_a_log_handler_that_raises_does_not_end_the_watch(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import logging, sys, time, memwatch
        class Broken(logging.Handler):
            def emit(self, record): raise ValueError("log backend is down")
        logging.getLogger().addHandler(Broken())
        watcher = memwatch.start(interval="50ms", directory="/proc/nowhere")
        while watcher.statistics().samples < 5: time.sleep(0.01)
        print(watcher.running)
        """,
        timeout=20,
    )
    assert done.stdout.strip() == "True"
    assert done.stderr == ""


def test_a_logging_configuration_that_disables_loggers_does_not_silence_memwatch(python: Any) -> None:
    done = python(
        """
        import logging.config, time, memwatch
        watcher = memwatch.start(interval="50ms", directory="/proc/nowhere", memory_limit="1MiB")
        handlers = {"h": {"class": "logging.StreamHandler"}}
        logging.config.dictConfig({"version": 1, "handlers": handlers, "root": {"handlers": ["h"]}})
        def sink(report): raise RuntimeError("pager is down")
        watcher.add_callbacks(sinks=[sink])
        watcher._tell("finding")
        """
    )
    assert "sink failed and was disabled: RuntimeError: pager is down" in done.stderr


@pytest.mark.parametrize("odd", [{(1, 2): 3}, {"x": {1, 2}}, {"x": float("inf")}, {"x": "n\udcfe"}, {"x": 10**400}])
def test_an_odd_event_does_not_cost_the_record_its_samples(tmp_path: Path, odd: dict[Any, Any]) -> None:
    watcher = Watcher(directory=tmp_path, source=ScriptedSource([{"rss": 1e6}]), clock=FakeClock())
    watcher.tick()
    watcher.note("block", odd)
    watcher.note("block", 5)  # type: ignore[arg-type]
    watcher.tick()
    watcher.stop()
    (path,) = find_records(tmp_path)
    with Record(path) as record:
        assert len(list(record.samples())) == 2


def test_a_value_too_large_for_sqlite_is_stored_as_a_float(tmp_path: Path) -> None:
    watcher = Watcher(directory=tmp_path, source=ScriptedSource([{"rss": 1e6}]), memory_limit="10000000TB", clock=FakeClock())
    watcher.tick()
    watcher.stop()
    (path,) = find_records(tmp_path)
    with Record(path) as record:
        (sample,) = record.samples()
    assert sample.values["limit"] == 1e19


def test_a_hook_that_returns_nonsense_costs_nothing_but_its_figure(tmp_path: Path) -> None:
    from memwatch.pressure import ReliefHooks

    hooks, ran = ReliefHooks(), []
    hooks.add(lambda pressure: 10**400)
    hooks.add(lambda pressure: ran.append("next"), priority=1)
    source = ScriptedSource([{"rss": 90.0 * 2**20}])
    watcher = Watcher(directory=tmp_path, source=source, memory_limit="100MiB", hooks=hooks, clock=FakeClock())
    watcher.tick()
    watcher.stop()
    assert ran == ["next"]
    (path,) = find_records(tmp_path)
    assert read_report(path).statistics.samples == 1


def test_sinks_are_told_of_a_peak() -> None:
    sink = RecordingSink()
    source = ScriptedSource([{"rss": 10.0 * 2**20}, {"rss": 90.0 * 2**20}])
    watcher = Watcher(directory=False, source=source, memory_limit="100MiB", sinks=[sink], clock=FakeClock())
    watcher.tick()
    watcher.tick()
    (report,) = sink.reports
    assert any(event.details.get("alert") == "peak" for event in report.events)


def test_a_file_that_somebody_else_put_there_is_never_written(tmp_path: Path) -> None:
    process = Process(os.getpid(), "api", started=1_800_000_000.0)
    program = (
        "import sys; from pathlib import Path; from memwatch.record import RecordWriter; from memwatch.model import Process; "
        f"RecordWriter(Path(sys.argv[1]), Process({os.getpid()}, 'api', started=1_800_000_000.0)).close()"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    theirs = tmp_path / record_name(process)
    before = theirs.read_bytes()
    writer = RecordWriter(tmp_path, process)
    writer.end(1_800_000_001.0, "normal exit")
    writer.close()
    assert writer.path != theirs
    assert theirs.read_bytes() == before


def test_a_reader_that_never_lets_go_cannot_make_the_log_grow_without_bound(tmp_path: Path) -> None:
    from test_record import PROCESS, report_of, sample_at

    writer = RecordWriter(tmp_path, PROCESS, limit_bytes=2**21)
    writer.write(sample_at(0), report_of())
    reader = sqlite3.connect(writer.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM samples").fetchone()
    with pytest.raises(RecordError, match="another program keeps reading it"):
        for index in range(1, 3000):
            writer.write(sample_at(index), report_of())
    assert Path(f"{writer.path}-wal").stat().st_size < 2**21
    reader.close()
    writer.write(sample_at(3000), report_of())
    writer.close()
