"""What the allocators say: pymalloc, the C library's malloc, the cyclic collector; and giving memory back.

Law: a number is either right or absent.  Text that pymalloc prints is believed only if its own totals agree; malloc is asked only
if the malloc in use is the one that answers.
"""

# A pathlib call costs several times what it wraps, and readings come at every tick.
# ruff: noqa: PTH119

from __future__ import annotations

import functools
import gc
import operator
import os
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from memwatch.model import Freed
from memwatch.vitals import process

if TYPE_CHECKING:
    import ctypes

# What pymalloc prints, in this order: a row per size class (size, live blocks), then totals.
_ROW = rb"^ *\d+ +(\d+) +\d+ +(\d+) +\d+$"
_TOTALS = (
    rb"^# bytes in allocated blocks +=\s*([\d,]+)\n# bytes in available blocks +=\s*([\d,]+)\n"
    rb"\d+ unused pools \* \d+ bytes +=\s*([\d,]+)$"
)

# Fields of glibc's struct mallinfo2, in order; mallinfo(3).
_MALLINFO2 = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Pools(NamedTuple):
    """pymalloc at one moment, and `sys.getallocatedblocks()` at the same moment."""

    allocated_bytes: int
    """In live blocks, sizes rounded up to pymalloc's classes (debug hooks included where they are on)."""
    unused_bytes: int
    """In free blocks of pools in use and in pools not in use; kept from the operating system."""
    blocks: int
    """Live blocks of pymalloc."""
    all_blocks: int
    """Live blocks of the Python allocators, those included that pymalloc handed on to malloc."""


class Malloc(NamedTuple):
    """The C library's malloc at one moment, over all its arenas."""

    used_bytes: int
    """In use, in the arenas (including what per-thread caches hold)."""
    mapped_bytes: int
    """In use, in mappings of their own (large blocks)."""
    free_bytes: int | None
    """Free in the arenas; pages already handed back by `malloc_trim` are still counted.  None where it isn't told."""


@functools.cache
def _patterns() -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    return re.compile(_ROW, re.MULTILINE), re.compile(_TOTALS, re.MULTILINE)  # 1 ms: not at import


def parse_pools(text: bytes, all_blocks: int) -> Pools | None:
    """Read what `_PyObject_DebugMallocStats` prints; None if it is not pymalloc's table or its totals disagree."""
    row, totals = _patterns()
    found = totals.search(text)
    if found is None:
        return None
    allocated, available, unused = (int(number.replace(b",", b"")) for number in found.groups())
    total = blocks = 0
    for size, count in row.findall(text):
        total += int(size) * int(count)
        blocks += int(count)
    if total != allocated:
        return None
    return Pools(allocated, available + unused, blocks, max(all_blocks, blocks))


@functools.cache
def _statistics_printer() -> tuple[Any, ...] | None:
    """The C functions that print pymalloc's statistics into memory (print, open, close, free); None where there are none."""
    if sys.implementation.name != "cpython":
        return None
    try:
        import ctypes  # 4 ms, and not there in every build: only who reads the heap pays

        # Function objects of our own: those of `ctypes.pythonapi` are shared with whoever else sets their argument types.
        python = ctypes.PyDLL(None, handle=ctypes.pythonapi._handle)
        library = ctypes.PyDLL(None)  # called with the GIL held: opening and closing a buffer in memory never waits
        show, opened, closed, free = python._PyObject_DebugMallocStats, library.open_memstream, library.fclose, library.free
    except (ImportError, AttributeError, OSError, TypeError):
        return None
    show.argtypes, show.restype = [ctypes.c_void_p], ctypes.c_int
    opened.argtypes, opened.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_void_p
    closed.argtypes, closed.restype = [ctypes.c_void_p], ctypes.c_int
    free.argtypes, free.restype = [ctypes.c_void_p], None
    return show, opened, closed, free


def bind() -> None:
    """Look up the C functions that the readings need (3 ms the first time), so that no reading is charged for it.

    Raises:
        OSError: no file can be opened just now; what is not found is remembered as not there, so look later.
    """
    process.demand_descriptor()
    _statistics_printer()
    _malloc_functions()
    _patterns()


_told: Callable[[], tuple[int, bytes, int] | None] | None = None


def read_pools_with(told: Callable[[], tuple[int, bytes, int] | None] | None) -> None:
    """Let another function tell what pymalloc prints: it prints nothing while functions of somebody else stand before its own, and
    only who put them there can take them off for a moment.

    Args:
        told: returns the blocks of all Python allocators, the text, and how many small blocks were moved out of the pools, or None
            if it has none either; None takes it back.
    """
    global _told
    _told = told


def pools() -> Pools | None:
    """Read pymalloc; None where it is not in use (`PYTHONMALLOC=malloc`, mimalloc, a free-threaded build, not CPython).

    Cost: two walks over all pools with the GIL held throughout, so that the two agree: 25 µs at 30 MiB, 1.6 ms at 1 GiB of small
    objects, 10 ms at 4 GiB (bench/tick.py); and 0.1 to 0.3 ms, without holding it, for the table that they print.
    Threads: safe from any.  A sub-interpreter with an allocator of its own sees its own pools; `all_blocks` is over all.
    """
    told = None if _told is None else _told()
    if told is not None:
        parsed = parse_pools(told[1], told[0])
        return None if parsed is None else parsed._replace(blocks=min(parsed.blocks + told[2], parsed.all_blocks))
    functions = _statistics_printer()
    if functions is None:
        return None
    import ctypes

    show, opened, closed, free = functions
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = opened(ctypes.byref(text), ctypes.byref(size))
    if not stream:
        return None
    try:
        # One C call runs both: between two calls from Python another thread could get the GIL and allocate.
        both: tuple[Callable[[], int], Callable[[], int]] = (sys.getallocatedblocks, functools.partial(show, stream))
        all_blocks, printed = map(operator.call, both)
    finally:
        closed(stream)
        content = ctypes.string_at(text.value, size.value) if text.value else b""
        free(text)
    return parse_pools(content, all_blocks) if printed else None


