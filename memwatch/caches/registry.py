"""All caches of this process, weakly: to see them, to shrink them under pressure, and to carry them over a fork.

Law: a cache is not kept by being listed.  Importing registers nothing; the first cache does.
"""

from __future__ import annotations

import os
import sys
import weakref
from _thread import RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memwatch.caches.cache import Cache

# By identity: a cache is a mapping, and those have no hash.
_caches: dict[int, weakref.ref[Any]] = {}
_lock = RLock()
_registered = False
_level = "normal"


def add(cache: Cache[Any, Any]) -> None:
    """List a cache as long as it lives."""
    global _registered
    identity = id(cache)

    def forget(reference: weakref.ref[Any]) -> None:
        # Not under the lock: this may run in the middle of anything.  Another cache may have the number by now.
        if _caches.get(identity) is reference:
            _caches.pop(identity, None)

    with _lock:
        _caches[identity] = weakref.ref(cache, forget)
        if not _registered:
            _registered = True
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_after_fork_in_child)


def everything() -> list[Cache[Any, Any]]:
    """The caches there are, oldest first."""
    found = [reference() for reference in list(_caches.values())]
    return [cache for cache in found if cache is not None]


def note_pressure(level: str) -> None:
    """The watcher tells its level on every tick."""
    global _level
    _level = level


def is_under_pressure() -> bool:
    """Whether the watcher of this process reports a pressure level; without a watcher nobody does."""
    return _level != "normal"


def accounted_bytes() -> int | None:
    """Accounted bytes in all caches; None if there is none."""
    caches = everything()
    return sum(cache.bytes for cache in caches) if caches else None


def rows(most: int = 20, *, estimate: bool) -> tuple[dict[str, Any], ...]:
    """Statistics of the largest caches, as plain data for a report.  With *estimate*, some 100 µs for each that does not
    account."""
    found = sorted(everything(), key=lambda cache: (cache.bytes, cache.entries), reverse=True)[:most]
    from memwatch.caches.cache import Cache

    # By the class: a program's subclass may call an attribute `stats`.
    return tuple(Cache.stats(cache, estimate=estimate).to_dict() for cache in found)


def _after_fork_in_child() -> None:
    global _lock, _level
    _lock, _level = RLock(), "normal"
    for cache in everything():
        cache.after_fork_in_child()


def place_of_caller() -> str:
    """`module:line` of whoever makes a cache, outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("memwatch.caches"):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno}"
