"""The engine of every cache: an ordered dictionary of entries, bounded in entries (or weights) and in bytes, with expiry.

Law: the bound holds after every operation, also after one that an exception interrupted; every value leaves by `_unlink`; no code
of the program but a key's `__hash__` and `__eq__` runs under the lock: hooks run, and values die, after its release.
"""

from __future__ import annotations

import importlib
import logging
import math
import random
import sys
from _thread import RLock
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, Generic, TypeVar

from memwatch.caches.causes import Lifetime, RemovalCause
from memwatch.caches.expiry import NEVER, SPOKES, Wheel
from memwatch.caches.sizer import ENTRY_BYTES, sizeof

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")
Hook = Callable[[Any, Any, RemovalCause], Any]

log = logging.getLogger("memwatch.caches")

GONE: Any = object()
"""What stands for a value that is not there."""
DEFAULT: Any = object()
"""What stands for the cache's own setting."""
SECOND_CHANCES = 64
"""CLOCK passes over at most as many entries for one eviction: without a cap one insert took 19 ms with 100,000 entries just
read."""
BATCH = 1024
"""Entries removed under one hold of the lock: some 0.5 ms."""
DUE_PER_WRITE = 16
HOOK_DEPTH = 8
"""A hook that writes into its cache evicts, which calls the hook: deeper than this it is not called."""
ATOMIC: frozenset[type] = (
    frozenset({str, int, bytes, float, bool, type(None)}) if getattr(sys, "_is_gil_enabled", lambda: True)() else frozenset()
)
"""Keys whose comparison runs no Python code: with them, moving an entry is one step that no other thread can come between."""
# An enumeration's members are looked up by Python code in 3.11.
EXPIRED, SIZE, BYTES, PRESSURE, REPLACED, DELETED, INVALIDATED, CLEARED, REJECTED = RemovalCause


class TooLargeError(ValueError):
    """A value that the cache can never hold."""


def seconds_of(name: str, text: str) -> float:
    """A duration that is given as text, such as `"1h30m"`.

    Raises:
        ValueError: it is malformed; the message names the argument.
    """
    from memwatch.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


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