@functools.cache
def _malloc_functions() -> tuple[Any, Any] | None:
    """glibc's `mallinfo2` and `malloc_trim`, if glibc's malloc is the one in use; None elsewhere.

    They release the GIL: both visit every free chunk of every arena.
    """
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        library = ctypes.CDLL(None)
        read, trim = library.mallinfo2, library.malloc_trim
    except (ImportError, AttributeError, OSError, TypeError):
        return None

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2]

    read.argtypes, read.restype = [], Mallinfo2
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return (read, trim) if _is_in_libc(library) or _moves_the_books(library, read) else None


def _is_in_libc(library: ctypes.CDLL) -> bool:
    """Whether the function that `malloc` resolves to lives in the C library.

    If not, a preloaded jemalloc or tcmalloc may leave glibc's malloc idle and its numbers meaningless; or this is an executable
    at a fixed address (Debian's python3), where the name resolves to the executable's own jump table.
    """
    import ctypes

    class Found(ctypes.Structure):
        _fields_ = [
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("symbol", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        ]

    found = Found()
    library.dladdr.argtypes, library.dladdr.restype = [ctypes.c_void_p, ctypes.c_void_p], ctypes.c_int
    known = library.dladdr(ctypes.cast(library.malloc, ctypes.c_void_p), ctypes.byref(found))
    return bool(known) and os.path.basename(found.file or b"").startswith(b"libc.so")


def _moves_the_books(library: ctypes.CDLL, read: Callable[[], Any]) -> bool:
    """Whether a block asked of `malloc` shows in what `mallinfo2` says.

    The block is never touched, so it costs addresses and no memory.  It is larger than glibc's threshold for a mapping of its own
    can become (32 MiB), so that freeing it does not move that threshold.
    """
    import ctypes

    size = 40 * 1024**2
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    before = read()
    block = library.malloc(size)
    after = read()
    library.free(block)
    grown = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd
    return bool(block) and bool(grown > size // 2)


def malloc() -> Malloc | None:
    """Read the C library's malloc; None where it does not tell (musl, jemalloc and its like; glibc before 2.33,
    whose `mallinfo` wraps at 2 GiB).

    Cost: 1 µs and more with the number of free chunks; the GIL is released, each arena is locked in turn.
    """
    functions = _malloc_functions()
    if functions is None:
        from memwatch.vitals import portable

        return portable.malloc() if sys.platform != "linux" else None
    info = functions[0]()
    return Malloc(info.uordblks, info.hblkhd, info.fordblks)


def trim() -> bool:
    """Ask malloc to hand free pages back to the operating system; False where it cannot be asked (only glibc can).

    Cost: 10 µs with nothing to give, about 0.1 s per GiB given (a guess); the GIL is released, each arena is locked in turn.
    """
    functions = _malloc_functions()
    if functions is None:
        return False
    functions[1](0)
    return True


def collect_garbage(*, proc_root: str = "/proc") -> Freed:
    """Collect all cyclic garbage, have malloc hand back what is free, and measure both.

    Cost: a full collection holds the GIL: about 0.1 s per million tracked objects.  Not for a hot path.
    Threads: safe from any; what other threads allocate meanwhile is subtracted from what was freed.
    """
    started = time.perf_counter()
    heap_before, rss_before = _live_bytes(), _resident_bytes(proc_root)
    collected = gc.collect()
    trimmed = trim()
    heap_after, rss_after = _live_bytes(), _resident_bytes(proc_root)
    return Freed(
        collected=collected,
        heap_bytes=_less(heap_before, heap_after),
        rss_bytes=_less(rss_before, rss_after),
        trimmed=trimmed,
        took_s=time.perf_counter() - started,
    )


def _live_bytes() -> int | None:
    in_pools, in_malloc = pools(), malloc()
    if in_pools is None and in_malloc is None:
        return None
    total = 0 if in_pools is None else in_pools.allocated_bytes
    return total if in_malloc is None else total + in_malloc.used_bytes + in_malloc.mapped_bytes


def _resident_bytes(proc_root: str) -> int | None:
    memory = process.parse_statm(process.read_bytes(f"{proc_root}/self/statm") or b"")
    if memory is not None:
        return memory.rss
    from memwatch.vitals import portable

    return portable.resident_bytes()


def _less(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else before - after


def count_tracked() -> int:
    """How many objects the cyclic collector tracks (frozen ones excluded).

    Cost: 30 ms per million with the GIL held, and a list of 8 bytes each: rarely.
    """
    return len(gc.get_objects())


def count_full_collections() -> int:
    """How many full collections there were since the process started.  1 µs."""
    return int(gc.get_stats()[2]["collections"])
