"""Reading this process: real sockets, threads, children, memory."""

import contextlib
import errno
import gc
import itertools
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memwatch.model import CHANNEL_BY_NAME
from memwatch.vitals import Vitals, process

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def vitals() -> Iterator[Vitals]:
    with Vitals() as reader:
        yield reader


def test_every_channel_read_is_one_that_the_model_knows(vitals):
    values = vitals.read(complete=True)
    assert vitals.failed == {}
    assert set(values) <= set(CHANNEL_BY_NAME)
    assert {"rss", "file", "fds", "sockets", "threads", "children", "cpu", "uncollectable", "gc2", "limit"} <= set(values)


def test_fifty_sockets_are_fifty_descriptors_and_fifty_sockets(vitals):
    before = vitals.read(complete=True)
    with contextlib.ExitStack() as opened:
        for _ in range(50):
            opened.enter_context(socket.socket())
        after = vitals.read(complete=True)
        assert after["sockets"] - before["sockets"] == 50
        assert after["fds"] - before["fds"] == 50
    assert vitals.read(complete=True)["fds"] == before["fds"]


def test_a_leak_of_sockets_is_seen_while_it_grows():
    now = [0.0]
    costs = itertools.count()  # whatever is timed here costs 0.1 ms: on a busy machine a reading may cost more, and wait longer
    with Vitals(clock=lambda: now[0], cost_clock=lambda: next(costs) * 0.0001) as vitals, contextlib.ExitStack() as opened:
        first = vitals.read()["sockets"]
        for _ in range(30):
            for _ in range(3):
                opened.enter_context(socket.socket())
            now[0] += 0.2
            vitals.read()
        now[0] += 1.0
        vitals.read()
        assert vitals.latest["sockets"] - first == 90


def test_the_pools_of_a_small_process_are_read_once_a_second_when_samples_are_that_fast():
    now = [0.0]
    # What the walk and its table cost at 20 to 64 MiB: whatever is timed here costs 0.6 ms.
    costs = itertools.count()
    with Vitals(clock=lambda: now[0], cost_clock=lambda: next(costs) * 0.0006) as vitals:
        vitals.read()
        taken = []
        for _ in range(80):
            now[0] += 0.25
            if "heap" in vitals.read():
                taken.append(now[0])
    assert taken == [float(second) for second in range(1, 21)]


def test_descriptors_that_vitals_keeps_open_are_not_counted(vitals):
    really_open = process.count_descriptors("/proc/self")
    assert vitals.read()["fds"] == really_open
    assert vitals.held_descriptors >= 2
    assert process.count_descriptors("/proc/self") == really_open + vitals.held_descriptors
    assert vitals.read()["fds"] == really_open
    vitals.close()
    assert process.count_descriptors("/proc/self") == really_open


def test_ten_threads_are_ten_threads(vitals):
    before = vitals.read()["threads"]
    gate = threading.Event()
    threads = [threading.Thread(target=gate.wait) for _ in range(10)]
    for thread in threads:
        thread.start()
    try:
        assert vitals.read()["threads"] - before == 10
    finally:
        gate.set()
        for thread in threads:
            thread.join()


def test_children_are_counted_until_somebody_has_waited_for_them(vitals):
    before = vitals.read(complete=True)["children"]
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    assert vitals.read(complete=True)["children"] - before == 3
    for child in children:
        child.stdin.close()
    os.waitid(os.P_PID, children[0].pid, os.WEXITED | os.WNOWAIT)
    assert vitals.read(complete=True)["children"] - before == 3
    for child in children:
        child.wait()
    assert vitals.read(complete=True)["children"] == before


def test_looking_for_children_reaps_none(vitals):
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    vitals.read(complete=True)
    assert child.wait() == 7


def test_what_memwatch_itself_has_is_subtracted():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Vitals() as vitals:
        plain = vitals.read(complete=True)
    with Vitals(own_fds=lambda: 2, own_threads=lambda: 1, own_children=lambda: 1) as vitals:
        reduced = vitals.read(complete=True)
    child.stdin.close()
    child.wait()
    assert plain["fds"] - reduced["fds"] == 2
    assert plain["children"] - reduced["children"] == 1
    assert plain["threads"] - reduced["threads"] == 1


EXHAUSTED = """
    import os, resource, subprocess, sys
    from memwatch.vitals import Vitals

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    vitals = Vitals()
    told = []
    if sys.argv[1] == "later":
        vitals.read(complete=True)
        vitals.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for _ in range(3):
        poor = vitals.read(lambda name, error: told.append((name, error)), complete=True)
    assert vitals.read_rss() is None
    for descriptor in taken:
        os.close(descriptor)
    rich = vitals.read(complete=sys.argv[1] == "later")
    print(told, vitals.failed, sorted({"rss", "sockets", "children", "limit", "threads"} & set(poor)))
    print("heap" in poor, "heap" in rich)
    print(sorted({"rss", "sockets", "children", "limit", "threads"} & set(rich)), rich["children"], vitals.limit is not None)
    child.communicate()
"""


