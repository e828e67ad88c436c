"""Servers in processes of their own, for tests of integrations: started, waited for by what they say, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0


class Server:
    """A process whose output is read as it comes."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.output: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self.process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.base = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            self._lines.put(line)

    def said(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{pattern!r} was never said:\n{''.join(self.output)}") from None
            found = re.search(pattern, line)
            if found:
                return found

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        """Status and body of a request."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.base + path, method=method), timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def figures(self, path: str = "/ledger") -> dict[str, dict[str, Any]]:
        """What the application's ledger says, by route."""
        return {row["route"]: row for row in json.loads(self.get(path)[1])}

    def stop(self) -> str:
        """End it as an administrator does; returns all it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return "".join(self.output)


@contextlib.contextmanager
def serving(command: list[str], folder: Path, listening: str | None = None, **environment: str) -> Iterator[Server]:
    """Run a server of Python's environment while the block lasts; *listening* matches the line with its address or port."""
    server = Server([sys.executable, "-u", "-m", *command], folder, environment)
    try:
        if listening is not None:
            server.base = f"http://127.0.0.1:{server.said(listening)[1]}"
        yield server
    finally:
        server.stop()


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; returns what it gave."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline_s, f"it never came to be that {what}"
        time.sleep(0.02)


UVICORN = ["uvicorn", "app:app", "--port", "0", "--host", "127.0.0.1"]
UVICORN_LISTENS = r"running on http://127\.0\.0\.1:(\d+)"
GUNICORN = ["gunicorn", "app:app", "--bind", "127.0.0.1:0", "--workers", "1", "--no-control-socket"]
GUNICORN_LISTENS = r"Listening at: http://127\.0\.0\.1:(\d+)"
