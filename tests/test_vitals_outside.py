"""Reading another process."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from memwatch.vitals import OutsideVitals, ProcessGone, identity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
MIB = 2**20

SERVICE = """
import mmap, socket, sys, threading
kept = []
for line in sys.stdin:
    if line == "memory\\n":
        memory = mmap.mmap(-1, 64 * 2**20)
        memory.write(b"x" * len(memory))
        kept.append(memory)
    if line == "sockets\\n":
        kept.extend(socket.socket() for _ in range(20))
    if line == "threads\\n":
        gate = threading.Event()
        for _ in range(5):
            threading.Thread(target=gate.wait, daemon=True).start()
    print("ok", flush=True)
"""


class Service:
    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid
        self.ask("hello")

    def ask(self, what: str) -> None:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ok\n"

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.end()


def test_memory_sockets_and_threads_of_another_process_are_read(service):
    with OutsideVitals(service.pid) as vitals:
        before = vitals.read(complete=True)
        for what in ("memory", "sockets", "threads"):
            service.ask(what)
        after = vitals.read(complete=True)
        assert vitals.failed == {}
    grown = {name: after[name] - before[name] for name in before}
    assert 63 * MIB < grown["rss"] < 70 * MIB
    assert 63 * MIB < grown["uss"] < 70 * MIB
    assert grown["cpu"] >= 0
    assert (grown["sockets"], grown["fds"], grown["threads"], grown["children"]) == (20, 20, 5, 0)
    assert after["limit"] > 0


def test_a_process_that_has_ended_is_gone(service):
    with OutsideVitals(service.pid) as vitals:
        vitals.read()
        service.end()
        with pytest.raises(ProcessGone, match=f"process {service.pid} has ended"):
            vitals.read()
        with pytest.raises(ProcessGone):
            vitals.read()
    with pytest.raises(ProcessGone, match="is not there"):
        OutsideVitals(service.pid)


def test_a_process_that_nobody_has_waited_for_is_gone(service):
    with OutsideVitals(service.pid) as vitals:
        service.process.stdin.close()
        os.waitid(os.P_PID, service.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessGone, match="waited"):
            vitals.read()


def test_another_process_with_the_same_pid_is_not_read(tmp_path):
    folder = tmp_path / "42"
    folder.mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").write_text("1 (x) S")

    def stat(start_ticks: int) -> str:
        fields = ["S", "1", *["0"] * 50]
        fields[17], fields[19] = "3", str(start_ticks)
        return f"42 (app) {' '.join(fields)}\n"

    (folder / "statm").write_text("100 50 10 1 0 50 0\n")
    (folder / "stat").write_text(stat(1000))
    vitals = OutsideVitals(42, proc_root=str(tmp_path), cgroup_root=str(tmp_path))
    assert vitals.read()["rss"] > 0
    (folder / "stat").write_text(stat(2000))
    with pytest.raises(ProcessGone, match="another process"):
        vitals.read()


def test_a_process_of_another_user_is_refused_in_words(service, monkeypatch):
    refuse = os.listdir

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    told = []
    vitals = OutsideVitals(service.pid)
    monkeypatch.setattr("memwatch.vitals.process._listdir", denied)
    values = vitals.read(lambda name, error: told.append((name, str(error))), complete=True)
    monkeypatch.setattr("memwatch.vitals.process._listdir", refuse)
    assert "rss" in values and "sockets" not in values
    assert told == [
        ("sockets", f"sockets of process {service.pid} cannot be read: it belongs to another user. Run as that user or as root.")
    ]


def test_the_process_read_is_identified(service):
    vitals = OutsideVitals(service.pid)
    assert vitals.identity[:7] == identity(service.pid)[:7]
    assert vitals.identity.ppid == os.getpid()
    assert vitals.identity.command[:2] == (sys.executable, "-c")
