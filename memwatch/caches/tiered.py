"""A cache in memory with a store below it: memory first, then the store, then the load.

Law: what the store does wrong costs hits, never an answer.  A removal reaches the memory of every process that is connected; one
    that was not connected for a while empties its memory when it is again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import secrets
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Generic

from memwatch.caches.cache import Cache
from memwatch.caches.engine import DEFAULT, GONE, K, V, seconds_of
from memwatch.caches.redis_tier import ALL, Budget, Found, Locked, RedisTier, is_some_time, wire_text

log = logging.getLogger("memwatch.caches")

POLL_S = 0.02
"""How often a process looks whether another has loaded a key."""
PLACES = 1024
"""Among which keys are spread to tell whether one was changed."""
NO_LOCK = Locked(is_ours=True, exists=False)
"""What a store that is away answers: load."""
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
        self._changes = _Changes()
        self._listener: _Listener | None = None
        self._pid = os.getpid()
        if listen:
            self._listener = _Listener(cache, tier, self._changes)
            self._listener.start()

    def _look_for_fork(self) -> None:
        """A child has no thread that listens, and missed what was removed since the fork."""
        self._pid = os.getpid()
        self._changes.after_fork()
        self.tier.after_fork()
        if self._listener is not None and not self._listener.is_stopped:
            self._listener = _Listener(self.cache, self.tier, self._changes)
            self._listener.start(has_missed=True)

    # --- reading

    def __getitem__(self, key: K) -> V:
        value = self.get(key, GONE)
        if value is GONE:
            raise KeyError(key)
        return value  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        """Whether it is in memory or in the store; counts as a read."""
        return self.get(key, GONE) is not GONE  # type: ignore[arg-type]

    __iter__ = None
    """Nobody knows all keys of a store that others write to; those in memory are `cache`'s."""

    def get(self, key: K, default: Any = None) -> Any:
        """The value from memory, else from the store, else *default*."""
        if self._pid != os.getpid():
            self._look_for_fork()
        value = self.cache.get(key, GONE)
        if value is not GONE:
            return value
        name = self.tier.name_of(key)
        if name is None:
            return default
        stamp = self._changes.stamp(key)
        found = self.tier.run(self.tier.plan_get([name]), {}).get(name)
        return default if found is None else self._keep(key, found, stamp)

    async def aget(self, key: K, default: Any = None) -> Any:
        """As `get`, in a coroutine."""
        if self._pid != os.getpid():
            self._look_for_fork()
        value = self.cache.get(key, GONE)
        if value is not GONE:
            return value
        name = self.tier.name_of(key)
        if name is None:
            return default
        stamp = self._changes.stamp(key)
        found = (await self.tier.arun(self.tier.plan_get([name]), {})).get(name)
        return default if found is None else self._keep(key, found, stamp)

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values that are there, by key; the store is asked once for all that are not in memory."""
        found, names = self._split(keys)
        stamps = {name: self._changes.stamp(key) for name, key in names.items()}
        stored = self.tier.run(self.tier.plan_get(list(names)), {}) if names else {}
        return found | {names[name]: self._keep(names[name], item, stamps[name]) for name, item in stored.items()}

    async def aget_many(self, keys: Iterable[K]) -> dict[K, V]:
        """As `get_many`, in a coroutine."""
        found, names = self._split(keys)
        stamps = {name: self._changes.stamp(key) for name, key in names.items()}
        stored = await self.tier.arun(self.tier.plan_get(list(names)), {}) if names else {}
        return found | {names[name]: self._keep(names[name], item, stamps[name]) for name, item in stored.items()}

    def _split(self, keys: Iterable[K]) -> tuple[dict[K, V], dict[str, K]]:
        if self._pid != os.getpid():
            self._look_for_fork()
        wanted = list(keys)
        found = self.cache.get_many(wanted)
        names = {name: key for key in wanted if key not in found and (name := self.tier.name_of(key)) is not None}
        return found, names

    def _keep(self, key: K, found: Found, stamp: Any) -> Any:
        """Into memory, for what is left of its time, unless the key was removed or written since it was asked for."""
        if self._changes.is_as_at(key, stamp):
            try:
                self.cache.set(
                    key, found.value, ttl=_shorter(lifetime_s(self.cache, key, found.value), found.ttl_s), tags=found.tags
                )
            except ValueError:
                pass  # too large for memory
            if not self._changes.is_as_at(key, stamp):
                self.cache.discard(key, found.value)  # removed while it was stored
        return found.value

    # --- writing

    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    def set(self, key: K, value: V, *, ttl: float | None = None, tags: Iterable[str] = ()) -> bool:
        """Store in memory and below, and have other processes forget what they had; whether the store has it."""
        return self.set_many({key: value}, ttl=ttl, tags=tags) == 1

    def set_many(self, items: Mapping[K, V], *, ttl: float | None = None, tags: Iterable[str] = ()) -> int:
        """Store all, in one round trip; returns how many the store has."""
        if self._pid != os.getpid():
            self._look_for_fork()
        tags = _tags(tags)
        with self._changes.of(items):
            names, lifetimes_s = self._set_in_memory(items, ttl, tags)
            plan = self.tier.plan_set(names, lifetimes_s, tags, list(names))
            return int(self.tier.run(plan, 0, keys=names) or 0) if names else 0

    async def aset(self, key: K, value: V, *, ttl: float | None = None, tags: Iterable[str] = ()) -> bool:
        """As `set`, in a coroutine."""
        return await self.aset_many({key: value}, ttl=ttl, tags=tags) == 1

    async def aset_many(self, items: Mapping[K, V], *, ttl: float | None = None, tags: Iterable[str] = ()) -> int:
        """As `set_many`, in a coroutine."""
        if self._pid != os.getpid():
            self._look_for_fork()
        tags = _tags(tags)
        with self._changes.of(items):
            names, lifetimes_s = self._set_in_memory(items, ttl, tags)
            plan = self.tier.plan_set(names, lifetimes_s, tags, list(names))
            return int(await self.tier.arun(plan, 0, keys=names) or 0) if names else 0

    def _set_in_memory(
        self, items: Mapping[K, V], ttl: Any, tags: tuple[str, ...]
    ) -> tuple[dict[str, Any], dict[str, float | None]]:
        """Values and lifetimes by name, for the store."""
        names, lifetimes_s = {}, {}
        for key, value in items.items():
            self.cache.set(key, value, tags=tags, ttl=DEFAULT if ttl is None else ttl)
            name = self.tier.name_of(key)
            if name is not None:
                names[name] = value
                lifetimes_s[name] = lifetime_s(self.cache, key, value, ttl)
        return names, lifetimes_s

    def delete(self, key: K) -> None:
        """Remove a key everywhere."""
        self.delete_many([key])

    __delitem__ = delete

    def delete_many(self, keys: Iterable[K]) -> None:
        """Remove keys everywhere."""
        if self._pid != os.getpid():
            self._look_for_fork()
        keys = list(keys)
        with self._changes.of(keys):
            names = self._forget(keys)
            self.tier.run(self.tier.plan_remove(names, (), {"keys": names}), keys=names)

    async def adelete_many(self, keys: Iterable[K]) -> None:
        """As `delete_many`, in a coroutine."""
        if self._pid != os.getpid():
            self._look_for_fork()
        keys = list(keys)
        with self._changes.of(keys):
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
        if self._pid != os.getpid():
            self._look_for_fork()
        with self._changes.of():
            count = self.cache.invalidate(tag=tag, prefix=prefix, pattern=pattern)
            self.tier.run(*self._removal(tag, prefix, pattern), **self._kept(tag, prefix, pattern))
        return count

    async def ainvalidate(
        self, *, tag: str | Iterable[str] | None = None, prefix: str | None = None, pattern: str | None = None
    ) -> int:
        """As `invalidate`, in a coroutine."""
        if self._pid != os.getpid():
            self._look_for_fork()
        with self._changes.of():
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
        if self._pid != os.getpid():
            self._look_for_fork()
        with self._changes.of():
            self.cache.clear()
            self.tier.run(self.tier.plan_remove([], [ALL], {"all": True}), tags=[ALL])

    # --- loading

    def get_or_set(self, key: K, load: Callable[[], V], *, ttl: float | None = None, tags: Iterable[str] = ()) -> V:
        """From memory, else the store, else *load*: once among the threads of this process, and once among processes as far as
        the store can tell them (for *lock_s* of the tier)."""
        if self._pid != os.getpid():
            self._look_for_fork()
        tags = _tags(tags)
        name = self.tier.name_of(key)
        if name is None:
            return self.cache.get_or_set(key, load, ttl=DEFAULT if ttl is None else ttl, tags=tags)
        lifetime = _Lifetime(self.cache, self._changes, key, ttl)

        def through() -> V:
            budget = Budget(self.tier.timeout_s)
            found = self._from_store(name, lifetime, budget)
            if found is not GONE:
                return found  # type: ignore[no-any-return]
            token = secrets.token_hex(8)
            is_locked, found = self._lock(name, token, lifetime, budget)
            try:
                if found is GONE and not is_locked:
                    is_locked, found = self._wait_for_another(name, token, lifetime)
                if found is not GONE:
                    return found  # type: ignore[no-any-return]
                ready = self.tier.run(self.tier.plan_ready(name, tags, lifetime.at_most_s()), budget=budget)
                lifetime.begin()
                value = load()
                if ready is not None and is_some_time(lives_s := lifetime.own_s(value)):
                    plan = self.tier.plan_store_loaded(name, value, lives_s, ready, token)
                    is_locked = not self.tier.run(plan, budget=budget) and is_locked
                return value
            finally:
                if is_locked and self.tier.lock_s:
                    self.tier.run(self.tier.plan_unlock(name, token), budget=budget)

        value = self.cache.get_or_set(key, through, ttl=lifetime, tags=tags)
        if not lifetime.is_current():
            self.cache.discard(key, value)  # removed while it was stored
        return value

    def _from_store(self, name: str, lifetime: _Lifetime, budget: Budget | None = None) -> Any:
        lifetime.begin()
        found = self.tier.run(self.tier.plan_get([name]), {}, budget=budget).get(name)
        return GONE if found is None else lifetime.take(found)

    def _lock(self, name: str, token: str, lifetime: _Lifetime, budget: Budget | None = None) -> tuple[bool, Any]:
        """Whether this process may load, and what another has stored since this one looked."""
        if not self.tier.lock_s:
            return True, GONE
        locked = self.tier.run(self.tier.plan_lock(name, token), NO_LOCK, budget=budget)
        return locked.is_ours, self._from_store(name, lifetime, budget) if locked.is_ours and locked.exists else GONE

    def _wait_for_another(self, name: str, token: str, lifetime: _Lifetime) -> tuple[bool, Any]:
        """Whether this process may load now, and what another has loaded."""
        until_s = time.monotonic() + self.tier.lock_s
        while time.monotonic() < until_s:
            time.sleep(POLL_S)
            found = self._from_store(name, lifetime)
            if found is not GONE:
                return False, found
            is_locked, found = self._lock(name, token, lifetime)
            if is_locked:
                return True, found  # the other one failed or was slow, or the store is gone
        return False, GONE

    async def aget_or_set(
        self, key: K, load: Callable[[], Awaitable[V]], *, ttl: float | None = None, tags: Iterable[str] = ()
    ) -> V:
        """As `get_or_set`, in a coroutine."""
        if self._pid != os.getpid():
            self._look_for_fork()
        tags = _tags(tags)
        name = self.tier.name_of(key)
        if name is None:
            return await self.cache.aget_or_set(key, load, ttl=DEFAULT if ttl is None else ttl, tags=tags)
        lifetime = _Lifetime(self.cache, self._changes, key, ttl)
        tier = self.tier

        async def from_store(budget: Budget | None = None) -> Any:
            lifetime.begin()
            found = (await tier.arun(tier.plan_get([name]), {}, budget=budget)).get(name)
            return GONE if found is None else lifetime.take(found)

        async def lock(token: str, budget: Budget | None = None) -> tuple[bool, Any]:
            if not tier.lock_s:
                return True, GONE
            locked = await tier.arun(tier.plan_lock(name, token), NO_LOCK, budget=budget)
            return locked.is_ours, await from_store(budget) if locked.is_ours and locked.exists else GONE

        async def through() -> V:
            budget = Budget(tier.timeout_s)
            found = await from_store(budget)
            if found is not GONE:
                return found  # type: ignore[no-any-return]
            token = secrets.token_hex(8)
            is_locked, found = await lock(token, budget)
            try:
                until_s = time.monotonic() + tier.lock_s
                while found is GONE and not is_locked and time.monotonic() < until_s:
                    await asyncio.sleep(POLL_S)
                    found = await from_store()
                    if found is GONE:
                        is_locked, found = await lock(token)
                if found is not GONE:
                    return found  # type: ignore[no-any-return]
                ready = await tier.arun(tier.plan_ready(name, tags, lifetime.at_most_s()), budget=budget)
                lifetime.begin()
                value = await load()
                if ready is not None and is_some_time(lives_s := lifetime.own_s(value)):
                    plan = tier.plan_store_loaded(name, value, lives_s, ready, token)
                    is_locked = not await tier.arun(plan, budget=budget) and is_locked
                return value
            finally:
                if is_locked and tier.lock_s:
                    await tier.arun(tier.plan_unlock(name, token), budget=budget)

        value = await self.cache.aget_or_set(key, through, ttl=lifetime, tags=tags)
        if not lifetime.is_current():
            self.cache.discard(key, value)
        return value

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


def lifetime_s(cache: Cache[Any, Any], key: Any, value: Any, ttl: Any = None) -> float | None:
    """How long a value lives by *ttl*, or by the rule of its cache; None for ever."""
    if ttl is None and cache.ttu is not None:
        now = cache.timer()
        ttl = cache.ttu(key, value, now)
        ttl = ttl if ttl == math.inf else ttl - now
    else:
        ttl = cache.ttl if ttl is None else ttl
        if callable(ttl):
            ttl = ttl(value)
    if isinstance(ttl, str):
        ttl = seconds_of("ttl", ttl)
    if isinstance(ttl, timedelta):
        ttl = ttl.total_seconds()
    return None if ttl is None or ttl == math.inf else float(ttl)


def _shorter(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


class _Changes:
    """What is being removed or written: nothing that was read from the store before it, or meanwhile, is kept in memory.

    Keys share places, so that a change to one may keep another out of memory, which costs a hit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = [0] * (PLACES + 1)
        self._ended = [0] * (PLACES + 1)

    @contextmanager
    def of(self, keys: Iterable[Any] | None = None) -> Iterator[None]:
        """A change to these keys, or to any."""
        places = [PLACES] if keys is None else [hash(key) % PLACES for key in keys]
        self._count(self._begun, places)
        try:
            yield
        finally:
            self._count(self._ended, places)

    def after_fork(self) -> None:
        """Threads of the parent that were changing something are not here."""
        self._lock = threading.Lock()
        self._ended[:] = self._begun

    def _count(self, counts: list[int], places: list[int]) -> None:
        with self._lock:
            for place in places:
                counts[place] += 1

    def stamp(self, key: Any) -> tuple[int, int] | None:
        """What says later whether anything has changed; None if it is changing now."""
        place = hash(key) % PLACES
        ended = self._ended[place], self._ended[PLACES]
        return ended if ended == (self._begun[place], self._begun[PLACES]) else None

    def is_as_at(self, key: Any, stamp: tuple[int, int] | None) -> bool:
        """Whether nothing has changed since that stamp."""
        return stamp is not None and stamp == (self._begun[hash(key) % PLACES], self._begun[PLACES])

    def begun(self, key: Any) -> int:
        """Changes to this key alone."""
        return self._begun[hash(key) % PLACES]


