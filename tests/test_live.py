"""The live socket: who is answered, with what, and what happens to it when the program forks, closes it, or is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memwatch
from memwatch import live
from memwatch.live import LiveSocket
from memwatch.record import find_records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere: SO_PEERCRED is Linux's")
MEMWATCH = [sys.executable, "-m", "memwatch"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MEMWATCH_")}
    return kept | {"TMPDIR": str(tmp_path / "tmp"), "XDG_RUNTIME_DIR": "", "MEMWATCH_DIR": str(tmp_path / "records")}


@pytest.fixture
def service(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Starts a program that is watched; gives the process, ready when it has printed a line."""
    started = []

    def start(body: str, **more: str) -> Any:
        script = tmp_path / f"service{len(started)}.py"
        head = 'import memwatch, os, sys, time\nwatcher = memwatch.start(interval="100ms")\n'
        head += "door = watcher.live_socket\n"
        wait = "while door is not None and door.path is None and door.declined is None: time.sleep(0.01)\n"
        script.write_text(head + wait + textwrap.dedent(body))
        process = subprocess.Popen([sys.executable, script], env=environment | more, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        started.append(process)
        process.first_line = process.stdout.readline().decode()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def sockets(environment: dict[str, str]) -> list[Path]:
    return sorted(Path(environment["TMPDIR"]).glob("memwatch-*/*.sock"))


def ask(path: Path, method: str, target: str) -> tuple[int, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        while more := connection.recv(65536):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def run(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MEMWATCH, *words], env=env, capture_output=True, text=True, check=False, timeout=60)


WAITS = "print('ready', flush=True)\nsys.stdin.read()\n"


def test_only_the_user_may_open_the_socket_and_it_goes_when_the_program_ends(service: Any, environment: dict[str, str]) -> None:
    process = service(WAITS)
    (path,) = sockets(environment)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    process.stdin.close()
    process.wait(20)
    assert sockets(environment) == []


def test_another_user_is_refused_even_with_the_socket_open_to_all(service: Any, environment: dict[str, str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("elsewhere: becoming another user needs root")
    service(WAITS)
    (path,) = sockets(environment)
    path.chmod(0o666)
    path.parent.chmod(0o777)
    asks = f"""
import os, socket
os.chdir({str(path.parent)!r})  # past the directories that the other user may not enter
os.setgid(65534)
os.setuid(65534)
connection = socket.socket(socket.AF_UNIX)
connection.connect({path.name!r})
connection.sendall(b"GET /memory HTTP/1.1\\r\\n\\r\\n")
print(connection.recv(100).split()[1].decode())
"""
    asked = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=False, timeout=30)
    assert asked.stdout == "403\n", asked.stderr


def test_it_reads_by_default_and_changes_nothing(service: Any, environment: dict[str, str]) -> None:
    service(WAITS)
    (path,) = sockets(environment)
    status, memory = ask(path, "GET", "/memory")
    assert status == 200
    assert memory["snapshot"]["values"]["rss"] > 2**20
    assert ask(path, "POST", "/gc") == (403, {"error": "this process answers reads only; start it with MEMWATCH_SOCKET=control"})
    assert ask(path, "DELETE", "/caches?tag=a")[0] == 403


def test_gc_collects_where_control_is_given_and_says_how_to_give_it_where_not(service: Any, environment: dict[str, str]) -> None:
    garbage = """
        import gc; gc.disable()
        for _ in range(10000):
            a = []; a.append(a)
        del a
    """
    process = service(textwrap.dedent(garbage) + WAITS, MEMWATCH_SOCKET="control")
    done = run("gc", str(process.pid), "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["collected"] >= 9000
    refused = service(WAITS)
    done = run("gc", str(refused.pid), env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "MEMWATCH_SOCKET=control" in done.stderr


def test_off_opens_nothing_and_the_command_line_names_the_setting(service: Any, environment: dict[str, str]) -> None:
    process = service(WAITS, MEMWATCH_SOCKET="off")
    assert sockets(environment) == []
    done = run("report", str(process.pid), "--now", env=environment)
    assert done.returncode == 3
    assert "MEMWATCH_SOCKET=off" in done.stderr


def test_report_now_shows_what_is_alive_where_nothing_grows(service: Any, environment: dict[str, str]) -> None:
    process = service("""
        class Session:
            __slots__ = ("name",)
            def __init__(self): self.name = "x" * 40
        kept = [Session() for _ in range(30000)]
        print("ready", flush=True)
        sys.stdin.read()
    """)
    done = run("report", str(process.pid), "--now", env=environment)
    assert done.returncode == 0, done.stderr
    assert "alive, by type" in done.stdout
    assert "30,000 × __main__.Session" in done.stdout


def test_report_now_tells_what_grows_before_it_is_called_a_leak(service: Any, environment: dict[str, str]) -> None:
    process = service("""
        class Session:
            def __init__(self): self.data = bytearray(3000)
        kept = []
        while watcher.verdict.state not in ("growing", "leaking"):
            kept.append(Session())
            time.sleep(0.0005)
        print("ready", flush=True)
        while True:
            kept.append(Session())
            time.sleep(0.0005)
    """)
    done = run("report", str(process.pid), "--now", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    found = {item["collector"]: item for item in json.loads(done.stdout)["evidence"]}
    assert any("Session" in suspect["label"] or "bytearray" in suspect["label"] for suspect in found["types"]["suspects"])


def test_a_forked_child_has_a_socket_of_its_own_and_leaves_the_parents_alone(service: Any, environment: dict[str, str]) -> None:
    service("""
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.close(theirs)
            while watcher.live_socket.path is None: time.sleep(0.01)
            print("ready", flush=True)
            os.read(ours, 1)  # until the parent is gone
            os._exit(0)
        sys.stdin.read()
    """)
    paths = sockets(environment)
    assert len(paths) == 2
    assert {ask(path, "GET", "/health")[0] for path in paths} == {200}


def test_a_program_that_closes_every_descriptor_is_reached_again_and_keeps_its_files(
    service: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    process = service(f"""
        made = os.stat(door.path).st_ctime_ns
        os.closerange(3, 256)
        files = [open({str(tmp_path)!r} + f"/mine{{i}}", "w+b", buffering=0) for i in range(12)]
        for file in files: file.write(b"mine")
        while not (door.path and door.path.exists() and os.stat(door.path).st_ctime_ns != made): time.sleep(0.01)
        print("ready", flush=True)
        sys.stdin.read()
        memwatch.stop()
        for file in files: file.seek(0)
        sys.exit(0 if all(file.read() == b"mine" for file in files) else 9)
    """)
    (path,) = sockets(environment)
    assert ask(path, "GET", "/health") == (200, {"status": "ok"})
    process.stdin.close()
    assert process.wait(20) == 0


def test_what_a_killed_process_left_behind_is_removed_by_the_next(service: Any, environment: dict[str, str]) -> None:
    process = service(WAITS)
    (left,) = sockets(environment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left.exists()
    service(WAITS)
    assert left not in sockets(environment)
    assert len(sockets(environment)) == 1


def test_a_directory_that_others_may_enter_is_not_used_and_the_watch_goes_on(service: Any, environment: dict[str, str]) -> None:
    directory = Path(environment["TMPDIR"]) / f"memwatch-{os.geteuid()}"
    directory.mkdir()
    directory.chmod(0o777)
    process = service("""
        print(door.declined, flush=True)
        while watcher.statistics().samples < 5: time.sleep(0.01)
        print("goes on", flush=True)
    """)
    assert "is not a directory that only this user may enter" in process.first_line
    assert process.stdout.readline() == b"goes on\n"
    assert sockets(environment) == []


@pytest.mark.parametrize(
    "request_",
    [b"", b"\r\n\r\n", b"GET /\r\n\r\n", b"\xff" * 100 + b"\r\n\r\n", b"GET " + b"/" * 20000, b"POST /nothing HTTP/1.1\r\n\r\n"],
    ids=["empty", "blank", "no version", "not text", "endless", "unknown"],
)
def test_a_malformed_request_is_answered_or_dropped_and_the_next_is_served(
    service: Any, environment: dict[str, str], request_: bytes
) -> None:
    service(WAITS)
    (path,) = sockets(environment)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        try:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except OSError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 403"))
    assert ask(path, "GET", "/health") == (200, {"status": "ok"})


def test_a_client_that_sends_nothing_holds_the_samples_up_for_a_second_at_most(service: Any, environment: dict[str, str]) -> None:
    service(WAITS)
    (path,) = sockets(environment)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(path))
        assert ask(path, "GET", "/health")[0] == 200  # served after the idle one was given up
        idle.settimeout(30)
        assert b"cannot be read: timed out" in idle.recv(4096)


def test_the_descriptor_of_the_socket_is_not_counted_as_the_programs(service: Any, environment: dict[str, str]) -> None:
    counts = []
    for mode in ("on", "off"):
        service(WAITS, MEMWATCH_SOCKET=mode, MEMWATCH_NAME=mode)
    deadline_s = time.monotonic() + 30
    from memwatch.record import read_report

    while len(counts) < 2:
        assert time.monotonic() < deadline_s
        reports = [read_report(path) for path in find_records(Path(environment["MEMWATCH_DIR"]))]
        ready = [report for report in reports if report.statistics.samples > 3 and "sockets" in report.statistics.channels]
        counts = [(report.statistics.channels["fds"].current, report.statistics.channels["sockets"].current) for report in ready]
    assert counts[0] == counts[1]


def test_asking_a_process_that_is_not_there_says_what_may_be_the_cause() -> None:
    with pytest.raises(live.NoAnswer, match="has no live socket: it is gone, is not watched from inside"):
        live.ask(2**22 + 1, "GET", "/health")


def test_several_that_send_nothing_hold_the_samples_up_no_longer_than_one() -> None:
    watcher = memwatch.Watcher(directory=False)
    live = LiveSocket(watcher, control=False)
    live.open()
    try:
        clients = [socket.socket(socket.AF_UNIX) for _ in range(6)]
        for client in clients:
            client.connect(str(live.path))
        began_s = time.monotonic()
        live.poll()
        assert time.monotonic() - began_s < 2.5
    finally:
        live.close()
        for client in clients:
            client.close()


def test_closed_by_another_thread_while_a_client_is_served_it_ends_quietly() -> None:
    live = LiveSocket(memwatch.Watcher(directory=False), control=False)
    live.open()
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(str(live.path))
        second.connect(str(live.path))
        closing = threading.Timer(0.3, live.close)
        closing.start()
        live.poll()  # raises nothing
        closing.join()
    assert live.path is None


def test_where_no_directory_can_be_written_to_there_is_no_socket_and_the_watch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", none)
    watcher = memwatch.Watcher(directory=False, interval="50ms", evidence="off").start()
    try:
        deadline_s = time.monotonic() + 10
        while watcher.samples < 4:
            assert watcher.running and time.monotonic() < deadline_s
            time.sleep(0.02)
        assert watcher.live_socket is not None
        assert "XDG_RUNTIME_DIR" in str(watcher.live_socket.declined)
    finally:
        watcher.stop()


def test_an_answer_ends_although_a_child_forked_meanwhile_has_the_connection_too() -> None:
    live = LiveSocket(memwatch.Watcher(directory=False), control=False)
    live.open()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(live.path))
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            kept: list[int] = []
            sending = live._send

            def also_held(connection: Any, response: Any) -> None:
                kept.append(os.dup(connection.fileno()))  # as a fork does
                sending(connection, response)

            live._send = also_held  # type: ignore[method-assign]
            live.poll()
            answer = b""
            while more := client.recv(4096):
                answer += more
            assert answer.startswith(b"HTTP/1.1 200")
            os.close(kept[0])
    finally:
        live.close()
