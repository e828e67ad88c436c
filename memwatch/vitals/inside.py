"""Every channel of the process we are in, the cheapest way that is right.

Law: a channel that was not read at this tick is absent; a source that fails fails alone; what costs more than
`pace.FREE_BELOW_S` is taken less often, by itself.
"""

# A pathlib call costs several times what it wraps, and readings come at every tick.
# ruff: noqa: PTH116

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from memwatch.vitals import heap, limits, portable, process, tasks
from memwatch.vitals.pace import DUTY, USER_DUTY, OnError, Pace, Read, Timetable

# Guesses that stand in until the first measurement, on the high side (bench/tick.py, CPU seconds).
_POOLS_S_PER_BYTE = 4e-12  # measured 1.5e-12 with warm caches, up to 6e-12 with cold ones
_TRACKED_S_PER_BYTE = 2e-10  # measured 1.0e-10 to 1.4e-10
_UNIQUE_S_PER_BYTE = 5e-11  # measured 0.9e-11 idle, 1.1e-10 on a loaded machine
_SOCKETS_S_PER_DESCRIPTOR = 3e-6
_TASKS_S_PER_TASK = 2e-7
_CHILDREN_S_PER_FILE = 2e-5

_RARE_S = 300.0
_TRACKED_NEVER_ABOVE_S = 0.005  # of the GIL: the interpreter's switch interval, which any busy thread may hold it for
_UNIQUE_NEVER_ABOVE_S = 0.020  # of the lock on the memory map: other threads' mmap and munmap wait; a guess at what goes unnoticed


_Parsed = TypeVar("_Parsed")


def _no_own() -> int:
    return 0


