"""What the kernel says about one process: its files under /proc, parsed.

Law: a number comes from a file that was recognised; a file that is not there is None, and one that looks different is never
guessed at.
"""

# A pathlib call costs several times what it wraps, and readings come at every tick.
# ruff: noqa: PTH110, PTH112, PTH115, PTH119

from __future__ import annotations

import contextlib
import errno
import os
from typing import NamedTuple

from memwatch.descriptors import identity

# Running out of descriptors, memory or patience passes; it says nothing about what was asked.
_SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR))
_STANDARD_STREAMS = 3

# A test of the program may put its own in their place, and is read meanwhile.
_close, _listdir, _open, _stat = os.close, os.listdir, os.open, os.stat
_waitid = getattr(os, "waitid", None)
if hasattr(os, "pread"):
    _pread = os.pread

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def is_shortage(error: BaseException) -> bool:
    """Whether *error* tells that the process or the machine is short of something just now: ask again later."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES)


def demand_descriptor() -> None:
    """Return if a file can be opened just now.

    For those that take a file which cannot be opened for one that is not there, and would remember that.  5 µs.

    Raises:
        OSError: it cannot, for want of a descriptor or of memory.
    """
    try:
        _close(_open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if is_shortage(error):
            raise


class OpenFile:
    """A file under /proc that is kept open: reading it again costs 2 µs, opening it again 40 µs.

    A program that daemonises closes descriptors that are not its own, and may be given the same number for a file of its own.  So a
    reading that cannot be from our file makes us open it anew, and a descriptor is only ever closed while it still is our file.
    """

    __slots__ = ("_identity", "descriptor", "path", "size")

    def __init__(self, path: str, size: int = 1024) -> None:
        self.path = path
        self.size = size
        self.descriptor: int | None = None
        self._identity: tuple[int, int] | None = None

    def read(self) -> bytes:
        """Return its present content.

        Raises:
            OSError: it cannot be opened or read.
        """
        if self.descriptor is not None:
            try:
                return _pread(self.descriptor, self.size, 0)
            except OSError:
                self.reopen()
        return _pread(self._opened(), self.size, 0)

    def reopen(self) -> None:
        """Open it anew at the next reading."""
        self.close()

    def close(self) -> None:
        """Give the descriptor back if it still is ours."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is None:
            return
        if identity(descriptor) == self._identity:
            with contextlib.suppress(OSError):
                _close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _opened(self) -> int:
        self.descriptor = _above_standard_streams(_open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        self._identity = identity(self.descriptor)
        return self.descriptor


def _above_standard_streams(descriptor: int) -> int:
    """The same open file, under a number that nobody takes for standard input, output or error.

    A program that was started with those closed would write its errors to our file, or open its own under our number.
    """
    if descriptor >= _STANDARD_STREAMS:
        return descriptor
    try:
        import fcntl  # not on Windows
    except ImportError:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _STANDARD_STREAMS)
    finally:
        _close(descriptor)


class Memory(NamedTuple):
    """Bytes of a process, from `statm`."""

    size: int
    rss: int
    file: int


def parse_statm(content: bytes) -> Memory | None:
    """Read `/proc/PID/statm`: seven numbers, in pages; None if it is not that.

    Source: proc_pid_statm(5).  Its `shared` is file pages and shared memory.  On Linux 6.2 and later the counters are per CPU and
    may be behind by some pages per CPU.
    """
    fields = content.split()
    if len(fields) != 7:
        return None
    try:
        return Memory(int(fields[0]) * PAGE, int(fields[1]) * PAGE, int(fields[2]) * PAGE)
    except ValueError:
        return None


class Status(NamedTuple):
    """What `/proc/PID/stat` says."""

    pid: int
    name: str
    state: str
    ppid: int
    cpu_s: float
    threads: int
    start_ticks: int


def parse_stat(content: bytes) -> Status | None:
    """Read `/proc/PID/stat`; None if it is not that.  A name may hold spaces and brackets: the last bracket ends it.

    Source: proc_pid_stat(5), fields 1 to 4, 14, 15, 20 and 22.
    """
    head, bracket, tail = content.rpartition(b")")
    pid, opening, name = head.partition(b" (")
    fields = tail.split(None, 20)
    if not bracket or not opening or len(fields) < 20:
        return None
    try:
        return Status(
            pid=int(pid),
            name=os.fsdecode(name),
            state=fields[0].decode("ascii"),
            ppid=int(fields[1]),
            cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
        )
    except ValueError:
        return None


