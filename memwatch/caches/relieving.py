"""What all caches of a process do under memory pressure: expire, shrink once per level, stay small, and grow back slowly.

Law: a shrink has a target in accounted bytes and never looks at RSS.  Freed small objects leave arenas that others still use: a
loop "until RSS is low" empties a cache with RSS still high (measured: 50,000 of 50,000 entries gone, RSS as before).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

from memwatch.caches import registry
from memwatch.caches.causes import SHRINK_ORDER, WARM, Lifetime

T = TypeVar("T")
log = logging.getLogger("memwatch.caches")

KEPT = {"warning": 0.7, "critical": 0.4}
"""Part of its bytes that a cache keeps at each level, and may not exceed until the level is left."""
RECOVERY = 0.05
"""Part of its bound that a lowered cache is given back per tick after the level was left: 20 ticks to be whole.  A guess: slower
than the tick-to-tick noise of RSS, faster than anybody waits."""


class Step(NamedTuple):
    """What one step did to all caches together."""

    name: str
    freed_bytes: int
    """Accounted."""
    entries: int
    """That left."""


def relieve(level: Literal["warning", "critical"]) -> Iterator[Step]:
    """Once when a level is entered: drop what has expired, then shrink every cache to its part, the coldest first."""
    yield expire()
    kept = KEPT[level]
    entries_before = _entries()
    freed = 0
    for cache in sorted(registry.everything(), key=lambda cache: SHRINK_ORDER.index(cache.tier or WARM)):
        if cache.tier is not Lifetime.PERMANENT or level == "critical":
            freed += _carefully(cache, lambda cache: cache.give_back(kept, permanent=level == "critical"), 0)
    yield Step(f"caches shrunk to {kept * 100:.0f} %", freed, entries_before - _entries())


def expire() -> Step:
    """Drop what has expired, in every cache: what nobody reads is not dropped otherwise."""
    freed = entries = 0
    for cache in registry.everything():
        before, there = cache.bytes, cache.entries
        _carefully(cache, lambda cache: cache.expire(), None)
        freed += before - cache.bytes
        entries += there - cache.entries
    return Step("caches expired", freed, entries)


def recover() -> bool:
    """Once per tick at no pressure: give lowered caches a little of their bounds back.  Whether all are whole."""
    lowered = [cache for cache in registry.everything() if not cache.raise_room(RECOVERY)]
    return not lowered


def lift() -> None:
    """All bounds are whole: the watch is over."""
    for cache in registry.everything():
        cache.lift()


def _entries() -> int:
    return sum(cache.entries for cache in registry.everything())


def _carefully(cache: Any, act: Callable[[Any], T], otherwise: T) -> T:
    """One cache that fails (a timer or a key of the program's that raises) is no reason to spare the others."""
    try:
        return act(cache)
    except Exception:
        log.warning("cache %s could not give memory back", cache.name, exc_info=True)
        return otherwise
