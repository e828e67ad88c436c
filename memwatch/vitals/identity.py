"""Which process is which: what tells a process from a later one with the same pid.

Law: pid, kernel start time and boot together name a process for ever; each of them alone does not.
"""

# A pathlib call costs several times what it wraps, and readings come at every tick.
# ruff: noqa: PTH115

from __future__ import annotations

import os
import re
import sys
import time
from typing import NamedTuple

from memwatch.vitals import portable, process

_PYTHON = re.compile(r"(?:python|pypy)(\d\.\d+)")
_DEAD = ("Z", "X", "x")


class ProcessGone(LookupError):
    """The process has ended, or its pid belongs to another one by now."""

    def __init__(self, pid: int, why: str) -> None:
        super().__init__(f"process {pid} {why}")
        self.pid = pid
        self.why = why

    def __reduce__(self) -> tuple[type[ProcessGone], tuple[int, str]]:
        return type(self), (self.pid, self.why)


class Identity(NamedTuple):
    """One process, as far as it can be told here; what can't is None or empty."""

    pid: int
    start_ticks: int | None
    """Kernel start time in clock ticks since the boot (field 22 of /proc/PID/stat)."""
    boot: str | None
    """Identity of the boot that `start_ticks` counts from."""
    ppid: int | None
    command: tuple[str, ...]
    name: str
    """The kernel's name of it, at most 15 characters on Linux."""
    python: str | None
    """Version of the interpreter; of another process only `3.11`, and only if its program file says so."""
    started_s: float | None
    """Unix time of its start."""


def identity(pid: int | None = None, *, proc_root: str = "/proc") -> Identity:
    """Tell which process this is.

    Args:
        pid: whose; None is this process.
        proc_root: where /proc is.

    Raises:
        ProcessGone: there is no such process.
        PermissionError: it belongs to another user, and where there is no /proc nothing is told about those.

    Cost: about 0.2 ms.
    """
    number = os.getpid() if pid is None else pid
    folder = f"{proc_root}/{'self' if pid is None else pid}"
    status = process.parse_stat(process.read_bytes(f"{folder}/stat") or b"")
    if status is None:
        if pid is not None and process.read_bytes(f"{proc_root}/self/stat") is not None:
            raise ProcessGone(number, "is not there")
        return _portable_identity(number, own=pid is None)
    command = (process.read_bytes(f"{folder}/cmdline") or b"").rstrip(b"\0")
    return Identity(
        pid=number,
        start_ticks=status.start_ticks,
        boot=boot_id(proc_root=proc_root),
        ppid=status.ppid,
        command=tuple(os.fsdecode(word) for word in command.split(b"\0")) if command else (),
        name=status.name,
        python=_own_python() if pid is None else _python_of(folder),
        started_s=_started_s(status.start_ticks),
    )


def is_running(pid: int, start_ticks: int | None, boot: str | None, *, proc_root: str = "/proc") -> bool:
    """Whether a process noted earlier is still there: the same one, and not a corpse nobody has waited for.

    Args:
        pid, start_ticks, boot: as `identity` told them.  None for what was not known: then the pid alone must do.
        proc_root: where /proc is.
    """
    now_boot = boot_id(proc_root=proc_root)
    if boot is not None and now_boot is not None and boot != now_boot:
        return False
    status = process.parse_stat(process.read_bytes(f"{proc_root}/{pid}/stat") or b"")
    if status is not None:
        return status.state not in _DEAD and start_ticks in (None, status.start_ticks)
    if process.read_bytes(f"{proc_root}/self/stat") is not None:
        return False
    return portable.exists(pid)


def boot_id(*, proc_root: str = "/proc") -> str | None:
    """Identity of this boot of the machine; None where the kernel has none."""
    content = process.read_bytes(f"{proc_root}/sys/kernel/random/boot_id")
    return content.decode("ascii", "replace").strip() or None if content else None


def _portable_identity(pid: int, *, own: bool) -> Identity:
    try:
        ppid, name, command, started_s = portable.described(None if own else pid)
    except portable.NoSuchProcess:
        raise ProcessGone(pid, "is not there") from None
    if own and not command:
        ppid, command = os.getppid(), tuple(sys.orig_argv)
    return Identity(pid, None, None, ppid, command, name, _own_python() if own else None, started_s)


def _own_python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _python_of(folder: str) -> str | None:
    try:
        program = os.readlink(f"{folder}/exe")
    except OSError:
        return None
    match = _PYTHON.search(program.rpartition("/")[2])
    return match[1] if match else None


def _started_s(start_ticks: int) -> float | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None:
        return None
    # In hundredths, as the kernel counts: two readings of the two clocks never differ by the same again.
    return round(time.time() - (time.clock_gettime(clock) - start_ticks / process.TICKS_PER_S), 2)