class _Lifetime:
    """The time to live of what a load brings: what the store says is left, where the value came from there."""

    def __init__(self, cache: Cache[Any, Any], changes: _Changes, key: Any, ttl: Any) -> None:
        self._cache, self._changes, self._key, self._ttl = cache, changes, key, ttl
        self._left_s: float | None = None
        self._begun: int | None = None
        self._stamp: tuple[int, int] | None = None
        self._is_stored = False

    def begin(self) -> None:
        """The store is asked, or the load begins."""
        self._begun, self._stamp = self._changes.begun(self._key), self._changes.stamp(self._key)

    def take(self, found: Found) -> Any:
        """The value; that it came from the store, and how long it may stay, is remembered."""
        self._left_s, self._is_stored = found.ttl_s, True
        return found.value

    def is_current(self) -> bool:
        """Whether what was brought is not out of date: read while nothing changed, or loaded with no change to its key since."""
        if self._is_stored:
            return self._changes.is_as_at(self._key, self._stamp)
        return self._begun is None or self._begun == self._changes.begun(self._key)

    def own_s(self, value: Any) -> float | None:
        """By the rule of the caller or the cache."""
        return lifetime_s(self._cache, self._key, value, self._ttl)

    def at_most_s(self) -> float | None:
        """What is known before there is a value."""
        known = self._ttl if self._ttl is not None else None if self._cache.ttu is not None else self._cache.ttl
        return float(known) if isinstance(known, int | float) else None

    def __call__(self, value: Any) -> Any:
        return _shorter(self.own_s(value), self._left_s) if self.is_current() else 0


