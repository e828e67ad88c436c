"""Real forks, real prefork servers' ways of ending, real threads under gevent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memwatch.model import Process, Report
from memwatch.record import find_records, read_report
from memwatch.whoami import process_is_running


def reports(directory: Path) -> dict[int, Report]:
    found = [read_report(path, is_running=process_is_running) for path in find_records(directory)]
    return {report.process.pid: report for report in found}


WAIT = """
import sys, os, time, memwatch
def watched(samples=3):
    deadline = time.monotonic() + 30
    while memwatch.current().statistics().samples < samples:
        assert time.monotonic() < deadline
        time.sleep(0.01)
memwatch.start(directory=sys.argv[1], interval="50ms")
watched()
"""


def test_a_forked_child_has_its_own_watcher_and_record_and_the_parent_goes_on_with_its_own(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
parent = os.getpid()
child = os.fork()
if child == 0:
    watched(5)
    assert memwatch.current().record_path.name.split("-")[-2] == str(os.getpid())
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
watched(8)
print(parent, child)
""",
        tmp_path / "records",
    )
    parent, child = map(int, done.stdout.split())
    found = reports(tmp_path / "records")
    assert set(found) == {parent, child}
    assert found[child].process.ppid == parent
    assert found[child].process.fate == found[parent].process.fate == "exited"
    assert found[child].statistics.samples >= 5
    assert found[parent].statistics.samples >= 8
    assert done.stderr == ""


def test_a_child_of_multiprocessing_says_goodbye_and_does_not_show_as_killed(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=watched, args=(5,))
process.start(); process.join()
print(process.pid, process.exitcode)
""",
        tmp_path / "records",
    )
    child, status = map(int, done.stdout.split())
    assert status == 0
    assert reports(tmp_path / "records")[child].process.fate == "exited"


def test_a_pool_of_processes_works_and_every_worker_is_watched(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
def job(number):
    watched(4)
    return os.getpid()
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    pids = set(pool.map(job, range(4)))
print(*pids)
""",
        tmp_path / "records",
    )
    workers = set(map(int, done.stdout.split()))
    assert workers <= set(reports(tmp_path / "records"))


def test_a_child_that_is_gone_at_once_leaves_no_record(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
for _ in range(20):
    child = os.fork()
    if child == 0: sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
import subprocess
for _ in range(5):
    subprocess.run([sys.executable, "-c", "pass"], check=True, preexec_fn=lambda: None)
print(os.getpid())
""",
        tmp_path / "records",
    )
    assert set(reports(tmp_path / "records")) == {int(done.stdout)}
    assert done.stderr == ""


def test_a_program_is_not_warned_of_our_thread_however_long_its_own_fork_handlers_take(tmp_path: Path, python: Any) -> None:
    """Since Python 3.13 the warning comes after the handlers, when we sample again."""
    done = python(
        WAIT
        + """
os.register_at_fork(after_in_parent=lambda: time.sleep(0.3))
child = os.fork()
if child == 0: os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""",
        tmp_path / "records",
    )
    assert done.stderr == ""


def test_forking_from_many_threads_while_the_record_is_written_never_hangs_a_child(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import sys, os, time, threading, memwatch
        memwatch.start(directory=sys.argv[1], interval="50ms")
        def busy():
            while True: memwatch.current().tick()
        for _ in range(2): threading.Thread(target=busy, daemon=True).start()
        statuses = []
        for _ in range(40):
            child = os.fork()
            if child == 0:
                memwatch.current().tick()
                memwatch.stop()
                os._exit(7)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(set(statuses), flush=True)
        os._exit(0)
        """,
        tmp_path / "records",
        timeout=120,
    )
    assert done.stdout.strip() == "{7}"


def test_a_child_killed_by_a_signal_shows_as_killed_and_its_parent_does_not(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
import signal
child = os.fork()
if child == 0:
    watched(4)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
print(os.getpid(), child)
""",
        tmp_path / "records",
    )
    parent, child = map(int, done.stdout.split())
    found = reports(tmp_path / "records")
    assert (found[child].process.fate, found[parent].process.fate) == ("killed", "exited")
    assert found[child].statistics.samples >= 3  # the fourth was being taken


def test_a_child_begins_its_own_trend_and_does_not_inherit_the_parents_leak(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
child = os.fork()
if child == 0:
    watched(1)
    statistics = memwatch.current().statistics()
    assert statistics.samples < 5, statistics
    assert memwatch.current().report().verdict.state == "warming-up"
    sys.exit(0)
print(os.waitpid(child, 0)[1])
""",
        tmp_path / "records",
    )
    assert done.stdout.strip() == "0"


def test_a_fork_of_a_program_without_threads_does_not_warn_of_threads(tmp_path: Path, python: Any) -> None:
    done = python(
        WAIT
        + """
import warnings
warnings.simplefilter("error")
for _ in range(20):
    child = os.fork()
    if child == 0: os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
samples = memwatch.current().statistics().samples
watched(samples + 3)
print(memwatch.current().failures, "went on")
""",
        tmp_path / "records",
    )
    assert done.stdout.strip() == "{} went on"
    assert done.stderr == ""


def test_forks_in_quick_succession_do_not_add_samples(tmp_path: Path, python: Any) -> None:
    done = python(
        """
import sys, os, time, memwatch
watcher = memwatch.start(directory=sys.argv[1], interval="1h")
while watcher.statistics().samples < 1: time.sleep(0.01)
for _ in range(50):
    child = os.fork()
    if child == 0: os._exit(0)
    os.waitpid(child, 0)
print(watcher.statistics().samples)
""",
        tmp_path / "records",
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("when", ["before", "after"])
def test_under_gevent_the_sampler_runs_on_a_real_thread_while_the_program_never_yields(
    tmp_path: Path, python: Any, when: str
) -> None:
    pytest.importorskip("gevent", reason="elsewhere: gevent is not built for this Python")
    patch = "from gevent import monkey; monkey.patch_all()\n"
    start = "import memwatch; memwatch.start(directory=sys.argv[1], interval='50ms')\n"
    done = python(
        "import sys\n"
        + (patch + start if when == "after" else start + patch)
        + """
import time, gevent
def busy():
    begun = time.monotonic()
    while memwatch.current().statistics().samples < 5 and time.monotonic() - begun < 30: pass  # never yields to the hub
gevent.joinall([gevent.spawn(busy)])
samples = memwatch.current().statistics().samples
memwatch.stop()
print(samples)
""",
        tmp_path / "records",
    )
    assert int(done.stdout) >= 5
    assert done.stderr == ""


def test_a_pid_used_again_is_not_taken_for_the_process_of_the_record(tmp_path: Path, python: Any) -> None:
    done = python(WAIT + "print(os.getpid()); sys.stdout.flush(); os._exit(0)", tmp_path / "records")
    report = reports(tmp_path / "records")[int(done.stdout)]
    assert report.process.fate == "killed"
    impostor = Process.from_dict(report.process.to_dict() | {"pid": 1, "ended": None, "fate": "running"})
    assert not process_is_running(impostor)


def test_a_process_that_a_sink_starts_can_be_stopped_by_a_signal(tmp_path: Path, python: Any) -> None:
    done = python(
        """
        import sys, subprocess, time, memwatch
        from memwatch.watcher import Watcher
        started = []
        def sink(pressure):
            command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        watcher = Watcher(directory=False, interval="50ms", memory_limit="1MiB", on_pressure=sink).start()
        while not started: time.sleep(0.01)
        started[0].stdout.readline()
        started[0].terminate()
        print(started[0].wait(timeout=20))
        """
    )
    assert done.stdout.strip() == "-15"
