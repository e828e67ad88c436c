"""Bounded caches that give memory back under pressure.

    from memwatch.caches import LRUCache
    cache = LRUCache(maxsize=10_000, max_bytes="64MB", ttl="1h")

Public names are loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memwatch.caches.cache import Cache
    from memwatch.caches.causes import COLD, HOT, PERMANENT, WARM, Lifetime, RemovalCause
    from memwatch.caches.mappings import LRUCache, TLRUCache, TTLCache
    from memwatch.caches.sizer import register_sizeof, sizeof
    from memwatch.caches.statistics import CacheStatistics

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
    "CacheInfo": "decorators",
    "cached": "decorators",
    "cachedmethod": "decorators",
}
__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'memwatch.caches' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"memwatch.caches.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
