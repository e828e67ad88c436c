"""The one cache engine: an ordered dictionary of entries, bounded in entries (or weights) and in bytes, with expiry.

Law: the bound holds after every operation, also after one that was interrupted by an exception; every value leaves by `_unlink`; no code
of the program but a key's `__hash__` and `__eq__` runs under the lock: hooks run and values die after its release.
"""

from __future__ import annotations

import logging
import math
import random
import sys
import time
from _thread import RLock, get_ident
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from memwatch.caches import registry
from memwatch.caches.causes import Lifetime, RemovalCause
from memwatch.caches.expiry import SPOKES, Wheel
from memwatch.caches.sizer import ENTRY_BYTES, sizeof
from memwatch.caches.statistics import CacheStatistics

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Hook = Callable[[Any, Any, RemovalCause], Any]
Cascade = Callable[[str], Iterable[str]] | Mapping[str, Iterable[str]]

getsizeof = sys.getsizeof
log = logging.getLogger("memwatch.caches")

GONE: Any = object()
"""What stands for a value that is not there."""
_DEFAULT: Any = object()
SECOND_CHANCES = 64
"""CLOCK passes over at most as many entries for one eviction: without a cap one insert took 19 ms with 100,000 entries just read."""
BATCH = 1024
"""Entries removed under one hold of the lock: some 0.5 ms."""
DUE_PER_WRITE = 16
HOOK_DEPTH = 8
"""A hook that writes into its cache evicts, which calls the hook: deeper than this it is not called."""
_ATOMIC: frozenset[type] = (
    frozenset({str, int, bytes, float, bool, type(None)}) if getattr(sys, "_is_gil_enabled", lambda: True)() else frozenset()
)
"""Keys whose comparison runs no Python code: with them, moving an entry is one step that no other thread can come between."""
_INFINITY = math.inf
# An enumeration's members are looked up by Python code in 3.11.
EXPIRED, SIZE, BYTES, PRESSURE, REPLACED, DELETED, INVALIDATED, CLEARED, REJECTED = RemovalCause


class Entry:
    """One value and what is known of it."""

    __slots__ = ("cause", "dead", "expires", "extra", "hot", "key", "size", "value", "weight")

    key: Any
    value: Any
    weight: Any
    size: int
    """Accounted bytes; 0 in a cache that does not account."""
    expires: Any
    """Fresh before this time; None for ever."""
    dead: Any
    """Removed at this time: `expires` and the time it may be served stale."""
    hot: bool
    """Read since it was last passed over (CLOCK)."""
    extra: tuple[tuple[str, ...], Lifetime | None] | None
    """Tags and lifetime, where there are any."""
    cause: RemovalCause | None
    """Why it was removed; None while it is in the cache."""