@pytest.mark.parametrize("when", ["from the first reading", "later"])
def test_what_cannot_be_read_for_want_of_a_descriptor_is_absent_until_there_is_one(python, when):
    done = python(EXHAUSTED, when)
    assert done.stdout.splitlines() == [
        "[] {} []",
        f"{when == 'later'} True",
        "['children', 'limit', 'rss', 'sockets', 'threads'] 1.0 True",
    ]


@pytest.mark.parametrize("when", ["from the first reading", "later"])
def test_the_pressure_file_is_sought_again_when_it_could_not_be_opened(tmp_path, monkeypatch, when):
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text("some avg10=7.00 avg60=0.00 avg300=0.00 total=5\n")
    vitals = Vitals(proc_root=str(tmp_path), cgroup_root=str(tmp_path))
    if when == "later":
        vitals.read()
        vitals.close()

    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("memwatch.vitals.process._open", refuse)
        patch.setattr("builtins.open", refuse)
        assert "pressure" not in vitals.read()
    assert vitals.read()["pressure"] == 7.0
    assert vitals.failed == {}


def test_descriptors_kept_open_are_never_those_of_the_standard_streams(python):
    done = python(
        """
        import os, sys
        from memwatch.vitals import Vitals
        report = os.dup(1)
        for number in (0, 1, 2):
            os.close(number)
        vitals = Vitals()
        vitals.read(complete=True)
        kept = [file.descriptor for file in (vitals._statm, vitals._stat, vitals._pressure) if file is not None]
        free = []
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:
                free.append(number)
        inherited = [number for number in kept if os.get_inheritable(number)]
        os.write(report, repr((min(kept) > 2, free, inherited, vitals.read()["rss"] > 0)).encode())
        os._exit(0)
        """
    )
    assert done.stdout == "(True, [0, 1, 2], [], True)"


def test_a_mapped_file_is_resident_but_told_apart(vitals, tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(bytes(50 * MIB))
    before = vitals.read()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[offset] for offset in range(0, len(mapped), PAGE)) == 0
        after = vitals.read()
    assert after["file"] - before["file"] > 49 * MIB
    assert abs((after["rss"] - after["file"]) - (before["rss"] - before["file"])) < 2 * MIB


def test_resident_memory_follows_what_is_touched(vitals):
    before = vitals.read()["rss"]
    with mmap.mmap(-1, 64 * MIB) as memory:
        for offset in range(0, len(memory), PAGE):
            memory[offset] = 1
        assert 63 * MIB < vitals.read_rss() - before < 66 * MIB
    assert vitals.read()["rss"] - before < 2 * MIB


def test_cpu_is_the_work_clock(vitals):
    before = vitals.read()["cpu"]
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert vitals.read()["cpu"] - before >= 0.05


def test_full_collections_and_garbage_are_counted(vitals):
    before = vitals.read()
    gc.collect()
    gc.garbage.append("unreachable")
    try:
        after = vitals.read()
    finally:
        gc.garbage.pop()
    assert after["gc2"] - before["gc2"] == 1
    assert after["uncollectable"] - before["uncollectable"] == 1


def test_a_forked_child_reads_itself_without_being_told(python):
    done = python(
        """
        import mmap, os
        from memwatch.vitals import Vitals

        vitals = Vitals()
        parent = vitals.read()
        inner, outer = os.pipe()
        child = os.fork()
        if child == 0:
            memory = mmap.mmap(-1, 64 * 2**20)
            memory.write(b"x" * len(memory))
            grown = vitals.read(complete=True)["rss"] - parent["rss"]
            status = open("/proc/self/stat").read().rsplit(")", 1)[1].split()
            difference = vitals.read_rss() - int(status[21]) * os.sysconf("SC_PAGE_SIZE")
            os.write(outer, f"{grown > 40 * 2**20} {abs(difference) < 2**20} {sorted(vitals.failed)}".encode())
            os._exit(0)
        os.waitpid(child, 0)
        print(os.read(inner, 100).decode(), vitals.read()["rss"] - parent["rss"] < 8 * 2**20)
        """
    )
    assert done.stdout == "True True [] True\n"


def test_what_was_measured_in_the_parent_is_forgotten_in_the_child(vitals):
    vitals.read(complete=True)
    assert "uss" in vitals.cost_s
    held = vitals.held_descriptors
    vitals.after_fork()
    assert held >= 2 and vitals.held_descriptors == 0
    assert vitals.cost_s == {} and vitals.latest == {} and vitals.limit is None
    assert vitals.read()["rss"] > 0


