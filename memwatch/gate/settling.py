"""Bringing the process to rest, so that what is measured then is what stays.

Law: nothing that a program can see is changed but the caches of the interpreter that fill by themselves.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from memwatch.gate.readings import RESOURCES, Reader, Reading
from memwatch.vitals import heap

PATIENCE_S = 0.5
"""Threads, tasks and files may take so long to end.  Source: goleak waits 20 times, from 1 µs up to 100 ms."""
LONGEST_NAP_S = 0.1
COLLECTIONS_TRIED, COLLECTION_NAP_S = 200, 0.002
"""How often a collection is asked for while another thread's is under way, and how long is waited for that."""
FROZEN_AT_START = 1000
"""Python 3.12 itself begins with 375 frozen objects; more than this (guess) are the program's, and stay: who thaws, thaws all."""

_stat = os.stat  # the program's tests may put their own in its place


def clear_caches() -> None:
    """Empty the interpreter's own caches that fill by use and are refilled by themselves.  About 50 µs, and 2 µs a cached file.

    Those of `typing` stay: a program can see that `Optional[int]` is one object.
    """
    internal = getattr(sys, "_clear_internal_caches", None)
    if internal is not None:
        internal()
    else:
        sys._clear_type_cache()
    _forget_lines(getattr(sys.modules.get("linecache"), "cache", None))
    for name, function in (("re", "purge"), ("struct", "_clearcache"), ("urllib.parse", "clear_cache"), ("fnmatch", "")):
        module = sys.modules.get(name)
        clear = getattr(module, function, None) if function else None
        if clear is not None:
            clear()


def _forget_lines(cache: Any) -> None:
    """Drop the lines of files that are there as they were; what was put in for generated code comes back from nowhere."""
    for name, entry in list(cache.items()) if type(cache) is dict else ():
        size_bytes, modified_s, *rest = entry if type(entry) is tuple and len(entry) == 4 else (None, None)
        if modified_s is None:
            continue
        try:
            status = _stat(rest[1])
        except (OSError, ValueError, TypeError):
            continue
        if (status.st_size, status.st_mtime) == (size_bytes, modified_s):
            cache.pop(name, None)


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
    collect(sleep)
    clear_caches()
    collect(sleep)  # what finalizers have left
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


def collect(sleep: Callable[[float], None] = time.sleep) -> None:
    """A full collection, for sure: while another thread collects (in a callback or a finalizer), `gc.collect` does nothing."""
    for _ in range(COLLECTIONS_TRIED):
        before = gc.get_stats()[-1]["collections"]
        gc.collect()
        if gc.get_stats()[-1]["collections"] != before:
            return
        sleep(COLLECTION_NAP_S)


def _lingering(before: Reading, now: Reading, channels: tuple[str, ...]) -> bool:
    for channel in channels:
        was, count = getattr(before, channel), getattr(now, channel)
        if was is not None and count is not None and count > was:
            return True
    return False