class Cache(MutableMapping[K, V], Generic[K, V]):
    """A thread-safe cache; use `LRUCache`, `TTLCache` or `TLRUCache`.

    Args:
        maxsize: entries, or the sum of *getsizeof*; None for no such bound, which needs *max_bytes*.
        getsizeof: weight of a value.  One that weighs more than *maxsize* raises ValueError.
        max_bytes: accounted bytes of keys, values and the cache's own, as a number or such as `"64MB"`.
        ttl: how long a value is fresh, in the timer's unit; or a function of the value.  None for ever.
        ttu: as TLRUCache takes it: `ttu(key, value, now)` returns when the value expires.
        stale_ttl: for how much longer `get_or_set` may answer with it while it is loaded anew.
        jitter: up to this part of each *ttl* is taken off, at random, so that not all expire at once.
        policy: `"lru"`, exact; or `"clock"`, whose reads take no lock and move nothing.
        sizeof: bytes of a value, instead of `memwatch.caches.sizer.sizeof`.
        oversize: what happens to a value larger than *max_bytes*: `"skip"` (it is rejected, with a hook) or `"raise"` a ValueError.
        on_remove: called with key, value and cause once per value that has left, after it has, without a lock held.  Others may still
            hold the value.  An exception is counted and logged.
        tier: a named lifetime; the *ttl*, if that is not given, and the order in which caches shrink under pressure.
        cascade: which other tags an invalidated tag invalidates, as a mapping or a function.
        name: what statistics call it [where it was made].
        timer: the clock; must not go backwards.

    Raises:
        ValueError, TypeError: an argument that cannot be; the message names it.
    """

    __slots__ = (
        "__weakref__",
        "_bytes",
        "_cascade",
        "_clock",
        "_computes",
        "_counts",
        "_depths",
        "_entries",
        "_flights",
        "_hits",
        "_hook_errors",
        "_hooks",
        "_jitter",
        "_lock",
        "_max_bytes",
        "_maxsize",
        "_misses",
        "_now",
        "_oversize",
        "_pops",
        "_room_bytes",
        "_room_weight",
        "_sizeof",
        "_stale_hits",
        "_stale_ttl",
        "_tags",
        "_tier",
        "_timer",
        "_touch",
        "_ttl",
        "_ttu",
        "_weigh",
        "_weight",
        "_wheel",
        "name",
    )

    def __init__(
        self,
        maxsize: float | None = 1000,
        getsizeof: Callable[[V], float] | None = None,
        *,
        max_bytes: int | str | None = None,
        ttl: Any = None,
        ttu: Callable[[K, V, Any], Any] | None = None,
        stale_ttl: Any = None,
        jitter: float = 0.0,
        policy: Literal["lru", "clock"] = "lru",
        sizeof: Callable[[V], int] | None = None,
        oversize: Literal["skip", "raise"] = "skip",
        on_remove: Hook | None = None,
        tier: Lifetime | str | None = None,
        cascade: Cascade | None = None,
        name: str | None = None,
        timer: Callable[[], Any] = time.monotonic,
    ) -> None:
        checked = _checked(maxsize, max_bytes, ttl, stale_ttl, jitter, policy, oversize, tier)
        self._maxsize, self._max_bytes, self._ttl, self._stale_ttl, self._tier = checked
        if getsizeof is not None:
            self.getsizeof = getsizeof  # type: ignore[method-assign]  # as cachetools: the attribute hides the static method
        self._ttu = ttu
        self._jitter = float(jitter)
        self._clock = policy == "clock"
        self._sizeof = sizeof
        self._oversize = oversize
        self._hooks: tuple[Hook, ...] = () if on_remove is None else (on_remove,)
        self._cascade = cascade
        self._timer = self._now = timer
        self.name = name or registry.place_of_caller()
        self._begin()
        registry.add(self)

    def _begin(self) -> None:
        """What is not an argument: empty, and open to all."""
        self._computes = self._ttu is not None or self._jitter != 0.0 or callable(self._ttl) or self._ttl == _INFINITY
        self._pops = type(self).popitem is not Cache.popitem
        self._weigh = None if self.getsizeof is Cache.getsizeof else self.getsizeof
        if self._max_bytes is not None and self._sizeof is None:
            self._sizeof = sizeof
        self._lock = RLock()
        self._entries: OrderedDict[Any, Entry] = OrderedDict()
        self._touch: Callable[[Any], None] | None = None if self._clock else self._entries.move_to_end
        self._wheel: Wheel | None = None
        self._depths: dict[int, int] = {}
        self._tags: dict[str, set[Any]] = {}
        self._weight: Any = 0
        self._bytes = 0
        self._room_weight: Any = self._maxsize
        self._room_bytes: float = math.inf if self._max_bytes is None else self._max_bytes
        self._hits = self._misses = self._stale_hits = self._hook_errors = 0
        self._counts: dict[RemovalCause, int] = dict.fromkeys(RemovalCause, 0)
        self._flights: Any = None

    # --- reading

    def __getitem__(self, key: K) -> V:
        # As `_find`, without that call: it is a fifth of a hit.
        entry = self._entries.get(key)
        if entry is not None:
            value = entry.value
            if value is not GONE and (entry.expires is None or self._now() < entry.expires):
                touch = self._touch
                if touch is None:
                    entry.hot = True
                elif key.__class__ in _ATOMIC:
                    try:
                        touch(key)
                    except KeyError:
                        pass
                else:
                    self._promote(key, entry)
                self._hits += 1
                return value  # type: ignore[no-any-return]
            self._drop_if_dead(key, entry)
        self._misses += 1
        return self.__missing__(key)

    def _find(self, key: Any) -> Any:
        """The fresh value, promoted and counted; GONE if there is none."""
        entry = self._entries.get(key)
        if entry is not None:
            value = entry.value
            if value is not GONE and (entry.expires is None or self._now() < entry.expires):
                self._promote(key, entry)
                self._hits += 1
                return value
            self._drop_if_dead(key, entry)
        self._misses += 1
        return GONE

    def _promote(self, key: Any, entry: Entry) -> None:
        touch = self._touch
        if touch is None:
            entry.hot = True
        elif key.__class__ in _ATOMIC:
            try:
                touch(key)
            except KeyError:
                pass  # removed meanwhile by another thread: what was read was there
        else:
            with self._lock:
                try:
                    self._entries.move_to_end(key)
                except KeyError:
                    pass

    def _drop_if_dead(self, key: Any, entry: Entry) -> None:
        now = self._now()
        if entry.expires is not None and not now < entry.dead:
            self._remove_entry(key, entry, EXPIRED)

    def _remove_entry(self, key: Any, entry: Entry, cause: RemovalCause) -> bool:
        """Remove this very entry, if it is still there."""
        gone: list[Entry] = []
        try:
            with self._lock:
                try:
                    if self._entries.get(key) is entry:
                        del self._entries[key]
                        self._unlink(entry, cause, gone)
                except BaseException:
                    self._repair()
                    raise
        finally:
            self._deliver(gone)
        return bool(gone)

    def __missing__(self, key: K) -> V:
        raise KeyError(key)

    def get(self, key: K, default: Any = None) -> Any:
        """The value, or *default*.  Counts and promotes."""
        value = self._find(key)
        return default if value is GONE else value

    def peek(self, key: K, default: Any = None) -> Any:
        """The value, or *default*.  Neither counts nor promotes."""
        entry = self._entries.get(key)
        if entry is None:
            return default
        value = entry.value
        return default if value is GONE or not self._is_fresh(entry) else value

    def __contains__(self, key: object) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.value is not GONE and self._is_fresh(entry)

    def _is_fresh(self, entry: Entry) -> bool:
        return entry.expires is None or bool(self._now() < entry.expires)

    def __len__(self) -> int:
        if self._wheel is None:
            return len(self._entries)
        self.expire()
        if self._stale_ttl is None:
            return len(self._entries)
        return sum(1 for _ in self)

    def _snapshot(self) -> list[tuple[Any, Entry]]:
        with self._lock:
            return list(self._entries.items())

    def __iter__(self) -> Iterator[K]:
        """Keys of a moment, least recently used first; those that have left or expired meanwhile are passed over."""
        for key, _ in self._snapshot():
            if key in self:
                yield key

    def items(self) -> Any:
        """Pairs of a moment; iterating neither counts nor promotes."""
        return _Items(self)

    def values(self) -> Any:
        """Values of a moment; iterating neither counts nor promotes."""
        return _Values(self)

    def __repr__(self) -> str:
        bounds = f"maxsize={self._maxsize!r}" + ("" if self._max_bytes is None else f", max_bytes={self._max_bytes!r}")
        return f"{type(self).__name__}({bounds}, currsize={self._total()!r}, name={self.name!r})"

    # --- writing

    def set(
        self,
        key: K,
        value: V,
        *,
        ttl: Any = _DEFAULT,
        tags: Iterable[str] = (),
        size: int | None = None,
        tier: Lifetime | str | None = None,
    ) -> bool:
        """Store a value.

        Args:
            ttl: instead of the cache's; a number, a function of the value, or None for ever.
            tags: what `invalidate(tag=…)` finds it by.
            size: bytes of the value, instead of measuring it.
            tier: its lifetime, instead of the cache's.

        Returns:
            Whether it was stored: not if it is too large for *max_bytes*, or expired already.

        Raises:
            ValueError: it weighs more than *maxsize*, or is larger than *max_bytes* and `oversize="raise"`.
        """
        lifetime = lifetime_of(tier)
        if lifetime is not None and ttl is _DEFAULT:
            ttl = lifetime.ttl_s
        return self._store(key, value, ttl, (tags,) if isinstance(tags, str) else tuple(tags), size, lifetime)

    def __setitem__(self, key: K, value: V) -> None:
        # `_store` written out for what most caches are: evictions one by one, and only what this one uses.  With a time to live, a
        # bound in bytes and a hook it takes a third of the instructions (bench/caches.py).
        if self._is_special:
            self._store(key, value)
            return
        entry = Entry()
        entry.key = key
        entry.value = value
        entry.cause = entry.extra = out = None
        entry.hot = False
        measure = self._sizeof
        held = 0
        if measure is not None:
            held = measure(value) + (getsizeof(key) if key.__class__ in _ATOMIC else sizeof(key)) + ENTRY_BYTES
            if not 0 < held <= self._room_bytes:
                self._store(key, value, size=held)
                return
            entry.size = held
        ttl = self._ttl
        if ttl is None:
            entry.expires = now = None
        else:
            now = self._now()
            entry.expires = entry.dead = now + ttl
        lock = self._lock
        with lock:
            try:
                entries = self._entries
                if key in entries or (now is not None and not now < self._wake):
                    self._tidy_up(key, now)
                if len(entries) >= self._room_weight or self._bytes + held > self._room_bytes:
                    victim = next(iter(entries))
                    out = entries[victim]
                    if out.hot or out.extra is not None or self._bytes - (out.size if held else 0) + held > self._room_bytes:
                        out = None
                        self._make_room(1, held)
                    else:
                        del entries[victim]  # with `next` a third cheaper than `popitem(False)`
                        out.cause = SIZE
                        self._evicted += 1
                        if held:
                            self._bytes -= out.size
                entries[key] = entry
                if held:
                    self._bytes += held
                if now is not None:
                    self._wheel.add(entry)
            except BaseException:
                self._repair()
                raise
        if out is not None and self._hooks:
            self._deliver(out)

    def _store(
        self,
        key: Any,
        value: Any,
        ttl: Any = _DEFAULT,
        tags: tuple[str, ...] = (),
        size: int | None = None,
        lifetime: Lifetime | None = None,
    ) -> bool:
        """Whether it was stored.  The hot path of every write: what a cache does not use must cost one comparison at most."""
        entry = Entry()
        entry.key = key
        entry.value = value
        entry.cause = None
        entry.hot = False
        entry.extra = (tags, lifetime) if tags or lifetime is not None else None
        weigh = self._weigh
        weight: Any = 1
        if weigh is not None:
            weight = entry.weight = self._weighed(weigh(value))
        measure = self._sizeof
        held = 0
        if measure is not None:
            held = entry.size = self._measure(key, value, measure if size is None else None, size)
        wheel = self._wheel
        now = expires = None
        is_fresh = True
        if ttl is _DEFAULT and not self._computes:
            ttl = self._ttl
            if ttl is not None:
                now = self._now()
                expires = now + ttl
        else:
            now = self._now()
            expires = self._computed(key, value, ttl, now)
        entry.expires = expires
        if expires is not None:
            is_fresh = now < expires
            entry.dead = expires if self._stale_ttl is None else expires + self._stale_ttl
        if self._pops:
            self._make_room_by_popitem(key, weight)
        gone: list[Entry] = []
        try:
            with self._lock:
                try:
                    entries = self._entries
                    if now is not None and wheel is not None and wheel.wake is not None and not now < wheel.wake:
                        self._expire(now, gone, DUE_PER_WRITE)
                    if key in entries:
                        self._unlink(entries.pop(key), REPLACED, gone)
                    if not is_fresh:
                        return False
                    if held > self._room_bytes:
                        self._reject(entry, gone)
                        return False
                    if (len(entries) >= self._room_weight if weigh is None else self._weight + weight > self._room_weight) or (
                        self._bytes + held > self._room_bytes
                    ):
                        self._make_room(weight, held, gone)
                    entries[key] = entry
                    if weigh is not None:
                        self._weight += weight
                    if held:
                        self._bytes += held
                    if expires is not None:
                        (wheel or self._new_wheel(ttl)).add(entry, len(entries))
                    if tags:
                        self._index(entry, tags)
                except BaseException:
                    self._repair()
                    raise
        finally:
            if gone:
                self._deliver(gone)
        return True

    def _weighed(self, weight: Any) -> Any:
        if weight < 0:
            raise ValueError(f"value size must be non-negative, not {weight!r}")
        if weight > self._maxsize:
            raise ValueError(f"value too large: it weighs {weight!r}, maxsize is {self._maxsize!r}")
        return weight

    def _measure(self, key: Any, value: Any, measure: Callable[[Any], int] | None, size: int | None = None) -> int:
        """Accounted bytes of an entry."""
        held = measure(value) if measure is not None else size
        if held < 0:  # type: ignore[operator]  # one of the two is there
            raise ValueError(f"size of a value: {held!r} bytes are less than none")
        held = int(held) + ENTRY_BYTES + (getsizeof(key) if key.__class__ in _ATOMIC else sizeof(key))  # type: ignore[arg-type]
        if held > self._room_bytes and self._oversize == "raise":
            raise ValueError(f"value too large: {held} bytes with its key, max_bytes is {self._max_bytes}")
        return held

    def _computed(self, key: Any, value: Any, ttl: Any, now: Any) -> Any:
        """When a value expires whose time to live is not simply the cache's."""
        if ttl is _DEFAULT:
            if self._ttu is not None:
                expires = self._ttu(key, value, now)
                return None if expires == _INFINITY else expires
            ttl = self._ttl
        if callable(ttl):
            ttl = ttl(value)
        if ttl is None or ttl == _INFINITY:
            return None
        return now + (ttl if self._jitter == 0.0 else ttl * (1 - self._jitter * random.random()))

    def _new_wheel(self, ttl: Any) -> Wheel:
        """The wheel, or the one that a hook's write made meanwhile."""
        if self._wheel is None:
            self._wheel = Wheel(max(1.0, ttl / SPOKES) if isinstance(ttl, int | float) and math.isfinite(ttl) else 1.0)
        return self._wheel

    def _why_full(self) -> RemovalCause:
        """Why something has to go that is within *maxsize*."""
        is_lowered = self._room_weight < self._maxsize or self._max_bytes is None or self._room_bytes < self._max_bytes
        return PRESSURE if is_lowered else BYTES

    def _make_room_by_popitem(self, key: Any, weight: Any) -> None:
        """As cachetools: a subclass that overrides `popitem` is called for what has to go."""
        while key not in self._entries and self._entries and self._total() + weight > self._room_weight:
            self.popitem()

    # --- out of the cache

    def _make_room(self, weight: Any, held: int, gone: list[Entry]) -> None:
        """Evict until so much fits in.  Under the lock."""
        entries, counts = self._entries, self._counts
        while entries:
            is_many = len(entries) >= self._room_weight if self._weigh is None else self._weight + weight > self._room_weight
            if not is_many and self._bytes + held <= self._room_bytes:
                return
            self._unlink(
                self._next_out(entries), SIZE if is_many and self._room_weight == self._maxsize else self._why_full(), gone
            )
        if self._maxsize < 1 and self._weigh is None:
            raise ValueError(f"value too large: maxsize is {self._maxsize!r}")

    def _next_out(self, entries: OrderedDict[Any, Entry]) -> Entry:
        """Take out the next in the policy's order.  Under the lock, not empty."""
        key = next(iter(entries))
        if self._touch is None:
            chances = SECOND_CHANCES
            while entries[key].hot and chances:
                entries[key].hot = False
                entries.move_to_end(key)
                chances -= 1
                key = next(iter(entries))
        entry = entries[key]
        del entries[key]  # with `next` 30 % cheaper than `popitem(False)`
        return entry

    def _why_full(self) -> RemovalCause:
        """Why something has to go that is within *maxsize*."""
        is_lowered = self._room_weight < self._maxsize or self._max_bytes is None or self._room_bytes < self._max_bytes
        return PRESSURE if is_lowered else BYTES

    def _reject(self, entry: Entry, gone: list[Entry]) -> None:
        """A value that is too large has never been in the cache."""
        self._counts[REJECTED] += 1
        entry.cause = REJECTED
        gone.append(entry)

    def _unlink(self, entry: Entry, cause: RemovalCause, gone: list[Entry]) -> None:
        """The one way out: account for an entry that has just been taken out of `_entries`.  Under the lock."""
        entry.cause = cause
        if self._weigh is not None:
            self._weight -= entry.weight
        if self._sizeof is not None:
            self._bytes -= entry.size
        self._counts[cause] += 1
        gone.append(entry)
        if entry.extra is not None:
            self._unindex(entry)

    def _deliver(self, gone: list[Entry]) -> None:
        """Call the hooks, and let the values go.  Never under the lock."""
        if self._hooks:
            me = get_ident()
            depth = self._depths.get(me, 0)
            self._depths[me] = depth + 1
            try:
                for entry in gone:
                    for hook in self._hooks:
                        if depth >= HOOK_DEPTH:
                            self._hook_failed(hook, "writes into its cache, which evicts, which calls it: it was not called again")
                            continue
                        try:
                            hook(entry.key, entry.value, entry.cause)  # type: ignore[arg-type]  # it has one: it has left
                        except Exception as error:
                            self._hook_failed(hook, "raised", error)
            finally:
                if depth:
                    self._depths[me] = depth
                else:
                    del self._depths[me]
        for entry in gone:
            # An index that still knows the entry, and a reader that raced, hold a husk.
            entry.value = GONE
            entry.key = None

    def _hook_failed(self, hook: Hook, what: str, error: Exception | None = None) -> None:
        self._hook_errors += 1
        if self._hook_errors & (self._hook_errors - 1) == 0:  # the 1st, 2nd, 4th, 8th …
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            log.warning("cache %s: hook %s %s (%d times so far)", self.name, name, what, self._hook_errors, exc_info=error)

    def _repair(self) -> None:
        """After an exception in the middle of an operation: count and index anew what is there.  Under the lock."""
        entries = list(self._entries.items())
        self._weight = 0 if self._weigh is None else sum(entry.weight for _, entry in entries)
        self._bytes = 0 if self._sizeof is None else sum(entry.size for _, entry in entries)
        self._tags = {}
        if self._wheel is not None:
            self._wheel = self._wheel.empty()
        for _, entry in entries:
            entry.cause = None
            if entry.extra is not None:
                self._index(entry, entry.extra[0])
            if entry.expires is not None:
                self._new_wheel(self._ttl).add(entry)

    def _expire(self, now: Any, gone: list[Entry], most: int | None = None) -> None:
        """Remove what is due.  Under the lock."""
        wheel = self._wheel
        if wheel is None:
            return
        for entry in wheel.due(now, most):
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]
                self._unlink(entry, EXPIRED, gone)  # type: ignore[arg-type]

    def expire(self, time: Any = None) -> list[tuple[K, V]]:
        """Remove what has expired at *time* (now); returns it.  Values that may still be served stale stay."""
        removed: list[tuple[K, V]] = []
        if self._wheel is None:
            return removed
        now = self._now() if time is None else time
        while True:
            gone: list[Entry] = []
            try:
                with self._lock:
                    try:
                        self._expire(now, gone, BATCH)
                    except BaseException:
                        self._repair()
                        raise
                removed += [(entry.key, entry.value) for entry in gone]
            finally:
                self._deliver(gone)
            if len(gone) < BATCH:
                return removed

    def __delitem__(self, key: K) -> None:
        self._spoil(key)
        entry = self._take(key, DELETED)
        if entry is None:
            raise KeyError(key)

    def _take(self, key: Any, cause: RemovalCause) -> Any:
        """Remove a key; its fresh value in a tuple, or None if there was none."""
        gone: list[Entry] = []
        taken = None
        try:
            with self._lock:
                try:
                    entry = self._entries.get(key)
                    if entry is not None:
                        fresh = self._is_fresh(entry)
                        del self._entries[key]
                        self._unlink(entry, cause if fresh else EXPIRED, gone)
                        if fresh:
                            taken = (entry.value,)
                except BaseException:
                    self._repair()
                    raise
        finally:
            self._deliver(gone)
        return taken

    def pop(self, key: K, default: Any = GONE) -> Any:
        """Remove a key and return its value, or *default*.

        Raises:
            KeyError: it is not there, and no default is given.
        """
        self._spoil(key)
        taken = self._take(key, DELETED)
        if taken is not None:
            return taken[0]
        if default is GONE:
            raise KeyError(key)
        return default

    def popitem(self) -> tuple[K, V]:
        """Remove and return the pair that would be evicted next.

        Raises:
            KeyError: the cache is empty.
        """
        self.expire()
        gone: list[Entry] = []
        pair: tuple[K, V] | None = None
        try:
            with self._lock:
                try:
                    while self._entries and pair is None:
                        self._unlink(self._next_out(self._entries), DELETED, gone)
                        if self._is_fresh(gone[-1]):
                            pair = (gone[-1].key, gone[-1].value)
                except BaseException:
                    self._repair()
                    raise
        finally:
            self._deliver(gone)
        if pair is None:
            raise KeyError(f"{type(self).__name__} is empty") from None
        return pair

    def setdefault(self, key: K, default: Any = None) -> Any:
        """The value if there is one; else *default*, which is stored."""
        value = self._find(key)
        if value is GONE:
            self[key] = value = default
        return value

    def clear(self) -> None:
        """Remove all.  Hooks are told each."""
        gone: list[Entry] = []
        try:
            with self._lock:
                if self._flights is not None:
                    self._flights.spoil_all()
                left, self._entries = self._entries, OrderedDict()
                self._touch = None if self._clock else self._entries.move_to_end
                self._weight, self._bytes, self._tags = 0, 0, {}
                self._wheel = None if self._wheel is None else self._wheel.empty()
                gone = list(left.values())
                for entry in gone:
                    entry.cause = CLEARED
                self._counts[CLEARED] += len(gone)
        finally:
            self._deliver(gone)

    # --- tags and patterns

    def _index(self, entry: Entry, tags: tuple[str, ...]) -> None:
        for tag in tags:
            self._tags.setdefault(tag, set()).add(entry.key)

    def _unindex(self, entry: Entry) -> None:
        for tag in entry.extra[0] if entry.extra is not None else ():
            keys = self._tags.get(tag)
            if keys is not None:
                keys.discard(entry.key)
                if not keys:
                    del self._tags[tag]

    def invalidate(self, *, tag: str | Iterable[str] | None = None, prefix: str | None = None, pattern: str | None = None) -> int:
        """Remove by tag, by the beginning of the key, or by a shell pattern of it; returns how many left.

        Cost: by tag O(entries removed); by prefix or pattern O(entries).  Only text keys have a beginning.

        A value that is being loaded meanwhile is given to those who wait for it, but not stored.
        """
        if (tag is not None) + (prefix is not None) + (pattern is not None) != 1:
            raise TypeError("invalidate() takes exactly one of tag=, prefix= and pattern=")
        if tag is not None:
            tags = self.with_cascades([tag] if isinstance(tag, str) else tag)
            if self._flights is not None:
                self._flights.spoil_tags(tags)
            with self._lock:
                keys = {key for name in tags for key in self._tags.get(name, ())}
        else:

            def matches(key: Any) -> bool:
                if not isinstance(key, str):
                    return False
                return key.startswith(prefix) if prefix is not None else fnmatchcase(key, str(pattern))

            if self._flights is not None:
                self._flights.spoil_where(matches)
            keys = {key for key, _ in self._snapshot() if matches(key)}
        return sum(self._take(key, INVALIDATED) is not None for key in keys)

    def with_cascades(self, tags: Iterable[str]) -> set[str]:
        """These tags and all that their invalidation invalidates."""
        found: set[str] = set()
        waiting = list(tags)
        while waiting:
            tag = waiting.pop()
            if tag in found:
                continue
            found.add(tag)
            if self._cascade is not None:
                more = self._cascade(tag) if callable(self._cascade) else self._cascade.get(tag, ())
                waiting += [more] if isinstance(more, str) else more
        return found

    # --- many at once

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values that are there, by key."""
        found = {key: self._find(key) for key in keys}
        return {key: value for key, value in found.items() if value is not GONE}

    def set_many(self, items: Mapping[K, V] | Iterable[tuple[K, V]], *, ttl: Any = _DEFAULT, tags: Iterable[str] = ()) -> int:
        """Store all; returns how many were stored."""
        pairs = items.items() if isinstance(items, Mapping) else items
        tags = (tags,) if isinstance(tags, str) else tuple(tags)
        return sum(self.set(key, value, ttl=ttl, tags=tags) for key, value in pairs)

    def delete_many(self, keys: Iterable[K]) -> int:
        """Remove all that are there; returns how many were."""
        missing = object()
        return sum(self.pop(key, missing) is not missing for key in keys)

    def warm(self, items: Mapping[K, V] | Callable[[K], V], keys: Iterable[K] = (), *, tags: Iterable[str] = ()) -> int:
        """Fill from a mapping, or from a function of each of *keys* that is not there yet; returns how many were stored.

        Stops at the bound rather than evict what it has just filled in.
        """
        stored = 0
        wanted: Iterable[Any] = items if isinstance(items, Mapping) else keys
        for key in wanted:
            if key in self:
                continue
            if self._total() >= self._room_weight or self._bytes >= self._room_bytes:
                break
            stored += self.set(key, items[key] if isinstance(items, Mapping) else items(key), tags=tags)
        return stored

    # --- loading

    def get_or_set(
        self,
        key: K,
        load: Callable[[], V],
        *,
        ttl: Any = _DEFAULT,
        tags: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> V:
        """The value; else what *load* returns, which is stored.  However many threads ask, it is loaded once.

        Args:
            ttl, tags: as for `set`.
            timeout_s: how long to wait for another thread's load; then this one loads by itself.

        An exception of *load* is raised in all that wait for it, and nothing is stored.  A value that is stale within *stale_ttl* is
        returned at once and loaded anew in the background, once.
        """
        return self.flights.get_or_set(key, load, ttl, tags, timeout_s)  # type: ignore[no-any-return]

    async def aget_or_set(self, key: K, load: Callable[[], Any], *, ttl: Any = _DEFAULT, tags: Iterable[str] = ()) -> V:
        """As `get_or_set`, with a coroutine function *load*, run once per event loop.

        A caller that is cancelled leaves; the load goes on for the others, and is cancelled when the last has left.
        """
        return await self.flights.aget_or_set(key, load, ttl, tags)  # type: ignore[no-any-return]

    @property
    def flights(self) -> Any:
        """The loads under way."""
        flights = self._flights
        if flights is None:
            from memwatch.caches.flights import Flights

            with self._lock:
                flights = self._flights = self._flights or Flights(self)
        return flights

    def _spoil(self, key: Any) -> None:
        if self._flights is not None:
            self._flights.spoil(key)

    def stale(self, key: K) -> Any:
        """A value that has expired and may still be served; GONE if there is none."""
        entry = self._entries.get(key)
        if entry is None or entry.expires is None or self._stale_ttl is None:
            return GONE
        value, now = entry.value, self._now()
        return value if value is not GONE and not now < entry.expires and now < entry.dead else GONE

    # --- bounds

    def _total(self) -> Any:
        """Entries, or their weight."""
        return len(self._entries) if self._weigh is None else self._weight

    @staticmethod
    def getsizeof(value: Any) -> float:
        """Weight of a value: 1."""
        return 1

    @property
    def maxsize(self) -> Any:
        """Entries, or weight, that the cache may hold."""
        return self._maxsize

    @property
    def max_bytes(self) -> int | None:
        """Accounted bytes that the cache may hold."""
        return self._max_bytes

    @property
    def currsize(self) -> Any:
        """Entries, or weight, that it holds; the expired are removed first."""
        self.expire()
        return self._total()

    @property
    def bytes(self) -> int:
        """Accounted bytes that it holds; 0 in a cache that does not account (neither *max_bytes* nor *sizeof*)."""
        return self._bytes

    @property
    def ttl(self) -> Any:
        """How long a value is fresh."""
        return self._ttl

    @property
    def ttu(self) -> Any:
        """The function that says when a value expires."""
        return self._ttu

    @property
    def tier(self) -> Lifetime | None:
        """The lifetime it was given."""
        return self._tier

    @property
    def timer(self) -> Any:
        """The clock; as a context manager it stands still."""
        return _Timer(self)

    def on_remove(self, hook: Hook) -> Hook:
        """Add a hook; returns it, so that it serves as a decorator."""
        if not callable(hook):
            raise TypeError(f"on_remove: {type(hook).__name__} is not callable")
        self._hooks = (*self._hooks, hook)
        return hook

    def resize(self, maxsize: float | None = None, *, max_bytes: int | str | None = None) -> None:
        """Set new bounds; what is too much is evicted."""
        checked = _checked(
            self._maxsize if maxsize is None else maxsize,
            self._max_bytes if max_bytes is None else max_bytes,
            None, None, 0.0, "lru", "skip", None,
        )  # fmt: skip
        with self._lock:
            self._maxsize, self._max_bytes = checked[:2]
            self._room_weight = self._maxsize
            self._room_bytes = math.inf if self._max_bytes is None else self._max_bytes
        if self._max_bytes is not None and self._sizeof is None:
            self._account()
        cause = SIZE if maxsize is not None else BYTES
        self._shrink_while(lambda: self._total() > self._room_weight or self._bytes > self._room_bytes, cause)

    def _account(self) -> None:
        """Begin to count bytes in a cache that did not."""
        sizes = {id(entry): self._measure(key, entry.value, sizeof) for key, entry in self._snapshot() if entry.value is not GONE}
        with self._lock:
            for entry in self._entries.values():
                entry.size = sizes.get(id(entry), ENTRY_BYTES)
            self._sizeof = sizeof
            self._bytes = sum(entry.size for entry in self._entries.values())

    def resize_entry(self, key: K) -> None:
        """Measure a value again that has been changed since it was stored.  Does nothing for a key that is not there."""
        entry = self._entries.get(key)
        if entry is None or self._sizeof is None:
            return
        size = self._measure(key, entry.value, self._sizeof)
        with self._lock:
            if entry.cause is None:
                self._bytes += size - entry.size
                entry.size = size
        self._shrink_while(lambda: self._bytes > self._room_bytes, BYTES)

    def shrink(
        self,
        *,
        bytes: float | None = None,
        fraction: float | None = None,
        cause: RemovalCause = PRESSURE,
        permanent: bool = True,
    ) -> int:
        """Give some back, in the policy's order; returns the accounted bytes that left.

        Args:
            bytes: at least as many accounted bytes, where the cache accounts.
            fraction: at least this part of the bytes, or of the entries where it does not account.
            cause: what hooks and statistics are told.
            permanent: whether entries of the lifetime PERMANENT may go.

        Cost: about 1 µs an entry; the lock is held for at most 1,024 of them at a time.
        """
        if (bytes is None) == (fraction is None):
            raise TypeError("shrink() takes exactly one of bytes= and fraction=")
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"fraction: {fraction!r} is not between 0 and 1")
        before = self._bytes
        if self._sizeof is not None:
            floor = before - (before * fraction if fraction is not None else float(bytes or 0))
            self._shrink_while(lambda: self._bytes > max(floor, 0), cause, permanent)
        else:
            least = self._total() * (1 - fraction) if fraction is not None else 0
            self._shrink_while(lambda: self._total() > least, cause, permanent)
        return before - self._bytes

    def _shrink_while(self, is_much: Callable[[], bool], cause: RemovalCause, permanent: bool = True) -> None:
        self.expire()
        spared = 0  # permanent entries passed over, now at the young end
        while True:
            gone: list[Entry] = []
            try:
                with self._lock:
                    try:
                        entries = self._entries
                        while len(gone) < BATCH and spared < len(entries) and is_much():
                            key = next(iter(entries))
                            extra = entries[key].extra
                            if not permanent and extra is not None and extra[1] is Lifetime.PERMANENT:
                                entries.move_to_end(key)
                                spared += 1
                            else:
                                self._unlink(entries.pop(key), cause, gone)
                    except BaseException:
                        self._repair()
                        raise
            finally:
                self._deliver(gone)
            if len(gone) < BATCH:
                return

    def lower_room(self, part: float) -> None:
        """Let in only *part* of the bounds, until `raise_room`: what pressure has freed is not filled up again at once."""
        with self._lock:
            if self._sizeof is not None:
                full = min(self._bytes_bound(), float(self._bytes) or math.inf)
                self._room_bytes = min(self._room_bytes, max(full * part, 1.0))
            else:
                self._room_weight = min(self._room_weight, max(1, math.floor(min(self._maxsize, self._total()) * part)))

    def raise_room(self, step: float) -> bool:
        """Let in *step* of the bounds more; whether the bounds are whole again."""
        with self._lock:
            if self._room_bytes < self._bytes_bound():
                whole = self._max_bytes if self._max_bytes is not None else max(self._bytes, 1) * 4
                self._room_bytes += whole * step
                if self._room_bytes >= whole:
                    self._room_bytes = self._bytes_bound()
            if self._room_weight < self._maxsize:
                whole = self._maxsize if math.isfinite(self._maxsize) else max(self._total(), 1) * 4
                self._room_weight += max(1, math.ceil(whole * step))
                if self._room_weight >= whole:
                    self._room_weight = self._maxsize
            return self._room_bytes >= self._bytes_bound() and self._room_weight >= self._maxsize

    def _bytes_bound(self) -> float:
        return math.inf if self._max_bytes is None else float(self._max_bytes)

    @property
    def room(self) -> float:
        """The part of its bounds that it may use now; less than 1 after pressure."""
        parts = [1.0]
        if math.isfinite(self._room_weight):
            parts.append(self._room_weight / self._maxsize if self._maxsize and math.isfinite(self._maxsize) else 0.0)
        if math.isfinite(self._room_bytes):
            parts.append(self._room_bytes / self._max_bytes if self._max_bytes else 0.0)
        return min(parts)

    # --- what it did

    def stats(self) -> CacheStatistics:
        """What it holds and did so far.  A cache that does not account estimates its bytes from some 32 of its entries."""
        entries, weight, known = len(self._entries), self._total(), self._sizeof is not None
        loads = self._flights.figures() if self._flights is not None else (0, 0, 0.0, 0)
        return CacheStatistics(
            name=self.name,
            kind=type(self).__name__,
            entries=entries,
            weight=weight,
            maxsize=self._maxsize if math.isfinite(self._maxsize) else None,
            bytes=self._bytes if known else self._estimate(),
            is_estimated=not known,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            stale_hits=self._stale_hits,
            loads=loads[0],
            load_errors=loads[1],
            load_time_s=loads[2],
            loading=loads[3],
            removals={cause.value: count for cause, count in self._counts.items() if count},
            hook_errors=self._hook_errors,
            room=self.room,
        )

    def _estimate(self) -> int:
        with self._lock:
            count = len(self._entries)
            step = max(1, count // 32)
            sampled = [(key, entry.value) for key, entry in islice(self._entries.items(), 0, None, step)] if count < 100_000 else [
                (key, entry.value) for key, entry in islice(self._entries.items(), 32)
            ]  # fmt: skip
        if not sampled:
            return 0
        total = sum(self._measure(key, value, sizeof) for key, value in sampled if value is not GONE)
        return round(total / len(sampled) * count)

    # --- copies

    def __getstate__(self) -> dict[str, Any]:
        now = self._now() if self._wheel is not None else None
        entries = [
            (
                entry.key,
                entry.value,
                getattr(entry, "weight", 1),
                getattr(entry, "size", 0),
                None if entry.expires is None else entry.expires - now,
                entry.extra,
            )
            for _, entry in self._snapshot()
            if entry.value is not GONE
        ]
        config = {name: getattr(self, name) for name in _CONFIGURATION}
        return {"config": config, "attributes": dict(getattr(self, "__dict__", {})), "entries": entries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Hooks and statistics are not carried over; what is left of each time to live is."""
        if state["attributes"]:
            self.__dict__.update(state["attributes"])
        for name, value in state["config"].items():
            setattr(self, name, value)
        self._now = self._timer
        self._hooks = ()
        self._begin()
        now = self._now() if any(item[4] is not None for item in state["entries"]) else None
        for key, value, weight, size, left, extra in state["entries"]:
            entry = Entry()
            entry.key, entry.value, entry.weight, entry.size, entry.extra = key, value, weight, size, extra
            entry.cause, entry.hot = None, False
            entry.expires = entry.dead = None
            if left is not None:
                entry.expires = now + left
                entry.dead = entry.expires if self._stale_ttl is None else entry.expires + self._stale_ttl
                self._new_wheel(self._ttl).add(entry)
            self._entries[key] = entry
            if self._weigh is not None:
                self._weight += weight
            self._bytes += size
            if extra is not None:
                self._index(entry, extra[0])
        registry.add(self)

    def __copy__(self) -> Any:
        copied = type(self).__new__(type(self))
        copied.__setstate__(self.__getstate__())
        return copied

    def after_fork_in_child(self) -> None:
        """The threads that may have held the lock, and those that were loading, do not exist here."""
        self._lock = RLock()
        self._flights = None
        self._repair()


