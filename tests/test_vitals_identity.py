"""Which process is which."""

import os
import pickle
import subprocess
import sys
import time

import pytest

from memwatch.vitals import ProcessGone, identity, is_running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def child():
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()  # it is past its start
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_we_know_ourselves():
    me = identity()
    assert (me.pid, me.ppid) == (os.getpid(), os.getppid())
    assert me.command == tuple(sys.orig_argv) or len(me.command) >= len(sys.orig_argv)
    assert me.python == ".".join(map(str, sys.version_info[:3]))
    assert me.boot and me.name
    assert identity(os.getpid())[:5] == me[:5]


def test_the_start_of_a_process_is_told_in_unix_time():
    before = time.time()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    after = time.time()
    started_s = identity(child.pid).started_s
    child.stdin.close()
    child.wait()
    assert before - 0.05 < started_s < after + 0.05  # the kernel counts in hundredths


def test_the_start_of_an_old_process_agrees_with_psutils():
    psutil = pytest.importorskip("psutil")
    oldest = min(psutil.Process().parents(), key=lambda process: process.create_time())
    assert identity(oldest.pid).started_s == pytest.approx(oldest.create_time(), abs=2)  # psutil counts from whole seconds


def test_a_process_is_running_until_it_has_ended(child):
    seen = identity(child.pid)
    assert seen.ppid == os.getpid()
    assert is_running(seen.pid, seen.start_ticks, seen.boot)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(seen.pid, seen.start_ticks, seen.boot)
    child.wait()
    assert not is_running(seen.pid, seen.start_ticks, seen.boot)


def test_another_process_with_the_same_pid_is_not_it(child):
    seen = identity(child.pid)
    assert not is_running(seen.pid, seen.start_ticks - 1, seen.boot)


def test_a_process_of_an_earlier_boot_is_not_running(child):
    seen = identity(child.pid)
    assert not is_running(seen.pid, seen.start_ticks, "00000000-0000-0000-0000-000000000000")


def test_what_was_not_known_does_not_count(child):
    assert is_running(child.pid, None, None)


def test_a_pid_that_is_not_there_is_gone(child, monkeypatch):
    monkeypatch.setattr("memwatch.vitals.portable._psutil", lambda: None)
    child.stdin.close()
    child.wait()
    with pytest.raises(ProcessGone, match=f"process {child.pid} is not there") as caught:
        identity(child.pid)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.pid) == (str(caught.value), child.pid)


def test_without_proc_a_process_is_told_by_what_psutil_knows(child, tmp_path):
    pytest.importorskip("psutil")
    seen = identity(child.pid, proc_root=str(tmp_path))
    assert (seen.start_ticks, seen.boot) == (None, None)
    assert seen.ppid == os.getpid() and seen.command[-1].endswith("input()")
    assert is_running(child.pid, None, None, proc_root=str(tmp_path))
    child.stdin.close()
    child.wait()
    assert not is_running(child.pid, None, None, proc_root=str(tmp_path))
    with pytest.raises(ProcessGone):
        identity(child.pid, proc_root=str(tmp_path))
