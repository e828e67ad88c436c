"""The high-water mark of a block of code, above what the process held when it began.

Law: what can be known exactly is; the message says which engine measured.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from memwatch.gate.readings import Reader

UNSEEN_BYTES = 2 * 2**20
"""RSS decides only if it rose so much higher than the engine saw: pages of libraries and arenas are not the
program's (guess)."""
UNSEEN_SHARE = 0.25


_memray_has_run = False


class Peak(NamedTuple):
    """A high-water mark, in bytes above the beginning."""

    bytes: int
    engine: str
    sites: tuple[tuple[str, int], ...] = ()
    """Where it was allocated, the largest first, where the engine knows."""


class EngineMissing(RuntimeError):
    """The engine that was asked for is not here."""


def has_memray() -> bool:
    """Whether memray can be imported; it is not."""
    import importlib.util

    return importlib.util.find_spec("memray") is not None


class PeakMeter:
    """Measures the peak of a block: `start()`, the block, `stop()`.

    Args:
        engine: `memray` is exact for what goes through an allocator that it hooks, `tracemalloc` exact for Python's memory, `rss`
            is the kernel's high-water mark; `auto` takes memray where it is installed and nothing traces already, else tracemalloc.
            With each of them the kernel's mark is read too, and decides where it is much higher: memory that they do not see.

    Raises:
        EngineMissing: memray was asked for and is not installed.

    Cost: memray 11 to 13 ms a block; tracemalloc makes allocations two to six times slower; rss 15 µs.
    """

    def __init__(self, engine: str = "auto", *, reader: Reader | None = None) -> None:
        if engine == "memray" and not has_memray():
            raise EngineMissing("the peak engine memray is not installed: pip install memray")
        self._engine = engine
        self._own_reader = reader is None
        self._reader = reader or Reader()
        self._rss_before = 0
        self._directory: str | None = None
        self._tracker: Any = None
        self._traced_before: int | None = None
        self._tracing_ours = False

    def prepare(self) -> None:
        """Load the engine, so that what it keeps is not the block's.

        The first time in a process memray is run once over nothing (about 15 ms): its first tracker patches every library that is
        loaded and keeps what it has read of them.
        """
        global _memray_has_run
        if self._engine in ("auto", "memray") and has_memray():
            if not _memray_has_run and not (self._engine == "auto" and _is_tracing()):
                _memray_has_run = True
                self._start_memray()
                if self._tracker is not None:
                    self._stop_memray()
        elif self._engine != "rss":
            import tracemalloc  # noqa: F401

    def start(self) -> None:
        """Begin to measure."""
        engine = self._engine
        self._marked = reset_mark()
        self._rss_before = self._reader.read().rss or 0
        if engine in ("auto", "memray") and has_memray() and not (engine == "auto" and _is_tracing()):
            self._start_memray()
        if self._tracker is None and engine != "rss":
            self._start_tracing()

    def stop(self) -> Peak:
        """End, and tell the peak."""
        mark = read_mark() if self._marked else None
        resident = max(0, (mark if mark is not None else self._reader.read().rss or 0) - self._rss_before)
        found = self._stop_engine()
        if self._own_reader:
            self._reader.close()
        if found is None:
            return Peak(resident, "rss")
        if mark is not None and resident > found.bytes * (1 + UNSEEN_SHARE) + UNSEEN_BYTES and found.engine != "memray":
            return Peak(resident, "rss", found.sites)
        if mark is not None and found.engine == "memray" and resident > 2 * found.bytes + 2 * UNSEEN_BYTES:
            return Peak(resident, "rss", found.sites)
        return found

    def _start_memray(self) -> None:
        import memray

        self._directory = tempfile.mkdtemp(prefix="memwatch-peak-")
        try:
            self._tracker = memray.Tracker(Path(self._directory) / "peak.bin")
            self._tracker.__enter__()
        except RuntimeError:  # another tracker is active: the program's own
            self._tracker = None
            self._remove()

    def _start_tracing(self) -> None:
        import tracemalloc

        self._tracing_ours = not tracemalloc.is_tracing()
        if self._tracing_ours:
            tracemalloc.start(1)
        tracemalloc.reset_peak()
        self._traced_before = tracemalloc.get_traced_memory()[0]

    def _stop_engine(self) -> Peak | None:
        if self._tracker is not None:
            return self._stop_memray()
        if self._traced_before is None:
            return None
        import tracemalloc

        if not tracemalloc.is_tracing():
            return None  # the block has stopped it
        peak = tracemalloc.get_traced_memory()[1] - self._traced_before
        if self._tracing_ours:
            tracemalloc.stop()
        return Peak(max(0, peak), "tracemalloc")

    def _stop_memray(self) -> Peak:
        import memray

        tracker, self._tracker = self._tracker, None
        tracker.__exit__(None, None, None)
        assert self._directory is not None
        sites: dict[str, int] = {}
        total = 0
        with memray.FileReader(Path(self._directory) / "peak.bin") as reader:
            for record in reader.get_high_watermark_allocation_records(merge_threads=True):
                total += record.size
                stack = record.stack_trace(max_stacks=4)
                if stack:
                    function, file, line = stack[0]
                    label = f"{Path(file).name}:{line} {function}"
                    sites[label] = sites.get(label, 0) + record.size
        self._remove()
        ranked = [site for site in sorted(sites.items(), key=lambda item: -item[1])[:5] if site[1] >= total / 100]
        return Peak(total, "memray", tuple(ranked))

    def _remove(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


def _is_tracing() -> bool:
    tracemalloc = sys.modules.get("tracemalloc")
    return tracemalloc is not None and bool(tracemalloc.is_tracing())


def reset_mark() -> bool:
    """Set the kernel's high-water mark of RSS to its present level; False where it cannot be.  5 µs.

    The mark is the process's: `getrusage` and whoever else reads it sees it begin anew.
    """
    try:
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        os.write(descriptor, b"5")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def read_mark() -> int | None:
    """The kernel's high-water mark of RSS, in bytes; None where it tells none."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