_CONFIGURATION = (
    "_maxsize", "_max_bytes", "_ttl", "_ttu", "_stale_ttl", "_jitter", "_clock", "_sizeof", "_oversize", "_tier", "_cascade",
    "_timer", "name",
)  # fmt: skip


class _Items:
    """Pairs of a moment."""

    def __init__(self, cache: Cache[Any, Any]) -> None:
        self._cache = cache

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for key, entry in self._cache._snapshot():
            value = entry.value
            if value is not GONE and entry.cause is None and self._cache._is_fresh(entry):
                yield key, value

    def __len__(self) -> int:
        return len(self._cache)

    def __contains__(self, pair: object) -> bool:
        if not isinstance(pair, tuple) or len(pair) != 2:
            return False
        value = self._cache.peek(pair[0], GONE)
        return value is not GONE and bool(value is pair[1] or value == pair[1])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._cache!r})"


class _Values(_Items):
    """Values of a moment."""

    def __iter__(self) -> Iterator[Any]:
        for _, value in super().__iter__():
            yield value

    def __contains__(self, wanted: object) -> bool:
        return any(value is wanted or value == wanted for value in self)


class _Timer:
    """A cache's clock, as cachetools shows it: `with cache.timer as now:` holds it."""

    __slots__ = ("_cache", "_held")

    def __init__(self, cache: Cache[Any, Any]) -> None:
        self._cache = cache
        self._held: list[Callable[[], Any]] = []

    def __call__(self) -> Any:
        return self._cache._now()

    def __enter__(self) -> Any:
        now = self._cache._now()
        self._held.append(self._cache._now)
        self._cache._now = lambda: now
        return now

    def __exit__(self, *exc: object) -> None:
        self._cache._now = self._held.pop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache._timer, name)


