"""A cache in memory with a store below it: memory first, then the store, then the load.

Law: what the store does wrong costs hits, never an answer.  A removal reaches the memory of every process that is connected; one
    that was not connected for a while empties its memory when it is again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Generic

from memwatch.caches.cache import Cache
from memwatch.caches.engine import DEFAULT, GONE, K, V
from memwatch.caches.redis_tier import ALL, Budget, Found, RedisTier, wire_text

log = logging.getLogger("memwatch.caches")

POLL_S = 0.02
"""How often a process looks whether another has loaded a key."""
RECONNECT_S = 1.0
"""How often a listener tries to hear of removals again."""


class TieredCache(Generic[K, V]):
    """*cache* in memory, *tier* below it.

    Args:
        cache: bounds, times to live and hooks of what is in memory.
        tier: what several processes share.
        listen: whether removals by other processes are heard, on a thread of its own.  Without it a value may be served from memory
            until its time to live is over.

    A call takes at most the tier's *timeout_s* longer than in memory, and raises what a `Cache` raises.
    """

    def __init__(self, cache: Cache[K, V], tier: RedisTier, *, listen: bool = True) -> None:
        self.cache = cache
        self.tier = tier
        self._listener: _Listener | None = None
        if listen:
            self._listener = _Listener(cache, tier)
            self._listener.start()

    # --- reading

    def __getitem__(self, key: K) -> V:
        value = self.get(key, GONE)
        if value is GONE:
            raise KeyError(key)
        return value  # type: ignore[no-any-return]

    def get(self, key: K, default: Any = None) -> Any:
        """The value from memory, else from the store, else *default*."""
        value = self.cache.get(key, GONE)
        if value is not GONE:
            return value
        name = self.tier.name_of(key)
        if name is None:
            return default
        found = self.tier.run(self.tier.plan_get([name]), {}).get(name)
        return default if found is None else self._keep(key, found)

    async def aget(self, key: K, default: Any = None) -> Any:
        """As `get`, in a coroutine."""
        value = self.cache.get(key, GONE)
        if value is not GONE:
            return value
        name = self.tier.name_of(key)
        if name is None:
            return default
        found = (await self.tier.arun(self.tier.plan_get([name]), {})).get(name)
        return default if found is None else self._keep(key, found)

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values that are there, by key; the store is asked once for all that are not in memory."""
        found, names = self._split(keys)
        stored = self.tier.run(self.tier.plan_get(list(names)), {}) if names else {}
        return found | {names[name]: self._keep(names[name], item) for name, item in stored.items()}

    async def aget_many(self, keys: Iterable[K]) -> dict[K, V]:
        """As `get_many`, in a coroutine."""
        found, names = self._split(keys)
        stored = await self.tier.arun(self.tier.plan_get(list(names)), {}) if names else {}
        return found | {names[name]: self._keep(names[name], item) for name, item in stored.items()}

    def _split(self, keys: Iterable[K]) -> tuple[dict[K, V], dict[str, K]]:
        wanted = list(keys)
        found = self.cache.get_many(wanted)
        names = {name: key for key in wanted if key not in found and (name := self.tier.name_of(key)) is not None}
        return found, names

    def _keep(self, key: K, found: Found) -> Any:
        """Into memory, for what is left of its time."""
        own = self.cache.ttl
        left = found.ttl_s if not isinstance(own, int | float) else own if found.ttl_s is None else min(own, found.ttl_s)
        try:
            self.cache.set(key, found.value, ttl=left, tags=found.tags)
        except ValueError:
            pass  # too large for memory
        return found.value

    # --- writing

    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    def set(self, key: K, value: V, *, ttl: float | None = None, tags: Iterable[str] = ()) -> bool:
        """Store in memory and below, and have other processes forget what they had; whether the store has it."""
        return self.set_many({key: value}, ttl=ttl, tags=tags) == 1

    def set_many(self, items: Mapping[K, V], *, ttl: float | None = None, tags: Iterable[str] = ()) -> int:
        """Store all, in one round trip; returns how many the store has."""
        tags = _tags(tags)
        names = self._set_in_memory(items, ttl, tags)
        return int(self.tier.run(self._plan_set(names, ttl, tags, list(names)), 0, keys=names) or 0) if names else 0

    async def aset(self, key: K, value: V, *, ttl: float | None = None, tags: Iterable[str] = ()) -> bool:
        """As `set`, in a coroutine."""
        return await self.aset_many({key: value}, ttl=ttl, tags=tags) == 1

    async def aset_many(self, items: Mapping[K, V], *, ttl: float | None = None, tags: Iterable[str] = ()) -> int:
        """As `set_many`, in a coroutine."""
        tags = _tags(tags)
        names = self._set_in_memory(items, ttl, tags)
        return int(await self.tier.arun(self._plan_set(names, ttl, tags, list(names)), 0, keys=names) or 0) if names else 0

    def _set_in_memory(self, items: Mapping[K, V], ttl: Any, tags: tuple[str, ...]) -> dict[str, Any]:
        names = {}
        for key, value in items.items():
            self.cache.set(key, value, tags=tags, ttl=DEFAULT if ttl is None else ttl)
            name = self.tier.name_of(key)
            if name is not None:
                names[name] = value
        return names

    def _plan_set(self, names: Mapping[str, Any], ttl: Any, tags: Iterable[str], announce: list[str]) -> Any:
        return self.tier.plan_set(names, self._lifetime(ttl), tags, announce)

    def _plan_store(self, name: str, value: Any, ttl: Any, tokens: Mapping[str, str], lock: str) -> Any:
        return self.tier.plan_store_loaded(name, value, self._lifetime(ttl), tokens, lock if self.tier.lock_s else None)

    def _lifetime(self, ttl: Any) -> float | None:
        own = self.cache.ttl
        return float(ttl) if ttl is not None else float(own) if isinstance(own, int | float) else None

    def delete(self, key: K) -> None:
        """Remove a key everywhere."""
        self.delete_many([key])

    __delitem__ = delete

    def delete_many(self, keys: Iterable[K]) -> None:
        """Remove keys everywhere."""
        names = self._forget(keys)
        self.tier.run(self.tier.plan_remove(names, (), {"keys": names}), keys=names)

    async def adelete_many(self, keys: Iterable[K]) -> None:
        """As `delete_many`, in a coroutine."""
        names = self._forget(keys)
        await self.tier.arun(self.tier.plan_remove(names, (), {"keys": names}), keys=names)

    def _forget(self, keys: Iterable[K]) -> list[str]:
        names = []
        for key in keys:
            self.cache.pop(key, None)
            name = self.tier.name_of(key)
            if name is not None:
                names.append(name)
        return names

    def invalidate(self, *, tag: str | Iterable[str] | None = None, prefix: str | None = None, pattern: str | None = None) -> int:
        """Remove by tag, prefix or pattern everywhere; returns how many left this process's memory.

        Cost: by tag one round trip; by prefix or pattern the store walks all its keys, in steps that do not block it.
        """
        count = self.cache.invalidate(tag=tag, prefix=prefix, pattern=pattern)
        self.tier.run(*self._removal(tag, prefix, pattern), **self._kept(tag, prefix, pattern))
        return count

    async def ainvalidate(
        self, *, tag: str | Iterable[str] | None = None, prefix: str | None = None, pattern: str | None = None
    ) -> int:
        """As `invalidate`, in a coroutine."""
        count = self.cache.invalidate(tag=tag, prefix=prefix, pattern=pattern)
        await self.tier.arun(*self._removal(tag, prefix, pattern), **self._kept(tag, prefix, pattern))
        return count

    def _removal(self, tag: str | Iterable[str] | None, prefix: str | None, pattern: str | None) -> tuple[Any]:
        if tag is not None:
            tags = sorted(self.cache.with_cascades(_tags(tag)))
            return (self.tier.plan_remove([], tags, {"tags": tags}),)
        where = {"prefix": prefix} if prefix is not None else {"pattern": pattern}
        return (self.tier.plan_scan(where, prefix=prefix, pattern=pattern),)

    def _kept(self, tag: str | Iterable[str] | None, prefix: str | None, pattern: str | None) -> dict[str, Any]:
        """What is remembered where the store is away; without a tag nobody knows the keys, so all count as removed."""
        if tag is not None:
            return {"tags": sorted(self.cache.with_cascades(_tags(tag)))}
        return {"tags": [ALL], "patient": True}

    def clear(self) -> None:
        """Remove all, everywhere."""
        self.cache.clear()
        self.tier.run(self.tier.plan_remove([], [ALL], {"all": True}), tags=[ALL])

    # --- loading

    def get_or_set(self, key: K, load: Callable[[], V], *, ttl: float | None = None, tags: Iterable[str] = ()) -> V:
        """From memory, else the store, else *load*: once among the threads of this process, and once among processes as far as
        the store can tell them (for *lock_s* of the tier)."""
        tags = _tags(tags)
        name = self.tier.name_of(key)
        if name is None:
            return self.cache.get_or_set(key, load, ttl=DEFAULT if ttl is None else ttl, tags=tags)
        lifetime = _Lifetime(self.cache.ttl if ttl is None else ttl)

        def through() -> V:
            budget = Budget(self.tier.timeout_s)
            found = self._from_store(name, lifetime, budget)
            if found is not GONE:
                return found  # type: ignore[no-any-return]
            token = secrets.token_hex(8)
            locked = self._lock(name, token, budget)
            try:
                if not locked:
                    found, locked = self._wait_for_another(name, token, lifetime)
                    if found is not GONE:
                        return found  # type: ignore[no-any-return]
                tokens = self.tier.run(self.tier.plan_tokens(tags, self._lifetime(ttl)), budget=budget)
                value = load()
                if tokens is not None:
                    self.tier.run(self._plan_store(name, value, ttl, tokens, token), budget=budget)
                return value
            finally:
                if locked and self.tier.lock_s:
                    self.tier.run(self.tier.plan_unlock(name, token), budget=budget)

        return self.cache.get_or_set(key, through, ttl=lifetime, tags=tags)

    def _from_store(self, name: str, lifetime: _Lifetime, budget: Budget | None = None) -> Any:
        found = self.tier.run(self.tier.plan_get([name]), {}, budget=budget).get(name)
        return GONE if found is None else lifetime.take(found)

    def _lock(self, name: str, token: str, budget: Budget | None = None) -> bool:
        return not self.tier.lock_s or bool(self.tier.run(self.tier.plan_lock(name, token), True, budget=budget))

    def _wait_for_another(self, name: str, token: str, lifetime: _Lifetime) -> tuple[Any, bool]:
        """What another process has loaded, and whether this one may load now."""
        until_s = time.monotonic() + self.tier.lock_s
        while time.monotonic() < until_s:
            time.sleep(POLL_S)
            found = self._from_store(name, lifetime)
            if found is not GONE:
                return found, False
            if self._lock(name, token):
                return GONE, True  # the other one failed, or the store is gone
        return GONE, False

    async def aget_or_set(
        self, key: K, load: Callable[[], Awaitable[V]], *, ttl: float | None = None, tags: Iterable[str] = ()
    ) -> V:
        """As `get_or_set`, in a coroutine."""
        tags = _tags(tags)
        name = self.tier.name_of(key)
        if name is None:
            return await self.cache.aget_or_set(key, load, ttl=DEFAULT if ttl is None else ttl, tags=tags)
        lifetime = _Lifetime(self.cache.ttl if ttl is None else ttl)
        tier = self.tier

        async def from_store(budget: Budget | None = None) -> Any:
            found = (await tier.arun(tier.plan_get([name]), {}, budget=budget)).get(name)
            return GONE if found is None else lifetime.take(found)

        async def lock(token: str, budget: Budget | None = None) -> bool:
            return not tier.lock_s or bool(await tier.arun(tier.plan_lock(name, token), True, budget=budget))

        async def through() -> V:
            budget = Budget(tier.timeout_s)
            found = await from_store(budget)
            if found is not GONE:
                return found  # type: ignore[no-any-return]
            token = secrets.token_hex(8)
            locked = await lock(token, budget)
            try:
                until_s = time.monotonic() + tier.lock_s
                while not locked and time.monotonic() < until_s:
                    await asyncio.sleep(POLL_S)
                    found = await from_store()
                    if found is not GONE:
                        return found  # type: ignore[no-any-return]
                    locked = await lock(token)
                tokens = await tier.arun(tier.plan_tokens(tags, self._lifetime(ttl)), budget=budget)
                value = await load()
                if tokens is not None:
                    await tier.arun(self._plan_store(name, value, ttl, tokens, token), budget=budget)
                return value
            finally:
                if locked and tier.lock_s:
                    await tier.arun(tier.plan_unlock(name, token), budget=budget)

        return await self.cache.aget_or_set(key, through, ttl=lifetime, tags=tags)

    # --- what it did

    def stats(self) -> dict[str, Any]:
        """`{"memory": …, "store": …}`, as plain data."""
        store = self.tier.statistics()
        return {"memory": self.cache.stats().to_dict(), "store": asdict(store) | {"hit_ratio": store.hit_ratio}}

    def close(self) -> None:
        """Stop listening, and close the connection.  What is in memory stays."""
        if self._listener is not None:
            self._listener.stop()
        self.tier.close()


