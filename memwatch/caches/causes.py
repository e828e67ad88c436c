"""Why an entry left a cache, and for how long an entry may stay."""

from __future__ import annotations

from enum import Enum, StrEnum


class RemovalCause(StrEnum):
    """Why a value is no longer in its cache."""

    EXPIRED = "expired"
    """Its time was over."""
    SIZE = "size"
    """The cache held as many entries as it may."""
    BYTES = "bytes"
    """The cache held as many bytes as it may."""
    PRESSURE = "pressure"
    """The process came near its memory limit."""
    REPLACED = "replaced"
    """The key was given another value."""
    DELETED = "deleted"
    """`del`, `pop` or `popitem`."""
    INVALIDATED = "invalidated"
    """By tag, prefix or pattern."""
    CLEARED = "cleared"
    """`clear()`."""
    REJECTED = "rejected"
    """It was never stored: it is larger than the cache may be."""

    @property
    def was_evicted(self) -> bool:
        """Whether the cache decided, not the program."""
        return self in _EVICTIONS


_EVICTIONS = frozenset({RemovalCause.EXPIRED, RemovalCause.SIZE, RemovalCause.BYTES, RemovalCause.PRESSURE})


class Lifetime(Enum):
    """Named times to live.  Under pressure the shortest-lived go last: they are what is in use now."""

    HOT = 300.0
    WARM = 3600.0
    COLD = 86400.0
    PERMANENT = None
    """No time to live; given up at the critical level only."""

    @property
    def ttl_s(self) -> float | None:
        """Seconds; None for ever."""
        return self.value  # type: ignore[no-any-return]


HOT, WARM, COLD, PERMANENT = Lifetime.HOT, Lifetime.WARM, Lifetime.COLD, Lifetime.PERMANENT
SHRINK_ORDER = (COLD, WARM, HOT, PERMANENT)
"""Which caches give memory back first."""
