"""A real prefork server under load, of which one worker leaks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

# The first worker to lock the file leaks a session on every request; the others do the same work and keep nothing.
APP = """
import fcntl, os
lock = open(os.environ["LEAK_LOCK"], "w")
leaks = None
kept = []
class Session:
    def __init__(self, number): self.number, self.bag = number, {"user": str(number), "items": [str(number)] * 20}
def application(environ, start_response):
    global leaks
    if leaks is None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leaks = True
        except OSError:
            leaks = False
    sessions = [Session(number) for number in range(20)]
    if leaks:
        kept.extend(sessions)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {int(leaks)}".encode()]
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Load:
    """Requests from a few threads at a bounded rate until told to stop; counts what was answered and what failed."""

    def __init__(self, url: str, threads: int = 3, pause_s: float = 0.01) -> None:
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url, pause_s)) for _ in range(threads)]

    def _run(self, url: str, pause_s: float) -> None:
        while not self._over.wait(pause_s):
            try:
                with urllib.request.urlopen(url, timeout=10) as response:
                    answer = response.read().decode()
                self.answers[answer] = self.answers.get(answer, 0) + 1
            except OSError as error:
                self.failures.append(str(error))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def ps(directory: Path) -> list[dict[str, Any]]:
    listed = subprocess.run(
        [sys.executable, "-m", "memwatch", "ps", "--directory", directory, "--json"], capture_output=True, text=True, check=True
    )
    rows = json.loads(listed.stdout)
    return rows["processes"] if isinstance(rows, dict) else rows


def wait_for_port(port: int, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, server.communicate()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not listen")


def test_ps_names_the_one_of_three_gunicorn_workers_that_leaks(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    directory, port = tmp_path / "records", free_port()
    command = [
        sys.executable, "-m", "memwatch", "run", "--interval", "0.2s", "--directory", directory, "--",
        sys.executable, "-m", "gunicorn", "--workers", "3", "--bind", f"127.0.0.1:{port}", "--log-level", "error",
        "shop:application",
    ]  # fmt: skip
    env = dict(os.environ, LEAK_LOCK=str(tmp_path / "lock"))
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_port(port, server)
        with Load(f"http://127.0.0.1:{port}/") as load:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                rows = ps(directory)
                if any(row["verdict"]["state"] == "leaking" for row in rows):
                    break
                time.sleep(0.5)
    finally:
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=60)
    leaker = {answer.split()[0] for answer in load.answers if answer.endswith(" 1")}
    workers = {answer.split()[0] for answer in load.answers}
    flagged = {str(row["process"]["pid"]) for row in rows if row["verdict"]["state"] == "leaking"}
    assert len(workers) == 3, (load.answers, load.failures)
    assert flagged == leaker, (rows, err)
    assert {str(row["process"]["pid"]) for row in rows} >= workers
    assert load.failures == []
    assert server.returncode == 0, (out, err)
    ended = {str(row["process"]["pid"]): row["process"]["fate"] for row in ps(directory)}
    assert {ended[worker] for worker in workers} == {"exited"}
