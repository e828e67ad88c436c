"""The caches that people make, with the arguments that cachetools' have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memwatch.caches.cache import Cache
from memwatch.caches.engine import K, V


class LRUCache(Cache[K, V]):
    """A cache that evicts what was used least recently; see `Cache` for the arguments.

    Cost: a read half of one of cachetools' with a lock, a write that evicts as much; 200 to 260 bytes an entry (bench/caches.py).
    """


class TTLCache(Cache[K, V]):
    """An `LRUCache` whose values expire *ttl* after they were stored."""

    def __init__(
        self,
        maxsize: float | None,
        ttl: Any,
        timer: Callable[[], Any] = time.monotonic,
        getsizeof: Callable[[V], float] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(maxsize, getsizeof, ttl=ttl, timer=timer, **more)


class TLRUCache(Cache[K, V]):
    """An `LRUCache` whose values expire when `ttu(key, value, now)` says."""

    def __init__(
        self,
        maxsize: float | None,
        ttu: Callable[[K, V, Any], Any],
        timer: Callable[[], Any] = time.monotonic,
        getsizeof: Callable[[V], float] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(maxsize, getsizeof, ttu=ttu, timer=timer, **more)