class _Listener:
    """Hears of removals by other processes, on a daemon thread that goes with its cache."""

    def __init__(self, cache: Cache[Any, Any], tier: RedisTier, changes: _Changes) -> None:
        self._cache = weakref.ref(cache)
        self._tier = tier
        self._changes = changes
        self._stopped = threading.Event()
        self._subscription: Any = None

    def start(self, *, has_missed: bool = False) -> None:
        """Begin.

        Args:
            has_missed: whether removals came before: then memory is emptied when others are heard.
        """
        threading.Thread(target=self._listen, args=(has_missed,), name="memwatch-removals", daemon=True).start()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End."""
        self._stopped.set()

    def _listen(self, was_connected: bool) -> None:
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
            with self._changes.of():
                cache.clear()

    def _hear(self, data: bytes) -> None:
        cache = self._cache()
        try:
            what = json.loads(data)
            if cache is None or what.get("from") == self._tier.origin:
                return
            names = what.get("keys") or []
            keys = {name: self._tier.key_of(name) for name in names}
            hashed = {name for name, key in keys.items() if key is None}
            gone = [key for key in keys.values() if key is not None]
            if hashed:
                gone += [key for key in cache if self._tier.name_of(key) in hashed]
            # Only a message about plain keys says which these are.
            with self._changes.of(gone if names and len(what) == 2 and not hashed else None):
                if what.get("all") or what.get("away"):
                    cache.clear()
                if what.get("tags"):
                    cache.invalidate(tag=[str(tag) for tag in what["tags"]])
                if what.get("prefix") is not None:
                    cache.invalidate(prefix=str(what["prefix"]))
                if what.get("pattern") is not None:
                    cache.invalidate(pattern=str(what["pattern"]))
                cache.delete_many(gone)
        except (ValueError, TypeError, AttributeError) as error:
            log.debug("cache store: a message that is none of ours: %s", error)
