"""The forked child: the program notices nothing of it but the fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from memwatch.evidence import child

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere: the heap is looked at in a forked child on Linux only")

PRELUDE = """
import json, os, sys, time
from memwatch.evidence import census, child

def look(task=None, **options):
    worker = child.Child(task or census.Task(list, None, False), **options)
    while not worker.poll():
        time.sleep(0.005)
    return worker

def tell(**what):
    print(json.dumps(what), flush=True)
"""


def run(program: str, *, timeout: float = 60.0) -> tuple[dict[str, Any], str]:
    """What the program tells, and its standard error."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = {}
    for line in result.stdout.splitlines():
        told |= json.loads(line)
    return told, result.stderr


def test_no_handler_of_register_at_fork_runs_on_either_side_and_the_next_fork_runs_them_again() -> None:
    told, _ = run("""
        ran = []
        os.register_at_fork(before=lambda: ran.append("before"), after_in_parent=lambda: ran.append("parent"),
                            after_in_child=lambda: (ran.append("child"), os.write(1, b'{"in_child": true}\\n')))
        worker = look()
        tell(quiet=list(ran), types=len(worker.lines[0]["types"]))
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
        tell(after=ran)
    """)
    assert told["quiet"] == []
    assert told["types"] > 50
    assert told["after"] == ["before", "parent"]
    assert told["in_child"] is True


def test_the_child_prints_nothing_even_where_buffers_hold_something() -> None:
    told, errors = run("""
        sys.stdout.write('{"buffered": 1}\\n')
        sys.stderr.write("once\\n")
        look()
        tell(done=True)
    """)
    assert told == {"buffered": 1, "done": True}
    assert errors == "once\n"


def test_what_the_parent_closes_meanwhile_is_closed_for_the_peer() -> None:
    """A child that kept a socket would keep its connection open."""
    told, _ = run("""
        import socket, threading
        ours, theirs = socket.socketpair()
        held = [bytes(10) for _ in range(200_000)]
        worker = child.Child(census.Task(lambda: time.sleep(20) or [], None, True))
        time.sleep(0.1)
        ours.close()
        theirs.settimeout(5)
        tell(end=theirs.recv(1).decode(), still_at_work=not worker.poll())
        worker.kill()
    """)
    assert told == {"end": "", "still_at_work": True}


def test_the_child_is_nice_first_for_the_oom_killer_and_has_no_handler_of_the_program() -> None:
    told, _ = run("""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: print("handled in the child", flush=True))
        worker = child.Child(census.Task(lambda: time.sleep(20) or [], None, True))
        time.sleep(0.2)
        folder = f"/proc/{worker.pid}"
        stat = open(folder + "/stat").read().rpartition(")")[2].split()
        descriptors = sorted(os.listdir(folder + "/fd"), key=int)
        tell(nice=int(stat[16]), score=int(open(folder + "/oom_score_adj").read()), name=open(folder + "/comm").read().strip(),
             descriptors=descriptors, out=os.readlink(folder + "/fd/1"))
        os.kill(worker.pid, signal.SIGTERM)
        while not worker.poll(): time.sleep(0.005)
        tell(died=worker.died)
    """)
    assert told["nice"] == 19
    assert told["score"] == 1000
    assert told["name"] == "memwatch-census"
    assert told["descriptors"] == ["0", "1", "2", "3"]
    assert told["out"] == "/dev/null"
    assert told["died"] == f"crashed with signal {signal.SIGTERM.value}"


def test_a_child_beyond_its_deadline_is_ended_and_what_it_had_told_counts() -> None:
    told, _ = run("""
        class Slow(list): pass
        def endless():
            time.sleep(60)
        began = time.perf_counter()
        worker = look(census.Task(lambda: [], None, False), deadline_s=20.0)
        whole = len(worker.lines)
        worker = look(census.Task(endless, None, True), deadline_s=0.4)
        tell(died=worker.died, whole=whole, took=time.perf_counter() - began)
    """)
    assert "did not finish in time" in told["died"]
    assert told["whole"] >= 1
    assert told["took"] < 20