def lifetime_of(tier: Lifetime | str | None) -> Lifetime | None:
    """A lifetime from itself or its name."""
    if tier is None or isinstance(tier, Lifetime):
        return tier
    try:
        return Lifetime[tier.upper()]
    except (KeyError, AttributeError):
        raise ValueError(f"tier: {tier!r} is none of {', '.join(item.name for item in Lifetime)}") from None


def _checked(
    maxsize: Any, max_bytes: Any, ttl: Any, stale_ttl: Any, jitter: Any, policy: str, oversize: str, tier: Any
) -> tuple[Any, int | None, Any, Any, Lifetime | None]:
    from memwatch.units import parse_duration, parse_size

    if isinstance(max_bytes, str):
        max_bytes = parse_size(max_bytes)
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int | float) or max_bytes <= 0):
        raise ValueError(f"max_bytes: {max_bytes!r} is not a number of bytes above 0, nor such as '64MB'")
    if maxsize is None:
        if max_bytes is None:
            raise ValueError("maxsize=None needs max_bytes=: a cache without a bound is a leak")
        maxsize = math.inf
    if isinstance(maxsize, bool) or not isinstance(maxsize, int | float) or not maxsize >= 0:
        raise ValueError(f"maxsize: {maxsize!r} is not a number of at least 0")
    if isinstance(ttl, str):
        ttl = parse_duration(ttl)
    if isinstance(stale_ttl, str):
        stale_ttl = parse_duration(stale_ttl)
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise ValueError(f"jitter: {jitter!r} is not a part between 0 and 1")
    if policy not in ("lru", "clock"):
        raise ValueError(f"policy: {policy!r} is none of lru, clock")
    if oversize not in ("skip", "raise"):
        raise ValueError(f"oversize: {oversize!r} is none of skip, raise")
    lifetime = lifetime_of(tier)
    if ttl is None and lifetime is not None:
        ttl = lifetime.ttl_s
    return maxsize, None if max_bytes is None else int(max_bytes), ttl, stale_ttl, lifetime
