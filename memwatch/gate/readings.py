"""What the process holds at one moment, in every way that can be measured cheaply, side by side.

Law: RSS alone misses a leak into freed arenas, blocks alone miss C; so they are read together and never added up.
"""

from __future__ import annotations

import sys
from os import getpid  # as it is now: a test may put its own in its place
from typing import NamedTuple

from memwatch.gate.limits import RESOURCES as RESOURCES
from memwatch.vitals import heap, portable, process, tasks

SMALL_BLOCK = 512
"""pymalloc's largest block: blocks times this is a bound of what they can hold."""


class Reading(NamedTuple):
    """One moment; what cannot be told here is None."""

    blocks: int
    """Live blocks of Python's allocators."""
    small: int | None
    """Bytes in pymalloc's blocks; None where it was not asked for or is not in use."""
    malloc: int | None
    """Bytes in use in malloc: large Python blocks and everything that C code holds."""
    rss: int | None
    fds: int | None
    threads: int | None
    children: int | None
    tasks: int | None


class Growth(NamedTuple):
    """What lies between two readings.  Absent is None."""

    blocks: int = 0
    python: int | None = None
    """Bytes in pymalloc's blocks."""
    malloc: int | None = None
    """Bytes in malloc."""
    rss: int | None = None

    @property
    def heap(self) -> int | None:
        """Bytes in both allocators; None where malloc does not tell."""
        if self.malloc is None:
            return None
        return self.malloc + (self.python or 0)

    @property
    def at_most(self) -> int:
        """No less than what the heaps grew by, where pymalloc was not asked."""
        small = self.python if self.python is not None else self.blocks * SMALL_BLOCK
        return max(0, small) + max(0, self.malloc or 0)

    def less(self, other: Growth) -> Growth:
        """Without a part that belongs to somebody else."""
        return Growth(
            self.blocks - other.blocks,
            _less(self.python, other.python),
            _less(self.malloc, other.malloc),
            _less(self.rss, other.rss),
        )

    def plus(self, other: Growth) -> Growth:
        """Both together."""
        return Growth(
            self.blocks + other.blocks,
            _plus(self.python, other.python),
            _plus(self.malloc, other.malloc),
            _plus(self.rss, other.rss),
        )


NOTHING = Growth(0, 0, 0, 0)
UNREAD = Reading(0, None, None, None, None, None, None, None)
"""Of a process that could not be read."""


def between(before: Reading, after: Reading) -> Growth:
    """What came between two readings."""
    return Growth(
        after.blocks - before.blocks,
        _less(after.small, before.small),
        _less(after.malloc, before.malloc),
        _less(after.rss, before.rss),
    )


class Reader:
    """Reads this process; keeps two small files under /proc open.

    Threads: one at a time.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._statm = self._stat = None

    _statm: process.OpenFile | None
    _stat: process.OpenFile | None

    def read(self, *, small: bool = False) -> Reading:
        """Read now.

        Args:
            small: ask pymalloc for its bytes too.

        Cost: 15 µs; with *small* 0.1 ms more at 30 MiB (bench/plugin_cost.py).
        """
        if self._pid != getpid():
            self._reopen()
        pools = heap.pools() if small else None
        in_malloc = heap.malloc()
        return Reading(
            pools.all_blocks if pools is not None else sys.getallocatedblocks(),
            None if pools is None else pools.allocated_bytes,
            None if in_malloc is None else in_malloc.used_bytes + in_malloc.mapped_bytes,
            self._resident(),
            process.count_descriptors("/proc/self"),
            self._threads(),
            _children(),
            tasks.count_tasks(),
        )

    def close(self) -> None:
        """Give the files back."""
        for file in (self._statm, self._stat):
            if file is not None:
                file.close()
        self._pid = 0
        self._statm = self._stat = None

    def _reopen(self) -> None:
        """A forked child reads itself, not its parent."""
        self.close()
        heap.bind()
        self._pid = getpid()
        if sys.platform == "linux":
            self._statm = process.OpenFile("/proc/self/statm")
            self._stat = process.OpenFile("/proc/self/stat")
            self._resident(), self._threads()  # open both now, so that they are in every count

    def _resident(self) -> int | None:
        if self._statm is not None:
            try:
                memory = process.parse_statm(self._statm.read())
            except OSError:
                memory = None
            if memory is not None:
                return memory.rss
        return portable.resident_bytes()

    def _threads(self) -> int | None:
        if self._stat is not None:
            try:
                status = process.parse_stat(self._stat.read())
            except OSError:
                status = None
            if status is not None:
                return status.threads
        threading = sys.modules.get("threading")
        return None if threading is None else threading.active_count()


def _children() -> int | None:
    if not process.has_children():
        return 0
    try:
        found = process.children_of(None)
    except OSError:
        return None
    return None if found is None else len(found)


def _less(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