def test_a_child_ends_by_itself_when_its_parent_was_killed() -> None:
    program = PRELUDE + textwrap.dedent("""
        worker = child.Child(census.Task(lambda: time.sleep(60) or [], None, True), deadline_s=1.0)
        print(worker.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    descriptor = os.pidfd_open(pid)
    import select

    assert select.select([descriptor], [], [], 30)[0]
    os.close(descriptor)


def test_no_child_is_left_and_a_program_that_waits_for_any_child_does_no_harm() -> None:
    told, _ = run("""
        for _ in range(5): look()
        try:
            left = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            left = "none"
        worker = child.Child(census.Task(list, None, False))
        reaped = os.waitpid(-1, 0)[0] == worker.pid
        while not worker.poll(): time.sleep(0.005)
        tell(left=left, reaped=reaped, died=worker.died, types=len(worker.lines[0]["types"]) > 10)
    """)
    assert told == {"left": "none", "reaped": True, "died": None, "types": True}


def test_thread_states_that_die_with_the_fork_run_no_finalizer_of_the_program() -> None:
    told, errors = run("""
        import tempfile, threading
        folder = tempfile.mkdtemp()
        class Loud:
            def __del__(self):
                with open(os.path.join(folder, "finalized"), "a") as file: file.write("!")
        local = threading.local()
        stop, ready = threading.Event(), threading.Barrier(9)
        def work():
            local.value = Loud()
            kept = Loud()
            ready.wait(); stop.wait()
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads: thread.start()
        ready.wait()
        worker = look()
        tell(counted=worker.lines[0]["types"]["__main__.Loud"][0], died=worker.died, finalized=os.listdir(folder))
        stop.set()
    """)
    assert told == {"counted": 16, "died": None, "finalized": []}
    assert errors == ""


def test_forty_children_beside_threads_that_allocate_import_and_fork_all_answer() -> None:
    told, _ = run(
        """
        import threading, subprocess, importlib
        stop = threading.Event()
        def churn():
            while not stop.is_set(): [{"n": n} for n in range(500)]
        def forks():
            while not stop.is_set():
                pid = os.fork()
                if pid == 0: os._exit(0)
                os.waitpid(pid, 0)
        def imports():
            while not stop.is_set():
                for name in ("colorsys", "sched", "wave", "chunk"):
                    sys.modules.pop(name, None)
                    try: importlib.import_module(name)
                    except ImportError: pass
        import warnings; warnings.simplefilter("ignore")
        threads = [threading.Thread(target=target, daemon=True) for target in (churn, churn, forks, imports)]
        for thread in threads: thread.start()
        died = [look().died for _ in range(40)]
        stop.set()
        for thread in threads: thread.join()
        tell(died=[item for item in died if item])
        """,
        timeout=180,
    )
    assert told["died"] == []


def test_a_handler_of_sigchld_that_waits_for_any_child_is_left_one_to_take() -> None:
    told, errors = run("""
        import signal, threading
        taken = []
        signal.signal(signal.SIGCHLD, lambda *_: taken.append(os.wait()[0]))
        pids = []
        def watch():
            for _ in range(5): pids.append(look().pid)
        thread = threading.Thread(target=watch)
        thread.start()
        while thread.is_alive(): sum(range(3_000_000))  # C code, so that the handler comes late
        deadline = time.monotonic() + 10
        while len(taken) < 5 and time.monotonic() < deadline: time.sleep(0.01)
        tell(all=sorted(taken) == sorted(pids))
    """)
    assert told["all"] is True
    assert errors == ""


def test_a_program_that_closes_every_descriptor_keeps_what_it_opens_then() -> None:
    told, _ = run("""
        import socket
        worker = child.Child(census.Task(lambda: time.sleep(20) or [], None, True))
        os.closerange(3, 64)
        pairs = [socket.socketpair() for _ in range(8)]
        for ours, theirs in pairs: theirs.send(b"hello")
        ended = worker.poll()
        worker.kill()
        tell(ended=ended, died=worker.died, heard=[ours.recv(10).decode() for ours, _ in pairs])
    """)
    assert told["heard"] == ["hello"] * 8
    assert told["ended"] is True
    assert "the program closed its pipe" in told["died"]


def test_beside_a_sub_interpreter_no_child_is_forked() -> None:
    told, _ = run("""
        try: import _interpreters as interpreters
        except ImportError: import _xxsubinterpreters as interpreters
        identity = interpreters.create()
        try:
            child.Child(census.Task(list, None, False))
            problem = None
        except RuntimeError as error:
            problem = str(error)
        interpreters.destroy(identity)
        tell(problem=problem, after=len(look().lines))
    """)
    assert "sub-interpreter" in told["problem"]
    assert told["after"] > 0


def test_audit_hooks_imports_and_monitoring_of_the_program_do_not_run_in_the_child() -> None:
    told, _ = run("""
        import builtins, tempfile
        folder = tempfile.mkdtemp()
        parent = os.getpid()
        def note(what):
            if os.getpid() != parent: os.close(os.open(os.path.join(folder, what), os.O_CREAT | os.O_WRONLY))
        sys.addaudithook(lambda event, arguments: note("audit " + event))
        real = builtins.__import__
        def importing(*arguments, **more):
            note("import")
            return real(*arguments, **more)
        builtins.__import__ = importing
        class Session: pass
        before = look()
        kept = [Session() for _ in range(2000)]
        counts = {name: tuple(row) for name, row in before.lines[0]["types"].items()}
        worker = look(census.Task(list, counts, True))
        tell(ran=os.listdir(folder), paths=sum(line["what"] == "path" for line in worker.lines), died=worker.died)
    """)
    assert told["ran"] == []
    assert told["died"] is None
    assert told["paths"] > 0


def test_a_census_counts_every_object_once_with_its_size() -> None:
    told, _ = run("""
        class Plain: pass
        class Slots: __slots__ = ("a",)
        KEPT = [Plain() for _ in range(1000)] + [Slots() for _ in range(1000)] + ["text %d" % n * 20 for n in range(1000)]
        KEPT += [bytearray(1000) for _ in range(100)] + [list(range(100)) for _ in range(100)] + [{n: n} for n in range(1000)]
        TEXTS = {"key of a dictionary %d" % n: n for n in range(5000)}
        before = look().lines[0]["types"]
        KEPT += [Plain() for _ in range(500)] + [bytearray(1000) for _ in range(100)]
        MORE = {"another key %d" % n: n for n in range(2000)}
        after = look().lines[0]["types"]
        tell(**{name: [after[name][0] - before.get(name, [0, 0])[0], after[name][1] - before.get(name, [0, 0])[1]]
                for name in ("__main__.Plain", "bytearray", "str")}, slots=before["__main__.Slots"], texts=before["str"][0])
    """)
    assert told["__main__.Plain"][0] == 500
    assert told["bytearray"][0] == 100
    assert 100 * 1001 <= told["bytearray"][1] <= 100 * 1120
    assert 2000 <= told["str"][0] <= 2500  # the answers of the first census are text, too
    assert told["slots"][0] == 1000
    assert told["slots"][1] == pytest.approx(1000 * (16 + 8 + 16), rel=0.25)  # with its header for the collector
    assert told["texts"] > 6000


def test_frozen_objects_are_counted_and_searched_like_any_others() -> None:
    told, _ = run("""
        import gc
        class Kept: pass
        KEPT = [Kept() for _ in range(1000)]
        gc.collect(); gc.freeze()
        worker = look()
        tell(count=worker.lines[0]["types"]["__main__.Kept"][0], frozen=gc.get_freeze_count() > 1000)
    """)
    assert told == {"count": 1000, "frozen": True}


def test_where_memory_for_copied_pages_is_missing_no_child_is_forked_and_the_reason_has_the_numbers() -> None:
    why = child.refusal(1000 * 2**20, 1200 * 2**20)
    assert why is not None
    assert "564 MiB" in why
    assert "200 MiB are left" in why
    assert child.refusal(100 * 2**20, 1200 * 2**20) is None
    assert child.refusal(None, None) is None


def test_where_processes_are_forbidden_that_is_an_error_and_nothing_is_left_open() -> None:
    told, _ = run("""
        import resource
        before = sorted(os.listdir("/proc/self/fd"))
        os.setgid(65534); os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        try:
            child.Child(census.Task(list, None, False))
            problem = None
        except OSError as error:
            problem = str(error)
        tell(problem=problem, same=before == sorted(os.listdir("/proc/self/fd")))
    """) if os.geteuid() == 0 else ({"problem": "unavailable", "same": True}, "")  # fmt: skip
    assert "unavailable" in told["problem"]
    assert told["same"] is True


def test_the_heap_is_not_to_be_looked_at_outside_of_a_child() -> None:
    from memwatch.evidence import _heap

    with pytest.raises(RuntimeError, match="only in a child"):
        _heap.census(b"")
    with pytest.raises(RuntimeError, match="only in a child"):
        _heap.paths([], [], [], [])


def test_a_task_that_fails_in_the_child_is_told_with_its_error() -> None:
    told, errors = run("""
        def broken():
            raise ValueError("no blocks today")
        worker = look(census.Task(broken, None, True))
        tell(died=worker.died)
    """)
    assert "ValueError: no blocks today" in told["died"]
    assert errors == ""