def _tags(tags: str | Iterable[str]) -> tuple[str, ...]:
    return (tags,) if isinstance(tags, str) else tuple(tags)


class _Lifetime:
    """The time to live of what a load brings: what the store says is left, where the value came from there."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._left: float | None = None

    def take(self, found: Found) -> Any:
        """The value; how long it may stay is remembered."""
        self._left = found.ttl_s
        return found.value

    def __call__(self, value: Any) -> Any:
        own = self._own(value) if callable(self._own) else self._own
        if self._left is None:
            return own
        return self._left if not isinstance(own, int | float) else min(own, self._left)


class _Listener:
    """Hears of removals by other processes, on a daemon thread that goes with its cache."""

    def __init__(self, cache: Cache[Any, Any], tier: RedisTier) -> None:
        self._cache = weakref.ref(cache)
        self._tier = tier
        self._stopped = threading.Event()
        self._subscription: Any = None

    def start(self) -> None:
        """Begin.  A process that forks begins again by making its own."""
        threading.Thread(target=self._listen, name="memwatch-removals", daemon=True).start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()

    def _listen(self) -> None:
        was_connected = False
        while not self._stopped.is_set() and self._cache() is not None:
            try:
                subscription = self._tier.subscriber()
                subscription.subscribe(wire_text(self._tier.channel))
                # The answer to the subscription: from here on nothing is missed.
                subscription.get_message(timeout=RECONNECT_S)
                if was_connected:
                    self._missed()
                was_connected = True
                while not self._stopped.is_set() and self._cache() is not None:
                    message = subscription.get_message(timeout=RECONNECT_S)
                    if message is not None and message.get("type") == "message":
                        self._hear(message["data"])
                subscription.close()
            except Exception as error:
                log.debug("cache store: no removals are heard (%s: %s)", type(error).__name__, error)
                self._stopped.wait(RECONNECT_S)

    def _missed(self) -> None:
        """Removals may have come while nobody listened."""
        cache = self._cache()
        if cache is not None:
            cache.clear()

    def _hear(self, data: bytes) -> None:
        cache = self._cache()
        try:
            what = json.loads(data)
            if cache is None or what.get("from") == self._tier.origin:
                return
            if what.get("all") or what.get("away"):
                cache.clear()
            if what.get("tags"):
                cache.invalidate(tag=[str(tag) for tag in what["tags"]])
            if what.get("prefix") is not None:
                cache.invalidate(prefix=str(what["prefix"]))
            if what.get("pattern") is not None:
                cache.invalidate(pattern=str(what["pattern"]))
            if what.get("keys"):
                keys = {name: self._tier.key_of(name) for name in what["keys"]}
                cache.delete_many([key for key in keys.values() if key is not None])
                hashed = {name for name, key in keys.items() if key is None}
                if hashed:
                    cache.delete_many([key for key in cache if self._tier.name_of(key) in hashed])
        except (ValueError, TypeError, AttributeError) as error:
            log.debug("cache store: a message that is none of ours: %s", error)
