"""Bringing the process to rest, so that what is measured then is what stays.

Law: nothing that a program can see is changed but the caches of the interpreter that fill by themselves.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable

from memwatch.gate.readings import RESOURCES, Reader, Reading
from memwatch.vitals import heap

PATIENCE_S = 0.5
"""Threads, tasks and files may take so long to end.  Source: goleak waits 20 times, from 1 µs up to 100 ms."""
LONGEST_NAP_S = 0.1


def clear_caches() -> None:
    """Empty the interpreter's own caches that fill by use and are refilled by themselves.  About 50 µs."""
    internal = getattr(sys, "_clear_internal_caches", None)
    if internal is not None:
        internal()
    else:
        sys._clear_type_cache()
    module = sys.modules.get("linecache")
    if module is not None and getattr(module.getlines, "__module__", None) == "linecache":  # doctest puts its own there
        module.clearcache()
    for name, function in (("re", "purge"), ("struct", "_clearcache"), ("urllib.parse", "clear_cache"), ("fnmatch", "")):
        module = sys.modules.get(name)
        clear = getattr(module, function, None) if function else None
        if clear is not None:
            clear()
    typing = sys.modules.get("typing")
    for clean in getattr(typing, "_cleanups", ()):
        clean()


def settle(
    reader: Reader,
    before: Reading | None = None,
    *,
    channels: tuple[str, ...] = RESOURCES,
    trim: bool = True,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    patience_s: float = PATIENCE_S,
) -> bool:
    """Collect garbage, clear caches, hand free memory back, and wait a little for threads, children, tasks and files to go.

    Returns whether they went: False if there still are more than *before*.

    Args:
        before: the counts to wait for; None waits for nothing.
        channels: which counts are waited for.
        trim: ask malloc to hand back what is free.

    Cost: a full collection (on a frozen heap 0.5 ms), and only if there are more resources than *before* up to *patience_s*.
    """
    gc.collect()
    clear_caches()
    gc.collect()  # what finalizers have left
    gone = True
    if before is not None:
        deadline_s, nap_s = clock() + patience_s, 0.0005
        while not (gone := not _lingering(before, reader.read(), channels)) and clock() < deadline_s:
            sleep(nap_s)
            nap_s = min(nap_s * 2, LONGEST_NAP_S)
            gc.collect()
    if trim:
        heap.trim()
    return gone


def _lingering(before: Reading, now: Reading, channels: tuple[str, ...]) -> bool:
    for channel in channels:
        was, count = getattr(before, channel), getattr(now, channel)
        if was is not None and count is not None and count > was:
            return True
    return False