class Engine(MutableMapping[K, V], Generic[K, V]):
    """Reading, writing and every way out; `Cache` has the arguments and the rest.

    What is set by `Cache.__init__` and what each attribute means stands there.
    """

    __slots__ = (
        "_bytes",
        "_computes",
        "_counts",
        "_entries",
        "_evicted",
        "_flights",
        "_flushing",
        "_hits",
        "_hook_errors",
        "_hooks",
        "_is_special",
        "_jitter",
        "_left",
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
        "_stale_ttl",
        "_tags",
        "_touch",
        "_ttl",
        "_ttu",
        "_weigh",
        "_weight",
        "_wheel",
        "name",
    )

    name: str
    _maxsize: Any
    _max_bytes: int | None
    _ttl: Any
    _ttu: Callable[[Any, Any, Any], Any] | None
    _stale_ttl: Any
    _jitter: float
    _oversize: str
    _sizeof: Callable[[Any], int] | None
    _weigh: Callable[[Any], Any] | None
    _now: Callable[[], Any]
    _hooks: tuple[Hook, ...]
    _flights: Any

    def __missing__(self, key: K) -> V:
        raise KeyError(key)

    def _begin(self, *, clock: bool) -> None:
        """Empty, and open to all."""
        self._lock = RLock()
        self._entries: OrderedDict[Any, Entry] = OrderedDict()
        self._touch: Callable[[Any], None] | None = None if clock else self._entries.move_to_end
        is_number = isinstance(self._ttl, int | float) and math.isfinite(self._ttl)
        self._wheel = Wheel(max(1.0, self._ttl / SPOKES) if is_number else 1.0, self._entries)
        self._computes = self._ttu is not None or self._jitter != 0.0 or callable(self._ttl) or self._ttl == NEVER
        self._pops = type(self).popitem is not Engine.popitem
        """As cachetools: a subclass that overrides `popitem` is called for what has to go."""
        self._tags: dict[str, set[Any]] = {}
        self._left: deque[Entry] = deque()
        """Removed, and not yet told to the hooks."""
        self._weight: Any = 0
        """The sum of weights, where there are any."""
        self._bytes = 0
        self._room_weight: Any = self._maxsize
        """What may be used of *maxsize* now: less under pressure."""
        self._room_bytes: float = NEVER if self._max_bytes is None else self._max_bytes
        self._hits = self._misses = self._hook_errors = self._evicted = self._flushing = 0
        self._counts: dict[RemovalCause, int] = dict.fromkeys(RemovalCause, 0)
        self._flights = None
        self._is_special = (
            self._computes
            or self._pops
            or self._weigh is not None
            or self._stale_ttl is not None
            or not (self._ttl is None or is_number)
        )
        """Needs more than `__setitem__` does by itself.  Set last: until then nothing is done by itself."""

    # --- reading

    def __getitem__(self, key: K) -> V:
        # As `_find`, without that call: it is a fifth of a hit.
        entry = self._entries.get(key)
        if entry is not None:
            value = entry.value
            expires = entry.expires
            timer = self._now  # called by its attribute, 3.11 looks it up the slow way
            if expires is None or timer() < expires:
                touch = self._touch
                if touch is None:
                    entry.hot = True
                elif key.__class__ in ATOMIC:
                    try:
                        touch(key)
                    except KeyError:
                        pass  # removed meanwhile by another thread: what was read was there
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
            if self._is_fresh(entry):
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
            return
        try:
            if key.__class__ in ATOMIC:
                touch(key)
            else:
                with self._lock:
                    self._entries.move_to_end(key)
        except KeyError:
            pass  # removed meanwhile by another thread: what was read was there

    def _is_fresh(self, entry: Entry) -> bool:
        return entry.expires is None or bool(self._now() < entry.expires)

    def _drop_if_dead(self, key: Any, entry: Entry) -> None:
        if entry.expires is None or self._now() < entry.dead:
            return
        self._locked(self._drop, key, entry, EXPIRED)

    def _drop(self, key: Any, entry: Entry, cause: RemovalCause) -> None:
        """Remove this very entry, if it is still there.  Under the lock."""
        if self._entries.get(key) is entry:
            del self._entries[key]
            self._unlink(entry, cause)

    # --- writing

    def __setitem__(self, key: K, value: V) -> None:
        # `_store` written out for what most caches are, with only what this one uses: half the instructions (bench/caches.py).
        # `_engine.c` has the same steps, and takes the place of this where it is built: what changes here changes there.
        if self._is_special or self._flights is not None:
            if self._flights is not None:
                self._flights.spoil(key)  # what is being loaded is out of date
            self._store(key, value)
            return
        entry = Entry()
        entry.key = key
        entry.value = value
        entry.cause = entry.extra = out = now = entry.expires = None
        entry.hot = False
        entry.size = held = 0
        measure = self._sizeof
        if measure is not None:
            # What the sizer does with text and numbers, without that call.
            of_value = value.__sizeof__() if measure is sizeof and type(value) in ATOMIC else measure(value)
            if key.__class__ in ATOMIC and of_value >= 0:
                entry.size = held = of_value + key.__sizeof__() + ENTRY_BYTES
            else:
                entry.size = held = self._measure(key, of_value)
            if held > self._room_bytes:
                self._store(key, value, size=of_value)
                return
        ttl = self._ttl
        if ttl is not None:
            timer = self._now  # called by its attribute, 3.11 looks it up the slow way
            now = timer()
            entry.expires = entry.dead = dead = now + ttl
        with self._lock:
            try:
                entries = self._entries
                if key in entries or (now is not None and not now < self._wheel.wake):
                    self._prepare(key, now)
                if len(entries) >= self._room_weight or self._bytes + held > self._room_bytes:
                    first = next(iter(entries), None)
                    out = entries.get(first)
                    if (
                        out is None
                        or out.hot
                        or out.extra is not None
                        or self._bytes + held > self._room_bytes
                        or len(entries) > self._room_weight
                    ):
                        out = None
                        self._admits(entry, held)
                    else:
                        del entries[first]  # with `next` a third cheaper than `popitem(False)`
                        out.cause = SIZE
                        self._evicted += 1
                        if measure is not None:
                            self._bytes -= out.size
                if entry.cause is None:  # else its room was lowered meanwhile, and it is refused
                    entries[key] = entry
                    if measure is not None:
                        self._bytes += held
                    if now is not None:
                        wheel = self._wheel
                        if wheel.begins <= dead < wheel.ends and wheel.room:
                            wheel.latest.append(key)
                            wheel.room -= 1
                        else:
                            wheel.add(key, dead)
            except BaseException:
                self._repair()
                if out is not None:
                    self._left.append(out)  # it has left all the same: the hooks are told with the next
                raise
        if out is not None and self._hooks:
            if self._left or self._flushing or self._lock._is_owned():  # type: ignore[attr-defined]
                self._left.append(out)
                self._flush()
                return
            # `_flush` written out for one removal that nobody else is telling.
            self._flushing += 1
            try:
                for hook in self._hooks:
                    try:
                        hook(out.key, out.value, SIZE)
                    except Exception as error:
                        self._hook_failed(hook, "raised", error)
            finally:
                self._flushing -= 1
        if self._left:
            self._flush()

    def _store(
        self,
        key: Any,
        value: Any,
        ttl: Any = DEFAULT,
        tags: tuple[str, ...] = (),
        size: int | None = None,
        lifetime: Lifetime | None = None,
    ) -> bool:
        """Whether it was stored."""
        entry = Entry()
        entry.key, entry.value = key, value
        entry.cause, entry.hot = None, False
        entry.extra = (tags, lifetime) if tags or lifetime is not None else None
        weight: Any = 1
        if self._weigh is not None:
            weight = entry.weight = self._weighed(self._weigh(value))
        entry.size = held = 0
        if self._sizeof is not None:
            entry.size = held = self._measure(key, self._sizeof(value) if size is None else size)
            if self._max_bytes is not None and held > self._max_bytes and self._oversize == "raise":
                raise TooLargeError(f"value too large: {held} bytes with its key, max_bytes is {self._max_bytes}")
        now = self._now()
        expires = entry.expires = self._expiry(key, value, ttl, now)
        is_fresh = expires is None or now < expires
        if expires is not None:
            entry.dead = expires if self._stale_ttl is None else expires + self._stale_ttl
        if self._pops:
            while key not in self._entries and self._entries and self._total() + weight > self._room_weight:
                self.popitem()
        return self._locked(self._insert, entry, now, is_fresh, weight, tags)

    def _insert(self, entry: Entry, now: Any, is_fresh: bool, weight: Any, tags: tuple[str, ...]) -> bool:
        """Under the lock."""
        key, held = entry.key, entry.size
        self._prepare(key, now)
        if not is_fresh or not self._admits(entry, held, weight):
            return False
        self._entries[key] = entry
        if self._weigh is not None:
            self._weight += weight
        self._bytes += held
        if entry.expires is not None:
            self._wheel.add(key, entry.dead)
        for tag in tags:
            self._tags.setdefault(tag, set()).add(key)
        return True

    def _weighed(self, weight: Any) -> Any:
        if weight < 0:
            raise ValueError(f"value size must be non-negative, not {weight!r}")
        if weight > self._maxsize:
            raise TooLargeError(f"value too large: it weighs {weight!r}, maxsize is {self._maxsize!r}")
        return weight

    def _measure(self, key: Any, held: int) -> int:
        """Accounted bytes of an entry whose value holds so many."""
        if held < 0:
            raise ValueError(f"size of a value: {held!r} bytes are less than none")
        return int(held) + ENTRY_BYTES + sizeof(key)

    def _expiry(self, key: Any, value: Any, ttl: Any, now: Any) -> Any:
        """When a value expires; None for never."""
        if ttl is DEFAULT:
            if self._ttu is not None:
                expires = self._ttu(key, value, now)
                return None if expires == NEVER else expires
            ttl = self._ttl
        if callable(ttl):
            ttl = ttl(value)
        if isinstance(ttl, str):
            ttl = seconds_of("ttl", ttl)
        if ttl is None or ttl == NEVER:
            return None
        return now + (ttl if self._jitter == 0.0 else ttl * (1 - self._jitter * random.random()))

    def _prepare(self, key: Any, now: Any) -> None:
        """Take out what is due, and what the key held before.  Under the lock."""
        wheel = self._wheel
        if now is not None and wheel.wake != NEVER and not now < wheel.wake:
            self._expire(now, DUE_PER_WRITE)
        if key in self._entries:
            self._unlink(self._entries.pop(key), REPLACED)

    def _admits(self, entry: Entry, held: int, weight: Any = 1) -> bool:
        """Evict until an entry fits in; False if it never will.  Under the lock."""
        if held > self._room_bytes:
            self._counts[REJECTED] += 1
            entry.cause = REJECTED
            self._left.append(entry)
            return False
        if self._maxsize < weight:
            raise TooLargeError(f"value too large: maxsize is {self._maxsize!r}")
        entries = self._entries
        while entries:
            is_many = len(entries) >= self._room_weight if self._weigh is None else self._weight + weight > self._room_weight
            if not is_many and self._bytes + held <= self._room_bytes:
                return True
            is_lowered = self._room_weight < self._maxsize if is_many else self._room_bytes < (self._max_bytes or NEVER)
            self._unlink(self._next_out(entries), PRESSURE if is_lowered else SIZE if is_many else BYTES)
        self._weight = self._bytes = 0  # whatever was counted is not there
        return True

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
        return entries.pop(key)

    # --- every way out

    def _unlink(self, entry: Entry, cause: RemovalCause) -> None:
        """Account for an entry that has just been taken out of `_entries`.  Under the lock; `__setitem__` has a copy of it."""
        entry.cause = cause
        self._left.append(entry)
        if self._weigh is not None:
            self._weight -= entry.weight
        if self._sizeof is not None:
            self._bytes -= entry.size
        self._counts[cause] += 1
        if entry.extra is not None:
            for tag in entry.extra[0]:
                keys = self._tags.get(tag)
                if keys is not None:
                    keys.discard(entry.key)
                    if not keys:
                        del self._tags[tag]

    def _locked(self, change: Callable[..., T], *arguments: Any) -> T:
        """Run a change under the lock; what an exception leaves half done is put right, and what left is told after the release.

        The lock's own `with` is one step in C: an exception that comes at any time cannot leave it held.
        """
        try:
            with self._lock:
                try:
                    return change(*arguments)
                except BaseException:
                    self._repair()
                    raise
        finally:
            if self._left:
                self._flush()

    def _flush(self) -> None:
        """Call the hooks for what has left, and let the values go.  Never under the lock."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return  # a key's `__eq__` uses the cache: whoever holds the lock flushes when it has let go
        left, hooks = self._left, self._hooks
        self._flushing += 1
        try:
            if self._flushing > HOOK_DEPTH and hooks and _is_deep():
                self._hook_failed(hooks[0], "writes into its cache, which evicts, which calls it: it was not called again")
                hooks = ()
            while left:
                entry = left.popleft()
                for hook in hooks:
                    try:
                        hook(entry.key, entry.value, entry.cause)  # type: ignore[arg-type]  # it has one: it has left
                    except Exception as error:
                        self._hook_failed(hook, "raised", error)
        except IndexError:
            pass  # another thread tells the rest
        finally:
            self._flushing -= 1

    def _hook_failed(self, hook: Hook, what: str, error: Exception | None = None) -> None:
        self._hook_errors += 1
        if self._hook_errors & (self._hook_errors - 1) == 0:  # the 1st, 2nd, 4th, 8th …
            name = getattr(hook, "__qualname__", type(hook).__qualname__)
            log.warning("cache %s: hook %s %s (%d times so far)", self.name, name, what, self._hook_errors, exc_info=error)

    def _repair(self) -> None:
        """After an exception in the middle of an operation: count and index anew what is there.  Under the lock."""
        if len(list(self._entries)) != len(self._entries):
            # A key's `__eq__` raised in the middle of a removal: the dictionary has an entry that its order has not.
            self._entries = OrderedDict(dict.items(self._entries))
            self._touch = None if self._touch is None else self._entries.move_to_end
        entries = list(self._entries.values())
        self._weight = 0 if self._weigh is None else sum(entry.weight for entry in entries)
        self._bytes = 0 if self._sizeof is None else sum(entry.size for entry in entries)
        self._tags = {}
        self._wheel = self._wheel.again(self._entries)
        for entry in entries:
            entry.cause = None
            if entry.expires is not None:
                self._wheel.add(entry.key, entry.dead)
            for tag in entry.extra[0] if entry.extra is not None else ():
                self._tags.setdefault(tag, set()).add(entry.key)

    def _expire(self, now: Any, most: int | None = None) -> list[tuple[Any, Any]]:
        """Remove what is due; returns it.  Under the lock."""
        removed = []
        for key in self._wheel.due(now, most):
            entry = self._entries.pop(key)
            removed.append((entry.key, entry.value))
            self._unlink(entry, EXPIRED)
        return removed

    def expire(self, time: Any = None) -> list[tuple[K, V]]:
        """Remove what has expired at *time* (now); returns it.  Values that may still be served stale stay."""
        removed: list[tuple[K, V]] = []
        if self._wheel.wake == NEVER:
            return removed
        now = self._now() if time is None else time
        while not now < self._wheel.wake:
            removed += self._locked(self._expire, now, BATCH)
            if self._wheel.wake == NEVER:
                break
        return removed

    def __delitem__(self, key: K) -> None:
        if self._take(key, DELETED) is None:
            raise KeyError(key)

    def _take(self, key: Any, cause: RemovalCause) -> tuple[Any] | None:
        """Remove a key; its fresh value in a tuple, or None if there was none."""
        if self._flights is not None:
            self._flights.spoil(key)
        return self._locked(self._take_out, key, cause)

    def _take_out(self, key: Any, cause: RemovalCause) -> tuple[Any] | None:
        """Under the lock."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, fresh = entry.value, self._is_fresh(entry)
        del self._entries[key]
        self._unlink(entry, cause if fresh else EXPIRED)
        return (value,) if fresh else None

    def pop(self, key: K, default: Any = GONE) -> Any:
        """Remove a key and return its value, or *default*.

        Raises:
            KeyError: it is not there, and no default is given.
        """
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
        pair = self._locked(self._take_next)
        if pair is None:
            raise KeyError(f"{type(self).__name__} is empty") from None
        return pair

    def _take_next(self) -> tuple[K, V] | None:
        """Under the lock."""
        while self._entries:
            entry = self._next_out(self._entries)
            pair, fresh = (entry.key, entry.value), self._is_fresh(entry)
            self._unlink(entry, DELETED if fresh else EXPIRED)
            if fresh:
                return pair
        return None

    def clear(self) -> None:
        """Remove all.  Hooks are told each."""
        if self._flights is not None:
            self._flights.spoil_all()
        self._locked(self._empty)

    def _empty(self) -> None:
        """Under the lock."""
        left, self._entries = self._entries, OrderedDict()
        self._touch = None if self._touch is None else self._entries.move_to_end
        self._weight, self._bytes, self._tags = 0, 0, {}
        self._wheel = self._wheel.again(self._entries)
        for entry in left.values():
            entry.cause = CLEARED
        self._counts[CLEARED] += len(left)
        self._left.extend(left.values())

    def _total(self) -> Any:
        """Entries, or their weight."""
        return len(self._entries) if self._weigh is None else self._weight


def _is_deep() -> bool:
    """Whether this thread is in a hook of a hook of a hook …"""
    frame, depth = sys._getframe(1), 0
    while frame is not None and depth <= HOOK_DEPTH:
        depth += frame.f_code is Engine._flush.__code__
        frame = frame.f_back  # type: ignore[assignment]
    return depth > HOOK_DEPTH


def storing_in_c() -> Any:
    """The extension's `__setitem__`, which does the same in half the time; None where it is not built."""
    try:
        made = importlib.import_module("memwatch.caches._engine").SetItem
    except (ImportError, AttributeError):  # not built; or built for an interpreter without a GIL, where it is empty
        return None
    return made(Engine, Entry, Wheel, Engine.__setitem__, sizeof, ENTRY_BYTES, SIZE)


# The type checker wants methods to stay what the class says; this one is the same in C.
Engine.__setitem__ = storing_in_c() or Engine.__setitem__  # type: ignore[method-assign]
