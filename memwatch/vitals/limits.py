"""How much memory this process may have: control groups (v2, v1 and both at once), rlimits, the machine.

Law: every limit found is kept with its source; the tightest of them is the effective one.  All roots are parameters, so that any
machine's files can be read from a copy.
"""

# A pathlib call costs several times what it wraps, and readings come at every tick.
# ruff: noqa: PTH110, PTH112

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from memwatch.vitals import process

CGROUP_ROOT = "/sys/fs/cgroup"
# v1 writes "no limit" as the largest page-aligned 64-bit number (0x7FFFFFFFFFFFF000); nothing real comes near.
_NONE_ABOVE = 1 << 60


class Limit(NamedTuple):
    """One bound on the memory of a process."""

    bytes: int
    source: str
    """Where it was found, for people: `cgroup v2 memory.max of /system.slice/app.service`, `RLIMIT_AS`."""
    hard: bool = True
    """False for one that makes the kernel reclaim and throttle (`memory.high`) but not kill."""

    def to_dict(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "source": self.source, "hard": self.hard}


class _Group(NamedTuple):
    """One control group that accounts for the process, as a folder we can read."""

    version: Literal[1, 2]
    folder: str
    name: str
    """Its path as the kernel tells it, for people."""


def effective_limit(*, cgroup_root: str | None = None, proc_root: str = "/proc", pid: int | None = None) -> Limit | None:
    """The tightest limit of a process; None if none was found.

    `memory.high` counts: a process above it is throttled until it hardly runs, which for a service is the end.  A control group's
    limit is shared by all of its processes.  RLIMIT_AS bounds addresses, not resident pages: it is reached before RSS gets there.

    Args:
        cgroup_root: where the control groups are mounted; None is /sys/fs/cgroup.
        proc_root: where /proc is.
        pid: whose; None is this process.

    Cost: about 0.3 ms (a dozen small files): every few minutes, because a container can be resized.
    """
    return min(all_limits(cgroup_root=cgroup_root, proc_root=proc_root, pid=pid), key=lambda limit: limit.bytes, default=None)


def all_limits(*, cgroup_root: str | None = None, proc_root: str = "/proc", pid: int | None = None) -> tuple[Limit, ...]:
    """Every limit found, with its source: control groups from the process's own upwards, rlimits, the machine."""
    found: list[Limit] = []
    for group in _groups(cgroup_root, proc_root, pid):
        files = (("memory.max", True), ("memory.high", False)) if group.version == 2 else (("memory.limit_in_bytes", True),)
        for file, hard in files:
            size = _number(f"{group.folder}/{file}")
            if size is not None:
                found.append(Limit(size, f"cgroup v{group.version} {file} of {group.name}", hard))
    found.extend(_rlimits(proc_root, pid))
    host = host_bytes(proc_root=proc_root)
    if host is not None:
        found.append(Limit(host, "memory of this machine"))
    return tuple(found)


