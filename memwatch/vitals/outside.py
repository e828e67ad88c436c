"""Another process, read from outside: what the kernel tells about it.

Law: the process is known by pid and start time; a reading is never of another process that got the pid since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

from memwatch.vitals import limits, portable, process
from memwatch.vitals.identity import Identity, ProcessGone, identity
from memwatch.vitals.pace import DUTY, USER_DUTY, OnError, Pace, Read, Timetable

_Found = TypeVar("_Found")

_RARE_S = 300.0
# The memory map of the other process is locked while its unique bytes are counted: its own mmap and munmap wait.
_NEVER_ABOVE_S = 0.020


class OutsideVitals:
    """Reads the process *pid*: `rss`, `file`, `cpu`, `fds`, `sockets`, `threads`, `children`, `uss`, `limit`.

    Args:
        pid: whose.
        proc_root, cgroup_root: where /proc and the control groups are.
        clock, cost_clock: as for `Vitals`.

    Raises:
        ProcessGone: there is no such process.

    Threads: one at a time.
    """

    def __init__(
        self,
        pid: int,
        *,
        proc_root: str = "/proc",
        cgroup_root: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        cost_clock: Callable[[], float] | None = None,
    ) -> None:
        self.pid = pid
        self.identity: Identity = identity(pid, proc_root=proc_root)
        self.limit: limits.Limit | None = None
        """The effective limit, as last read."""
        self._proc_root = proc_root
        self._cgroup_root = cgroup_root
        self._folder = f"{proc_root}/{pid}"
        self._portable = self.identity.start_ticks is None
        self._statm = process.OpenFile(f"{self._folder}/statm", 256)
        self._stat = process.OpenFile(f"{self._folder}/stat")
        sources: dict[str, Read] = {
            "status": self._read_status,
            "memory": self._read_memory,
            "fds": self._read_descriptors,
            "sockets": self._read_sockets,
            "children": self._read_children,
            "uss": self._read_unique,
            "limit": self._read_limit,
        }
        paces = {
            "fds": Pace(USER_DUTY),
            "sockets": Pace(USER_DUTY, size=lambda: self._timetable.latest.get("fds"), guess_s=3e-6),
            "children": Pace(USER_DUTY),
            "uss": Pace(DUTY, _RARE_S, _NEVER_ABOVE_S, lambda: self._timetable.latest.get("rss"), 5e-11),
            "limit": Pace(rest_s=_RARE_S),
        }
        self._timetable = Timetable(sources, paces, clock=clock, cost_clock=cost_clock, passes=(ProcessGone,))

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
        """Take one reading; arguments as for `Vitals.read`.

        Raises:
            ProcessGone: it has ended, or another process has its pid.
        """
        return self._timetable.read(on_error, complete=complete)

    def close(self) -> None:
        """Close the descriptors kept open; a later reading opens them again."""
        self._statm.close()
        self._stat.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, channel: str, question: Callable[[], _Found]) -> _Found:
        """Put a question to the system, and turn its refusals into words."""
        try:
            return question()
        except PermissionError:
            raise PermissionError(
                f"{channel} of process {self.pid} cannot be read: it belongs to another user. Run as that user or as root."
            ) from None
        except portable.NoSuchProcess:
            raise ProcessGone(self.pid, "has ended") from None

    def _read_status(self) -> dict[str, float]:
        if self._portable:
            threads = self._ask("threads", lambda: portable.threads(self.pid))
            cpu = self._ask("cpu", lambda: portable.cpu_s(self.pid))
            return _present(threads=threads, cpu=cpu)
        try:
            status = process.parse_stat(self._stat.read())
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessGone(self.pid, "has ended") from None
        if status is None:
            raise ProcessGone(self.pid, "has ended")
        if status.start_ticks != self.identity.start_ticks:
            raise ProcessGone(self.pid, "has ended, and its pid belongs to another process now")
        if status.state in ("Z", "X", "x"):
            raise ProcessGone(self.pid, "has ended, and its parent has not waited for it yet")
        return {"threads": status.threads, "cpu": status.cpu_s}

    def _read_memory(self) -> dict[str, float]:
        if self._portable:
            return _present(rss=self._ask("rss", lambda: portable.resident_bytes(self.pid)))
        try:
            memory = process.parse_statm(self._ask("rss", self._statm.read))
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessGone(self.pid, "has ended") from None
        return {} if memory is None else {"rss": memory.rss, "file": memory.file}

    def _read_descriptors(self) -> dict[str, float]:
        if self._portable:
            return _present(fds=self._ask("fds", lambda: portable.descriptors(self.pid)))
        return _present(fds=self._ask("fds", lambda: process.count_descriptors(self._folder)))

    def _read_sockets(self) -> dict[str, float]:
        return _present(sockets=self._ask("sockets", lambda: process.count_sockets(self._folder)))

    def _read_children(self) -> dict[str, float]:
        if self._portable:
            return _present(children=self._ask("children", lambda: portable.children(self.pid)))
        found = process.children_of(self.pid, proc_root=self._proc_root)
        return {} if found is None else {"children": len(found)}

    def _read_unique(self) -> dict[str, float]:
        if self._portable:
            return _present(uss=self._ask("uss", lambda: portable.unique_bytes(self.pid)))
        process.demand_descriptor()
        return _present(uss=self._ask("uss", lambda: process.unique_bytes(self._folder)))

    def _read_limit(self) -> dict[str, float]:
        process.demand_descriptor()
        self.limit = limits.effective_limit(cgroup_root=self._cgroup_root, proc_root=self._proc_root, pid=self.pid)
        return {} if self.limit is None else {"limit": self.limit.bytes}


def _present(**values: float | None) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
