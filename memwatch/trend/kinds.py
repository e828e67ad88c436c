"""Which part of the process carries the growth: the kind of a leak.

Law: an unreadable series proves nothing.  Resources come first: a task, thread, child or descriptor that leaks also holds
memory, so that where both leak the resource is the cause.
"""

from __future__ import annotations

from typing import NamedTuple

from memwatch.model import Kind

RESOURCE_KINDS: dict[str, Kind] = {
    "tasks": "tasks",
    "threads": "threads",
    "children": "children",
    "sockets": "descriptors",
    "fds": "descriptors",
}
"""Channel to kind, the likelier cause first: a task or thread often holds a socket, seldom the other way round."""

CARRIES = 0.4
"""A part that makes up this share of the growth carries it (RSS grows 1.0 to 2.3 times what was leaked: allocator overhead,
so that a half would be too much to ask)."""

LARGE_BLOCK = 2.0**20
"""Mean bytes per new large Python block up to which native growth is taken for Python objects over 512 bytes; a C library
that leaks beside a few Python objects shows more (guess)."""

SMALL_BLOCK = 64 * 2.0**10
"""The same for all blocks, where only their count is known (guess)."""


class Growths(NamedTuple):
    """How much each series grew over the window of a verdict; None where it was not read at both ends."""

    rss: float | None = None
    heap: float | None = None
    blocks: float | None = None
    large_blocks: float | None = None
    native: float | None = None
    retained: float | None = None


def python_bytes(growths: Growths) -> float | None:
    """Bytes of the growth that are Python's: small blocks, and large ones that live in malloc.  None if unknown."""
    large = 0.0
    native, blocks = growths.native or 0.0, growths.large_blocks or 0.0
    if native > 0.0 and blocks > 0.0 and native / blocks < LARGE_BLOCK:
        large = native
    if growths.heap is None:
        return large or None
    return max(growths.heap, 0.0) + large


def memory_kind(growths: Growths) -> Kind:
    """Say what kind of memory grew; `none` if nothing but RSS is known."""
    python = python_bytes(growths)
    native = max(growths.native or 0.0, 0.0)
    total = max(growths.rss or 0.0, (python or 0.0), native)
    if total <= 0.0:
        return "none"
    if python is not None and python >= CARRIES * total:
        return "python-heap"
    if growths.heap is None and growths.blocks is not None and growths.blocks > 0 and total / growths.blocks < SMALL_BLOCK:
        return "python-heap"
    if native >= CARRIES * total:
        return "native"
    if kept_by_allocators(growths):
        return "fragmentation"
    return "none" if growths.heap is None else "native"


def kept_by_allocators(growths: Growths) -> bool:
    """Whether RSS grew because allocators keep freed memory: everything live is known and flat, and `retained` rose."""
    if growths.rss is None or growths.heap is None or growths.native is None or growths.retained is None:
        return False
    live = max(growths.heap, 0.0) + max(growths.native, 0.0)
    return live < 0.25 * growths.rss and growths.retained >= 0.5 * growths.rss