def host_bytes(*, proc_root: str = "/proc") -> int | None:
    """Memory of this machine, from /proc/meminfo, else from psutil; None where neither tells."""
    content = process.read_bytes(f"{proc_root}/meminfo")
    match = re.search(rb"^MemTotal:\s*(\d+) kB", content or b"", re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    from memwatch.vitals import portable

    return portable.host_bytes()


def cgroup_memory(*, cgroup_root: str | None = None, proc_root: str = "/proc", pid: int | None = None) -> int | None:
    """Bytes charged to the process's control group now, page cache included; None where there is none that accounts memory."""
    for group in _groups(cgroup_root, proc_root, pid):
        size = _number(f"{group.folder}/memory.current" if group.version == 2 else f"{group.folder}/memory.usage_in_bytes")
        if size is not None:
            return size
    return None


def oom_kills(*, cgroup_root: str | None = None, proc_root: str = "/proc", pid: int | None = None) -> int | None:
    """How many processes of the control group the OOM killer has killed; None where that isn't counted.

    A rise between two readings, with a process gone, says who killed it.  (v1 counts them since Linux 4.13.)
    """
    for group in _groups(cgroup_root, proc_root, pid):
        content = process.read_bytes(f"{group.folder}/{'memory.events' if group.version == 2 else 'memory.oom_control'}")
        match = re.search(rb"^oom_kill (\d+)$", content or b"", re.MULTILINE)
        if match:
            return int(match[1])
    return None


def pressure(*, cgroup_root: str | None = None, proc_root: str = "/proc") -> float | None:
    """Percent of the last 10 s in which some task waited for memory: the control group's, else the machine's; None without PSI."""
    path = pressure_file(cgroup_root=cgroup_root, proc_root=proc_root)
    return None if path is None else parse_pressure(process.read_bytes(path) or b"")


def pressure_file(*, cgroup_root: str | None = None, proc_root: str = "/proc") -> str | None:
    """The file of memory pressure that concerns this process; None if none can be read (PSI may be there, but switched off)."""
    candidates = [f"{group.folder}/memory.pressure" for group in _groups(cgroup_root, proc_root, None) if group.version == 2][:1]
    for path in (*candidates, f"{proc_root}/pressure/memory"):
        if parse_pressure(process.read_bytes(path) or b"") is not None:
            return path
    return None


def parse_pressure(content: bytes) -> float | None:
    """`some avg10` of a PSI file; None if it is not one."""
    match = re.match(rb"some avg10=(\d+(?:\.\d+)?) ", content)
    return float(match[1]) if match else None


def _rlimits(proc_root: str, pid: int | None) -> Iterator[Limit]:
    content = process.read_bytes(f"{proc_root}/{'self' if pid is None else pid}/limits")
    if content is not None:
        for title, name in ((rb"Max address space", "RLIMIT_AS"), (rb"Max data size", "RLIMIT_DATA")):
            match = re.search(rb"^" + title + rb"\s+(\d+)\s", content, re.MULTILINE)
            if match and int(match[1]) < _NONE_ABOVE:
                yield Limit(int(match[1]), name)
    elif pid is None and proc_root == "/proc":
        try:
            import resource  # not on Windows
        except ImportError:
            return
        for name in ("RLIMIT_AS", "RLIMIT_DATA"):
            if hasattr(resource, name):
                soft = resource.getrlimit(getattr(resource, name))[0]
                if soft != resource.RLIM_INFINITY and soft < _NONE_ABOVE:
                    yield Limit(soft, name)


def _groups(cgroup_root: str | None, proc_root: str, pid: int | None) -> Iterator[_Group]:
    """The control groups that account for the process's memory, from its own upwards, v2 first.

    Source: cgroups(7), proc_pid_mountinfo(5).  The path that the kernel tells is relative to the root of the mount, which in a
    container need not be the root of the hierarchy: where the path does not exist below the mount, the mount itself is our group.
    """
    root = cgroup_root or CGROUP_ROOT
    own = f"{proc_root}/{'self' if pid is None else pid}"
    paths = _own_paths(process.read_bytes(f"{own}/cgroup") or b"")
    mounts = list(_mounts(process.read_bytes(f"{proc_root}/self/mountinfo") or b"", root))
    mounts += [(2, root, "/"), (2, f"{root}/unified", "/"), (1, f"{root}/memory", "/")]
    for version in (2, 1):
        path = paths.get(version)
        if path is None:
            continue
        for mounted_version, mount, mount_root in mounts:
            if mounted_version != version or not _is_hierarchy(mount, version):
                continue
            yield from _upwards(version, mount, mount_root, path)
            break


def _own_paths(content: bytes) -> dict[int, str]:
    paths: dict[int, str] = {}
    for line in os.fsdecode(content).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif "memory" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(content: bytes, root: str) -> Iterator[tuple[Literal[1, 2], str, str]]:
    """(version, folder, root within the hierarchy) of every mount that may account memory; the usual place is now *root*."""
    for line in os.fsdecode(content).splitlines():
        head, dash, tail = line.partition(" - ")
        fields, kind = head.split(), tail.split()
        if not dash or len(fields) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version: Literal[1, 2] = 2 if kind[0] == "cgroup2" else 1
        if version == 1 and "memory" not in kind[-1].split(","):
            continue
        mount_root, mount = _unescape(fields[3]), _unescape(fields[4])
        if mount == CGROUP_ROOT or mount.startswith(CGROUP_ROOT + "/"):
            yield version, root + mount[len(CGROUP_ROOT) :], mount_root
        elif root == CGROUP_ROOT:
            yield version, mount, mount_root


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_hierarchy(folder: str, version: int) -> bool:
    return os.path.exists(f"{folder}/{'cgroup.procs' if version == 2 else 'memory.limit_in_bytes'}")


def _upwards(version: Literal[1, 2], mount: str, mount_root: str, path: str) -> Iterator[_Group]:
    inside = path
    if mount_root != "/":
        inside = path[len(mount_root) :] if path == mount_root or path.startswith(mount_root + "/") else "/"
    parts = [part for part in inside.split("/") if part]
    if ".." in parts or not os.path.isdir("/".join((mount, *parts))):
        parts = []
    above = path.split("/")[: -len(parts)] if parts else path.split("/")
    prefix = "/".join(above).rstrip("/")
    for depth in range(len(parts), -1, -1):
        yield _Group(version, "/".join((mount, *parts[:depth])), "/".join((prefix, *parts[:depth])) or "/")


def _number(path: str) -> int | None:
    """The number in a limit's file; None for none, `max` and v1's largest number."""
    content = (process.read_bytes(path) or b"").strip()
    if not content.isdigit():
        return None
    number = int(content)
    return number if number < _NONE_ABOVE else None
