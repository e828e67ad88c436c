"""One line per test that begins, written at once: who kills a worker (the OOM killer, a crash) leaves the name of the test behind.

Law: nothing is flushed to the disk and nothing read while tests run: the kernel keeps what was written when the process is gone.
A descriptor that a test has closed is not written to: the number may be a file of the test's by then.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from memwatch.descriptors import identity

_close, _getpid, _open, _write = os.close, os.getpid, os.open, os.write  # a test may put its own in their place


class CrashLog:
    """The log of this process; the controller reads those of its workers.

    Args:
        directory: where; None is a folder in pytest's cache, and no log where there is no cache.
    """

    def __init__(self, config: pytest.Config, directory: str | None) -> None:
        self._worker = str(getattr(config, "workerinput", {}).get("workerid", "main"))
        self._directory = self._folder(config, directory)
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._path: Path | None = None
        self._pid = _getpid()
        self._stale = self._read_stale() if self._worker == "main" else []

    @staticmethod
    def _folder(config: pytest.Config, directory: str | None) -> Path | None:
        if directory:
            return Path(directory)
        cache = getattr(config, "cache", None)
        if cache is None:
            return None
        try:
            return Path(cache.mkdir("memwatch"))
        except (OSError, ValueError):
            return None

    def start(self, nodeid: str, rss: int | None) -> None:
        """A test begins.  About 10 µs."""
        self._write({"start": nodeid, "rss": rss, "time": round(time.time(), 3), "worker": self._worker, "pid": _getpid()})

    def end(self, nodeid: str) -> None:
        """It has ended."""
        self._write({"end": nodeid})

    def close(self) -> None:
        """All is well: no log is left."""
        if _getpid() != self._pid:
            return
        with contextlib.suppress(OSError):
            if self._descriptor is not None and identity(self._descriptor) == self._identity:
                _close(self._descriptor)
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        self._descriptor = None

    def last_of(self, nodeid: str) -> dict[str, Any]:
        """What is known of the worker that ran a test when it died."""
        for lines in self._logs():
            starts = [line for line in lines if "start" in line]
            if starts and starts[-1]["start"] == nodeid:
                return {"nodeid": nodeid, "worker": starts[-1]["worker"], "rss": starts[-1]["rss"], "tests": len(starts)}
        return {"nodeid": nodeid, "worker": None, "rss": None, "tests": None}

    def left_behind(self) -> list[dict[str, Any]]:
        """The tests that an earlier session ran when it was killed."""
        return self._stale

    def _write(self, what: dict[str, Any]) -> None:
        if self._directory is None or _getpid() != self._pid:
            return
        try:
            if self._descriptor is None or identity(self._descriptor) != self._identity:
                self._descriptor = self._open(self._directory)
            _write(self._descriptor, json.dumps(what).encode("ascii", "backslashreplace") + b"\n")
        except OSError:
            self._directory = None  # a full or read-only disk ends the log, not the tests

    def _open(self, directory: Path) -> int:
        if self._path is None:
            directory.mkdir(parents=True, exist_ok=True)
            self._path = directory / f"{self._worker}-{self._pid}.jsonl"
            self._path.unlink(missing_ok=True)
        descriptor = _open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._identity = identity(descriptor)
        return descriptor

    def _logs(self) -> list[list[dict[str, Any]]]:
        if self._directory is None:
            return []
        found = []
        for path in sorted(self._directory.glob("*.jsonl")):
            with contextlib.suppress(OSError, ValueError):
                found.append([json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")])
        return found

    def _read_stale(self) -> list[dict[str, Any]]:
        """Logs of processes that are gone; they are removed."""
        if self._directory is None:
            return []
        told = []
        for path in sorted(self._directory.glob("*.jsonl")):
            pid = path.stem.rpartition("-")[2]
            if not pid.isdigit() or _is_alive(int(pid)):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError):
                lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
                if lines and "start" in lines[-1]:
                    last = lines[-1]
                    told.append({"nodeid": last["start"], "worker": last["worker"], "rss": last["rss"], "tests": len(lines)})
            with contextlib.suppress(OSError):
                path.unlink()
        return told


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
