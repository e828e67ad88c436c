"""A watched process from its first allocation to the sentence that names the culprit: real programs, real time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memwatch.model import Report
from memwatch.record import Record, find_records, read_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere: the heap is looked at in a forked child on Linux only"),
]

LOOP = """
import sys, time
import memwatch
watcher = memwatch.start(interval="0.1s", memory_limit="2GiB", name="case", cleanup_interval="off")
{setup}
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not (enough() if "enough" in globals() else False):
    {work}
    time.sleep(0.01)
{end}
"""
LEAK = {
    "setup": """
class Session:
    def __init__(self, n): self.n, self.cart = n, ["item %d of %d" % (i, n) for i in range(20)]
_STORE = {}
def enough(): return watcher.report().verdict.state == "leaking"
""",
    "work": "for _ in range(4): _STORE[len(_STORE)] = Session(len(_STORE))",
    "end": "",
}
FILL = {
    "setup": """
import functools
n = 0
@functools.lru_cache(maxsize=1_000_000)
def lookup(n): return "answer %d" % n * 30
def enough(): return any("a fill" in str(event.details.get("note")) for event in watcher.report().events)
""",
    "work": """
    for _ in range(20): n += 1; lookup(n)""",
    "end": "time.sleep(1)",
}
CYCLES = {
    "setup": """
import gc
gc.set_threshold(10_000_000)
class Node: pass
def enough(): return any("collection freed" in str(event.details.get("note")) for event in watcher.report().events)
""",
    "work": """
    for _ in range(30):
        a, b = Node(), Node(); a.other, b.other = b, a; a.text = "x" * 300""",
    "end": "time.sleep(1)",
}
THREADS = {
    "setup": """
import threading
stop = threading.Event()
def poll(): stop.wait()
def enough(): return watcher.report().verdict.state == "leaking"
""",
    "work": """
    time.sleep(0.1)
    threading.Thread(target=poll, daemon=True, name="poller").start()""",
    "end": "",
}
CASES = {"leak": LEAK, "fill": FILL, "cycles": CYCLES, "threads": THREADS}


class Case:
    def __init__(self, name: str, directory: Path) -> None:
        self.directory = directory
        env = {key: value for key, value in os.environ.items() if not key.startswith("MEMWATCH")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOP.format(**CASES[name])],
            env=env | {"MEMWATCH_DIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = ""

    def finish(self) -> Report:
        _, self.errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.errors
        (path,) = find_records(self.directory)
        return read_report(path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, Report]]:
    """All of them, two at a time."""
    found: dict[str, tuple[Case, Report]] = {}
    for pair in (("leak", "fill"), ("cycles", "threads")):
        running = {name: Case(name, tmp_path_factory.mktemp(name)) for name in pair}
        found |= {name: (case, case.finish()) for name, case in running.items()}
    return found


def states(report: Report) -> list[str]:
    return [str(event.details["state"]) for event in report.events if event.what == "verdict"]


def evidence(report: Report) -> dict[str, Any]:
    return {item.collector: item for item in report.evidence}


def test_a_leak_is_announced_with_its_evidence_in_the_log_and_in_the_record(cases: dict[str, tuple[Case, Report]]) -> None:
    case, report = cases["leak"]
    assert report.verdict.state == "leaking"
    assert report.explained is not None
    assert report.explained > 0.6
    holder = evidence(report)["holders"].suspects[0]
    assert holder.label.startswith("module __main__ → _STORE (dict, ")
    # The same in the log, at the moment it is found.
    assert "LEAK  case[" in case.errors
    assert "of the growth explained" in case.errors
    assert "_STORE (dict, " in case.errors


def test_until_the_evidence_is_in_a_leak_is_called_growing(cases: dict[str, tuple[Case, Report]]) -> None:
    _, report = cases["leak"]
    assert states(report)[-2:] == ["growing", "leaking"]


def test_a_cache_that_fills_is_never_called_a_leak_and_the_verdict_names_its_bound(cases: dict[str, tuple[Case, Report]]) -> None:
    case, report = cases["fill"]
    assert "leaking" not in states(report)
    assert "LEAK" not in case.errors
    assert "lru_cache __main__.lookup held" in report.verdict.reason
    assert "of at most 1,000,000 entries" in report.verdict.reason


def test_garbage_that_waits_for_the_collector_is_collected_once_and_told(cases: dict[str, tuple[Case, Report]]) -> None:
    case, report = cases["cycles"]
    note = next(str(event.details["note"]) for event in report.events if "collection freed" in str(event.details.get("note")))
    assert "% of the growth is garbage in cycles" in note
    assert "freed 0 B" not in note
    assert "leaking" not in states(report)
    assert "LEAK" not in case.errors


def test_leaking_threads_are_told_with_their_target(cases: dict[str, tuple[Case, Report]]) -> None:
    case, report = cases["threads"]
    assert report.verdict.kind == "threads"
    assert evidence(report)["resources"].suspects[0].label == "thread poller (target __main__.poll)"
    assert "thread poller (target __main__.poll)" in case.errors


def test_the_record_holds_what_was_alive_by_type_and_by_site(cases: dict[str, tuple[Case, Report]]) -> None:
    case, _ = cases["leak"]
    (path,) = find_records(case.directory)
    with Record(path) as record:
        collectors = {item.collector for census in record.censuses() for item in census.evidence}
    assert collectors >= {"types", "sites"}


def test_the_fingerprint_of_a_leak_is_the_same_in_another_process(cases: dict[str, tuple[Case, Report]], tmp_path: Path) -> None:
    _, report = cases["leak"]
    again = Case("leak", tmp_path).finish()
    assert again.process.pid != report.process.pid
    assert again.fingerprint == report.fingerprint


def test_a_service_that_is_told_to_end_while_its_heap_is_looked_at_ends_at_once_and_leaves_no_child(tmp_path: Path) -> None:
    program = """
import signal, sys, time
import memwatch
from memwatch.evidence import census, inquiry
real = census.run
census.run = lambda task: (time.sleep(60), real(task))  # a heap that takes long
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
memwatch.start(interval="0.05s", directory=False)
kept = []
while True:
    for _ in range(30): kept.append("x" * 400)
    time.sleep(0.01)
    children = open("/proc/self/task/%d/children" % __import__("threading").main_thread().native_id).read()
    import os
    for task in os.listdir("/proc/self/task"):
        words = open("/proc/self/task/%s/children" % task).read().split()
        if words: print(words[0], flush=True)
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MEMWATCH")}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        descriptor = os.pidfd_open(child)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(30) == 0
        assert time.monotonic() - began < 10
    import select

    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)


def test_a_leak_whose_evidence_is_not_in_when_the_program_ends_is_told_all_the_same(tmp_path: Path) -> None:
    program = """
import time
import memwatch
from memwatch.evidence import census
census.run = lambda task: time.sleep(60)  # a heap that takes longer than the program lives
watcher = memwatch.start(interval="0.05s", name="case", memory_limit="2GiB")
kept = []
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not watcher._inquiry.pending:
    for _ in range(60): kept.append("x" * 400)
    time.sleep(0.01)
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MEMWATCH")} | {"MEMWATCH_DIR": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = find_records(tmp_path)
    report = read_report(path)
    assert states(report)[-1] == "leaking"
    assert "LEAK  case[" in result.stderr