def read_bytes(path: str) -> bytes | None:
    """Return the content of a small file; None if it is not there or is not ours to read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None


def unique_bytes(process: str) -> int | None:
    """Bytes that only this process holds; *process* is its folder under /proc.

    Cost: the kernel walks the page tables with the process's mmap lock held: 0.3 ms at 30 MiB, 9 ms at 1 GiB, 36 ms at 4 GiB.
    """
    content = read_bytes(f"{process}/smaps_rollup")
    if content is None:
        return None
    total, found = 0, False
    for line in content.splitlines():
        if line.startswith((b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:")):
            total += int(line.split()[1]) * 1024
            found = True
    return total if found else None


def count_descriptors(process: str) -> int | None:
    """How many descriptors the process has open; None where /proc has no list of them.

    Linux 6.2 and later say so in the size of the folder (9 µs at any number); older ones say 0 there, and are listed.

    Raises:
        PermissionError: the process belongs to another user.
    """
    folder = f"{process}/fd"
    try:
        size = _stat(folder).st_size
        if size:
            return size
        listed = len(_listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Listing our own folder opens a descriptor of its own.
    return listed - 1 if process.endswith("/self") else listed


def descriptors_by_kind(pid: int | None = None, *, proc_root: str = "/proc") -> dict[str, int]:
    """Count the open descriptors by what they are: `file`, `socket`, `pipe`, `device`, `deleted` and the kernel's own kinds
    (`eventpoll`, `eventfd`, `timerfd`, `inotify`, `pidfd`, …).

    Args:
        pid: whose; None is this process.
        proc_root: where /proc is.

    Returns:
        Kind to count; empty where /proc has no list.

    Raises:
        PermissionError: the process belongs to another user.

    Cost: about 2 µs per descriptor.  It asks the kernel for names only: `stat` on a file of a dead network mount would hang.
    """
    folder = f"{proc_root}/{'self' if pid is None else pid}/fd"
    try:
        numbers = _listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    kinds: dict[str, int] = {}
    for number in numbers:
        try:
            target = os.readlink(f"{folder}/{number}")
        except OSError:
            continue  # closed since it was listed; the descriptor of the listing itself among them
        kind = _kind(target)
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def _kind(target: str) -> str:
    if target.startswith("anon_inode:"):
        return target[len("anon_inode:") :].strip("[]") or "anonymous"
    if target.startswith("/dev/"):
        return "device"
    if target.endswith(" (deleted)"):
        return "deleted"
    return "file" if target.startswith("/") else target.partition(":")[0]  # socket:[4242], pipe:[4243]


def count_sockets(process: str) -> int | None:
    """How many of the descriptors are sockets; None where /proc has no list.  Cost: about 2 µs per descriptor.

    Raises:
        PermissionError: the process belongs to another user.
    """
    folder = f"{process}/fd"
    try:
        numbers = _listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    count = 0
    for number in numbers:
        try:
            count += os.readlink(f"{folder}/{number}").startswith("socket:")
        except OSError:
            continue
    return count


def children_of(pid: int | None, *, proc_root: str = "/proc") -> tuple[int, ...] | None:
    """The child processes of *pid* (None is this process), those included that nobody has waited for; None without /proc.

    Raises:
        OSError: no file can be opened just now.

    Cost: one small file per thread where the kernel has `task/*/children`; else one small file per process of the machine, about
    15 µs each.
    """
    folder = f"{proc_root}/{'self' if pid is None else pid}"
    threads = f"{folder}/task"
    try:
        names = _listdir(threads)
    except OSError as error:
        if is_shortage(error):
            raise
        return None
    listed: list[int] = []
    for name in names:
        try:
            with open(f"{threads}/{name}/children", "rb", buffering=0) as file:
                listed.extend(map(int, file.read().split()))
        except FileNotFoundError:
            if os.path.isdir(f"{threads}/{name}"):  # the thread lives: this kernel lacks the file
                return _children_by_parent(folder, proc_root)
        except OSError as error:
            if is_shortage(error):
                raise  # a part of them would be taken for all
            continue
    return tuple(listed)


def lists_children(folder: str) -> bool:
    """Whether the kernel lists the children of each thread; *folder* is a process under /proc."""
    return os.path.exists(f"{folder}/task/{os.path.basename(os.path.realpath(folder))}/children")


def _children_by_parent(folder: str, proc_root: str) -> tuple[int, ...]:
    # The pid as this /proc counts it: it may be that of another pid namespace.
    parent = parse_stat(read_bytes(f"{folder}/stat") or b"")
    found: list[int] = []
    if parent is None:
        return ()
    for name in _listdir(proc_root):
        if not name.isdigit():
            continue
        status = parse_stat(read_bytes(f"{proc_root}/{name}/stat") or b"")
        if status is not None and status.ppid == parent.pid:
            found.append(status.pid)
    return tuple(found)


def has_children() -> bool:
    """Whether this process has any child at all, in one system call (1 µs); it reaps nobody."""
    if _waitid is None:
        return True
    try:
        _waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except OSError:
        return True
    return True
