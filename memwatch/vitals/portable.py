"""The readings that psutil can give where there is no /proc (macOS, Windows) or not enough of it (gVisor).

Law: the only module of this package that imports psutil, and only when one of its functions is called; where psutil is not
installed, every answer is None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from memwatch.vitals.heap import Malloc


@functools.cache
def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil


def is_available() -> bool:
    """Whether psutil can be imported."""
    return _psutil() is not None


def exists(pid: int) -> bool:
    """Whether there is a process with this pid; True where nobody can tell."""
    psutil = _psutil()
    return True if psutil is None else bool(psutil.pid_exists(pid))


class NoSuchProcess(LookupError):
    """The process is gone."""


def _ask(pid: int | None, question: Callable[[Any], Any]) -> Any:
    """Put *question* to psutil's process; None where psutil has no answer.

    Raises:
        NoSuchProcess: it is gone.
        PermissionError: it belongs to another user.
    """
    psutil = _psutil()
    if psutil is None:
        return None
    try:
        return question(psutil.Process(pid))
    except AttributeError:
        return None  # not on this platform
    except psutil.NoSuchProcess as error:
        raise NoSuchProcess(str(error)) from None
    except psutil.AccessDenied as error:
        raise PermissionError(str(error)) from None
    except (NotImplementedError, OSError):
        return None


def resident_bytes(pid: int | None = None) -> int | None:
    """Resident bytes."""
    found = _ask(pid, lambda process: process.memory_info().rss)
    return None if found is None else int(found)


def threads(pid: int | None = None) -> int | None:
    """Threads of the operating system."""
    found = _ask(pid, lambda process: process.num_threads())
    return None if found is None else int(found)


def descriptors(pid: int | None = None) -> int | None:
    """Open descriptors, or handles on Windows."""
    psutil = _psutil()
    if psutil is not None and not hasattr(psutil.Process, "num_fds"):
        found = _ask(pid, lambda process: process.num_handles())
    else:
        found = _ask(pid, lambda process: process.num_fds())
    return None if found is None else int(found)


def children(pid: int | None = None) -> int | None:
    """Child processes."""
    found = _ask(pid, lambda process: len(process.children()))
    return None if found is None else int(found)


def cpu_s(pid: int | None = None) -> float | None:
    """User and system CPU seconds."""
    found = _ask(pid, lambda process: sum(process.cpu_times()[:2]))
    return None if found is None else float(found)


def unique_bytes(pid: int | None = None) -> int | None:
    """Bytes only this process holds."""
    found = _ask(pid, lambda process: process.memory_full_info().uss)
    return None if found is None else int(found)


def host_bytes() -> int | None:
    """Memory of this machine."""
    psutil = _psutil()
    if psutil is None:
        return None
    try:
        return int(psutil.virtual_memory().total)
    except (OSError, NotImplementedError):
        return None


def malloc() -> Malloc | None:
    """The C library's malloc, where psutil (7.2 and later) can ask it."""
    psutil = _psutil()
    if psutil is None:
        return None
    try:
        info = psutil.heap_info()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return Malloc(int(info.heap_used), int(info.mmap_used), None)


def described(pid: int | None = None) -> tuple[int | None, str, tuple[str, ...], float | None]:
    """Parent, name, command line and start time (Unix seconds) of a process."""

    def question(process: Any) -> tuple[int | None, str, tuple[str, ...], float | None]:
        with process.oneshot():
            return process.ppid(), process.name(), tuple(process.cmdline()), process.create_time()

    found: tuple[int | None, str, tuple[str, ...], float | None] | None = _ask(pid, question)
    return (None, "", (), None) if found is None else found
