"""Bounded caches that give memory back under pressure.

    from memwatch.caches import LRUCache
    cache = LRUCache(maxsize=10_000, max_bytes="64MB", ttl="1h")

Public names are loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memwatch.caches.bounded_work import batch
    from memwatch.caches.breaker import Breaker
    from memwatch.caches.cache import Cache
    from memwatch.caches.causes import COLD, HOT, PERMANENT, WARM, Lifetime, RemovalCause
    from memwatch.caches.codec import Compress
    from memwatch.caches.decorators import CacheInfo, cached, cachedmethod
    from memwatch.caches.http import ASGIResponseCache, WSGIResponseCache
    from memwatch.caches.http_rules import Route
    from memwatch.caches.mappings import LRUCache, TLRUCache, TTLCache
    from memwatch.caches.redis_tier import RedisTier, TierStatistics
    from memwatch.caches.sizer import register_sizeof, sizeof
    from memwatch.caches.statistics import CacheStatistics
    from memwatch.caches.tiered import TieredCache

_LAZY = {
    "COLD": "causes",
    "HOT": "causes",
    "PERMANENT": "causes",
    "WARM": "causes",
    "Lifetime": "causes",
    "RemovalCause": "causes",
    "Cache": "cache",
    "LRUCache": "mappings",
    "TLRUCache": "mappings",
    "TTLCache": "mappings",
    "CacheStatistics": "statistics",
    "register_sizeof": "sizer",
    "sizeof": "sizer",
    "Route": "http_rules",
    "WSGIResponseCache": "http",
    "ASGIResponseCache": "http",
    "batch": "bounded_work",
    "Compress": "codec",
    "Breaker": "breaker",
    "TieredCache": "tiered",
    "TierStatistics": "redis_tier",
    "RedisTier": "redis_tier",
    "CacheInfo": "decorators",
    "cached": "decorators",
    "cachedmethod": "decorators",
}
__all__ = [
    "COLD",
    "HOT",
    "PERMANENT",
    "WARM",
    "ASGIResponseCache",
    "Breaker",
    "Cache",
    "CacheInfo",
    "CacheStatistics",
    "Compress",
    "LRUCache",
    "Lifetime",
    "RedisTier",
    "RemovalCause",
    "Route",
    "TLRUCache",
    "TTLCache",
    "TierStatistics",
    "TieredCache",
    "WSGIResponseCache",
    "all",
    "batch",
    "cached",
    "cachedmethod",
    "clear",
    "expire",
    "register_sizeof",
    "shrink",
    "sizeof",
    "stats",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'memwatch.caches' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"memwatch.caches.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def all() -> list[Cache[Any, Any]]:
    """The caches of this process, oldest first.  Being listed keeps none."""
    from memwatch.caches import registry

    return registry.everything()


def stats() -> dict[str, CacheStatistics]:
    """Statistics of each, by name; one of the same name as another gets a number."""
    from memwatch.caches.cache import Cache

    found: dict[str, CacheStatistics] = {}
    for cache in all():
        name, number = cache.name, 1
        while name in found:
            number += 1
            name = f"{cache.name} ({number})"
        found[name] = Cache.stats(cache)
    return found


def shrink(*, bytes: float | None = None, fraction: float | None = None) -> int:
    """Have all caches give some back; returns the accounted bytes that left.

    Args:
        bytes: as many in all, from each in proportion to what it holds.
        fraction: this part of each.
    """
    caches = all()
    if bytes is not None:
        held = sum(cache.held_bytes() for cache in caches)
        fraction = min(1.0, bytes / held) if held else 0.0
    return sum(cache.shrink(fraction=fraction) for cache in caches)


def expire() -> int:
    """Drop what has expired in all caches; returns how many entries left."""
    return sum(len(cache.expire()) for cache in all())


def clear() -> None:
    """Empty all caches."""
    for cache in all():
        cache.clear()