class Vitals:
    """Reads this process.

    Args:
        proc_root: where /proc is.
        cgroup_root: where the control groups are mounted; None is /sys/fs/cgroup.
        clock: monotonic seconds; decides when a dear reading is due.
        cost_clock: measures what a reading costs; None is the thread's CPU time.
        own_fds, own_sockets, own_threads, own_children: how many of each memwatch itself has besides what this object holds;
            they are subtracted.
        extra: name to callable, read like the built-in sources.  Each returns the channels it read now.

    Threads: one at a time; the watcher serialises.  Fork: a child notices by itself; `after_fork()` does it at once.
    """

    def __init__(
        self,
        *,
        proc_root: str = "/proc",
        cgroup_root: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        cost_clock: Callable[[], float] | None = None,
        own_fds: Callable[[], int] = _no_own,
        own_sockets: Callable[[], int] = _no_own,
        own_threads: Callable[[], int] = _no_own,
        own_children: Callable[[], int] = _no_own,
        extra: Mapping[str, Read] | None = None,
    ) -> None:
        self._proc_root = proc_root
        self._cgroup_root = cgroup_root
        self._own = f"{proc_root}/self"
        self._own_fds, self._own_sockets = own_fds, own_sockets
        self._own_threads, self._own_children = own_threads, own_children
        self._pid = os.getpid()
        self._statm = process.OpenFile(f"{self._own}/statm", 256)
        self._stat = process.OpenFile(f"{self._own}/stat")
        self._pressure: process.OpenFile | None = None
        self._pressure_sought = False
        self._bound = False
        self._lists_children: bool | None = None
        self.limit: limits.Limit | None = None
        """The effective limit, as last read."""
        # The order matters: memory first, because others predict their cost by it; fds before sockets for the same reason.
        sources: dict[str, Read] = {
            "memory": self._read_memory,
            "threads": self._read_threads,
            "cpu": _read_cpu,
            "fds": self._read_descriptors,
            "sockets": self._read_sockets,
            "children": self._read_children,
            "tasks": _read_tasks,
            "malloc": self._read_malloc,
            "pools": self._read_pools,
            "collector": _read_collector,
            "gc_objects": _read_tracked,
            "uss": self._read_unique,
            "limit": self._read_limit,
            "pressure": self._read_pressure,
        }
        paces = {
            "sockets": Pace(DUTY, size=lambda: self.latest.get("fds"), guess_s=_SOCKETS_S_PER_DESCRIPTOR),
            "children": Pace(DUTY, size=self._children_files, guess_s=_CHILDREN_S_PER_FILE),
            "tasks": Pace(DUTY, size=tasks.registered, guess_s=_TASKS_S_PER_TASK),
            "malloc": Pace(DUTY),
            "pools": Pace(DUTY, size=self._anonymous, guess_s=_POOLS_S_PER_BYTE),
            "gc_objects": Pace(DUTY, _RARE_S, _TRACKED_NEVER_ABOVE_S, self._anonymous, _TRACKED_S_PER_BYTE),
            "uss": Pace(DUTY, _RARE_S, _UNIQUE_NEVER_ABOVE_S, lambda: self.latest.get("rss"), _UNIQUE_S_PER_BYTE),
            "limit": Pace(rest_s=_RARE_S),
        }
        for name, source in (extra or {}).items():
            if name in sources:
                raise ValueError(f"extra source {name!r}: memwatch has a source of that name; give it another")
            sources[name] = source
            paces[name] = Pace(USER_DUTY)
        self._timetable = Timetable(sources, paces, clock=clock, cost_clock=cost_clock)

    @property
    def sources(self) -> Mapping[str, Read]:
        """Source name to the callable that reads it."""
        return self._timetable.sources

    @property
    def failed(self) -> Mapping[str, str]:
        """Source name to why it was disabled."""
        return self._timetable.failed

    @property
    def cost_s(self) -> Mapping[str, float]:
        """Source name to the CPU seconds of its last reading."""
        return self._timetable.cost_s

    @property
    def latest(self) -> Mapping[str, float]:
        """Channel to its last value, however old."""
        return self._timetable.latest

    def read(self, on_error: OnError | None = None, *, complete: bool = False) -> dict[str, float]:
        """Take one reading.

        Args:
            on_error: called once with the name and the exception of a source that raised; the source is disabled.
            complete: also what is not due yet, for a reading that somebody asked for.  Left out even so: `gc_objects` if it would
                hold the GIL for more than 5 ms, `uss` if it would lock the memory map for more than 20 ms.

        Returns:
            The channels read now; never raises for a source that fails.

        Cost: bench/tick.py.
        """
        if os.getpid() != self._pid:
            self.after_fork()
        with contextlib.suppress(OSError):  # short of descriptors: the sources that need it say so
            self._bind()  # now, not to be taken for the cost of the first reading
        return self._timetable.read(on_error, complete=complete)

    def read_rss(self) -> float | None:
        """Resident bytes now, in 5 µs; None where nobody tells."""
        if os.getpid() != self._pid:
            self.after_fork()
        try:
            return self._read_memory().get("rss")
        except (OSError, MemoryError):
            return None

    def read_uss(self) -> int | None:
        """Bytes only this process holds, read now whatever it costs (9 to 110 ms per GiB); None where nobody tells."""
        found = process.unique_bytes(self._own)
        return found if found is not None else portable.unique_bytes()

    def read_gc_objects(self) -> int:
        """How many objects the cyclic collector tracks, read now whatever it costs (30 ms of GIL per million)."""
        return heap.count_tracked()

    @property
    def held_descriptors(self) -> int:
        """How many descriptors this object keeps open; `fds` does not count them."""
        return sum(file is not None and file.descriptor is not None for file in (self._statm, self._stat, self._pressure))

    def after_fork(self) -> None:
        """Read the child from now on: the descriptors kept open are the parent's, and what was measured was the parent."""
        self._pid = os.getpid()
        self.close()
        self.limit = None
        self._timetable.restart()

    def close(self) -> None:
        """Close the descriptors kept open; a later reading opens them again."""
        for file in (self._statm, self._stat, self._pressure):
            if file is not None:
                file.close()
        self._pressure, self._pressure_sought = None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _bind(self) -> None:
        if not self._bound:
            heap.bind()
            self._bound = True

    # Quantities that costs grow with.

    def _anonymous(self) -> float | None:
        latest = self._timetable.latest
        return latest["rss"] - latest.get("file", 0.0) if "rss" in latest else None

    def _children_files(self) -> float:
        """Files that a search for children has to read: one for each thread, or where the kernel lacks those, for each process."""
        if not process.has_children():
            return 0.0
        try:
            if self._lists_children is None:
                self._lists_children = process.lists_children(self._own)
            if self._lists_children:
                return self._timetable.latest.get("threads", 1.0)
            # The link count of /proc is the number of processes, and a little more.
            return float(os.stat(self._proc_root).st_nlink)
        except OSError:
            return 1.0

    # Sources.

    def _read_memory(self) -> dict[str, float]:
        memory = _recognised(self._statm, process.parse_statm)
        if memory is not None:
            return {"rss": memory.rss, "file": memory.file}
        return _present(rss=portable.resident_bytes())

    def _read_threads(self) -> dict[str, float]:
        status = _recognised(self._stat, process.parse_stat)
        count = status.threads if status is not None else portable.threads()
        return {} if count is None else {"threads": max(0, count - self._own_threads())}

    def _read_descriptors(self) -> dict[str, float]:
        count = process.count_descriptors(self._own)
        if count is None:
            count = portable.descriptors()
        return {} if count is None else {"fds": max(0, count - self.held_descriptors - self._own_fds())}

    def _read_sockets(self) -> dict[str, float]:
        count = process.count_sockets(self._own)
        return {} if count is None else {"sockets": max(0, count - self._own_sockets())}

    def _read_children(self) -> dict[str, float]:
        if not process.has_children():
            return {"children": 0}
        found = process.children_of(None, proc_root=self._proc_root)
        count = len(found) if found is not None else portable.children()
        return {} if count is None else {"children": max(0, count - self._own_children())}

    def _read_malloc(self) -> dict[str, float]:
        self._bind()
        found = heap.malloc()
        return {} if found is None else {"native": found.used_bytes + found.mapped_bytes}

    def _read_pools(self) -> dict[str, float]:
        self._bind()
        pools = heap.pools()
        if pools is None:
            count = getattr(sys, "getallocatedblocks", int)()
            return {"blocks": count} if count else {}
        values = {
            "heap": pools.allocated_bytes,
            "blocks": pools.all_blocks,
            "large_blocks": pools.all_blocks - pools.blocks,
        }
        retained = self._retained(pools)
        return _present(**values, retained=retained)

    def _retained(self, pools: heap.Pools) -> float | None:
        """Bytes kept by the allocators that nobody uses and that are resident.

        malloc goes on counting pages as free that `malloc_trim` has handed back, so its number is bounded by the resident bytes
        that are not accounted for otherwise.  Blocks with a mapping of their own are left out of the account: they may
        be untouched.
        """
        malloc = heap.malloc()
        if malloc is None or malloc.free_bytes is None:
            return None
        kept = pools.unused_bytes + malloc.free_bytes
        try:
            memory = self._read_memory()
        except OSError:
            return None
        if "file" not in memory:
            return kept
        return min(kept, max(0.0, memory["rss"] - memory["file"] - pools.allocated_bytes - malloc.used_bytes))

    def _read_unique(self) -> dict[str, float]:
        process.demand_descriptor()
        return _present(uss=self.read_uss())

    def _read_limit(self) -> dict[str, float]:
        process.demand_descriptor()
        self.limit = limits.effective_limit(cgroup_root=self._cgroup_root, proc_root=self._proc_root)
        return {} if self.limit is None else {"limit": self.limit.bytes}

    def _read_pressure(self) -> dict[str, float]:
        if not self._pressure_sought:
            process.demand_descriptor()
            self._pressure_sought = True
            path = limits.pressure_file(cgroup_root=self._cgroup_root, proc_root=self._proc_root)
            self._pressure = None if path is None else process.OpenFile(path, 256)
        return {} if self._pressure is None else _present(pressure=_recognised(self._pressure, limits.parse_pressure))


def _read_cpu() -> dict[str, float]:
    return {"cpu": time.process_time()}


def _read_tasks() -> dict[str, float]:
    return _present(tasks=tasks.count_tasks())


def _read_collector() -> dict[str, float]:
    return {"uncollectable": len(gc.garbage), "gc2": heap.count_full_collections()}


def _read_tracked() -> dict[str, float]:
    return {"gc_objects": heap.count_tracked()}


def _present(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _recognised(file: process.OpenFile, parse: Callable[[bytes], _Parsed | None]) -> _Parsed | None:
    """Read and parse a file kept open; open it anew if what came is not that file (its descriptor was closed and given away).

    Raises:
        OSError: it cannot be opened just now.
    """
    for _ in range(2):
        try:
            parsed = parse(file.read())
        except OSError as error:
            if process.is_shortage(error):
                raise
            return None
        if parsed is not None:
            return parsed
        file.reopen()
    return None
