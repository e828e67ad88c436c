"""What one cache holds and did: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """One cache at one moment; counts are since it was made."""

    name: str
    kind: str
    """Its class."""
    entries: int
    """Those that have expired and were not yet removed count."""
    weight: float
    """The sum of *getsizeof*; the number of entries without one."""
    maxsize: float | None
    """None: bounded in bytes only."""
    bytes: int | None
    """Accounted: keys, values and the cache's own.  None: the cache does not account, and no estimate was wanted."""
    is_estimated: bool
    """The cache does not account; *bytes* is estimated from some of its entries."""
    max_bytes: int | None
    hits: int
    misses: int
    stale_hits: int
    """Answers of `get_or_set` that were stale while they were loaded anew."""
    loads: int
    load_errors: int
    load_time_s: float
    """Of all loads together."""
    loading: int
    """Loads under way."""
    removals: Mapping[str, int]
    """By cause; causes that did not happen are left out."""
    hook_errors: int
    room: float
    """The part of its bounds that it may use now: less than 1 after pressure."""

    @property
    def hit_ratio(self) -> float | None:
        """Hits of all reads, 0 to 1; None before the first."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None

    def to_dict(self) -> dict[str, Any]:
        """For reports; *hit_ratio* included."""
        return asdict(self) | {"hit_ratio": self.hit_ratio}