def test_readings_go_on_when_the_program_takes_the_descriptors_away(vitals, tmp_path, monkeypatch):
    monkeypatch.setattr("memwatch.vitals.portable._psutil", lambda: None)
    vitals.read()
    (tmp_path / "other").write_text("1 2 3\n")
    numbers = [vitals._statm.descriptor, vitals._stat.descriptor]
    with open(tmp_path / "other") as other:
        for number in numbers:
            os.dup2(other.fileno(), number)
    try:
        values = vitals.read()
        assert values["rss"] > MIB and values["threads"] >= 1
        assert [os.pread(number, 5, 0) for number in numbers] == [b"1 2 3", b"1 2 3"]
    finally:
        for number in numbers:
            os.close(number)


def fake_proc(folder: Path, *, gib: float) -> str:
    own = folder / "self"
    own.mkdir(exist_ok=True)
    pages = int(gib * 2**30) // PAGE
    (own / "statm").write_text(f"{2 * pages} {pages} 1000 1 0 {pages} 0\n")
    return str(folder)


def test_a_large_process_is_not_walked_at_the_first_tick(tmp_path):
    now = [0.0]
    vitals = Vitals(proc_root=fake_proc(tmp_path, gib=4), clock=lambda: now[0])
    assert not {"heap", "gc_objects", "uss"} & set(vitals.read())
    now[0] = 1000.0
    values = vitals.read()
    assert "heap" in values
    assert not {"gc_objects", "uss"} & set(values)
    assert not {"gc_objects", "uss"} & set(vitals.read(complete=True))


def test_a_small_process_is_walked_at_once(tmp_path):
    assert "heap" in Vitals(proc_root=fake_proc(tmp_path, gib=0.02)).read()


def test_unique_bytes_and_tracked_objects_are_read_on_demand_whatever_they_cost(vitals):
    assert vitals.read_uss() > MIB
    assert vitals.read_gc_objects() > 1000


def test_the_limit_is_read_again_every_few_minutes(tmp_path):
    now = [0.0]
    (tmp_path / "meminfo").write_text("MemTotal:        1024 kB\n")
    vitals = Vitals(proc_root=str(tmp_path), cgroup_root=str(tmp_path), clock=lambda: now[0])
    assert vitals.read()["limit"] == MIB
    (tmp_path / "meminfo").write_text("MemTotal:        2048 kB\n")
    now[0] = 299.0
    assert "limit" not in vitals.read()
    now[0] = 301.0
    assert vitals.read()["limit"] == 2 * MIB
    assert vitals.limit.source == "memory of this machine"


def test_pressure_is_that_of_the_own_control_group_where_it_has_one(tmp_path):
    own = tmp_path / "cgroup" / "app"
    own.mkdir(parents=True)
    (tmp_path / "cgroup" / "cgroup.procs").touch()
    (own / "memory.pressure").write_text(
        "some avg10=12.34 avg60=0.00 avg300=0.00 total=5\nfull avg10=1.00 avg60=0 avg300=0 total=0\n"
    )
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/app\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text("some avg10=99.00 avg60=0.00 avg300=0.00 total=5\n")
    vitals = Vitals(proc_root=str(tmp_path), cgroup_root=str(tmp_path / "cgroup"))
    assert vitals.read()["pressure"] == 12.34
    (own / "memory.pressure").unlink()
    assert Vitals(proc_root=str(tmp_path), cgroup_root=str(tmp_path / "cgroup")).read()["pressure"] == 99.0


def test_a_source_of_the_users_own_is_read_and_may_fail_alone():
    told = []
    vitals = Vitals(extra={"caches": lambda: {"caches": 1024}, "broken": lambda: {"x": [][0]}})
    values = vitals.read(lambda name, error: told.append((name, str(error))))
    assert values["caches"] == 1024.0 and values["rss"] > 0
    assert told == [("broken", "list index out of range")]
    assert list(vitals.failed) == ["broken"]


def test_a_source_may_not_take_the_name_of_another():
    with pytest.raises(ValueError, match=r"'memory'.*another"):
        Vitals(extra={"memory": dict})


def test_reading_needs_neither_psutil_nor_asyncio(python):
    done = python(
        """
        import sys
        sys.modules["psutil"] = None
        from memwatch.vitals import Vitals
        assert "ctypes" not in sys.modules
        vitals = Vitals()
        values = vitals.read(complete=True)
        print(vitals.failed, values["rss"] > 0, "asyncio" in sys.modules, "threading" in sys.modules)
        """
    )
    assert done.stdout.startswith("{} True False")
