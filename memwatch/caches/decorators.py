"""`@cached` for functions, methods and coroutine functions; `@cachedmethod` for a cache per object.  Both as cachetools has them.

Law: a call is made once per key, however many ask meanwhile; a cached method does not keep its object.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

from memwatch.caches import keys
from memwatch.caches.engine import DEFAULT, GONE, Engine

Tags = Iterable[str] | Callable[..., Iterable[str] | str]


class CacheInfo(NamedTuple):
    """What `cache_info()` returns."""

    hits: int
    misses: int
    maxsize: Any
    currsize: Any


def cached(
    cache: Any,
    key: Callable[..., Any] = keys.hashkey,
    lock: Any = None,
    condition: Any = None,
    info: bool = False,
    *,
    tags: Tags = (),
    ttl: Any = DEFAULT,
) -> Callable[[Callable[..., Any]], Any]:
    """Remember what a function returned, by its arguments.

    Args:
        cache: one of ours, or any mapping.
        key: makes the key of the arguments.  With the default, a method's key knows its object weakly.
        lock, condition: as for cachetools' caches, which need them; ours do not.
        info: whether there is a `cache_info()`.
        tags: what `cache.invalidate(tag=…)` finds the result by, or a function of the arguments.
        ttl: instead of the cache's; a number, or a function of the result.

    Concurrent calls with the same key are made once, by threads and by coroutines; a value that `stale_ttl` allows is returned at
    once. An exception is not remembered.
    """
    if cache is None:
        raise TypeError("cache must not be None")

    def decorate(function: Callable[..., Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            return _coroutine(function, cache, key, info, tags, ttl)
        return _Function(function, cache, key, lock, condition, info, tags, ttl)

    return decorate


class _Calls:
    """The call itself; where cache and locks come from is the subclass's."""

    cache: Any
    cache_key: Callable[..., Any]
    cache_lock: Any
    cache_condition: Any

    def _prepare(self, function: Callable[..., Any], info: bool, tags: Tags, ttl: Any) -> None:
        self._function = function
        self._hits = self._misses = 0
        self._pending: set[Any] = set()
        self._tags, self._ttl = tags, ttl
        if info:
            self.cache_info = self._cache_info

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._call(self.cache_key(*args, **kwargs), args, kwargs)

    def _call(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, lock, condition = self.cache, self.cache_lock, self.cache_condition
        if condition is not None:
            return self._call_alone(cache, lock, condition, key, args, kwargs)
        if lock is None and hasattr(cache, "get_or_set"):
            return self._call_once(cache, key, args, kwargs)
        guard = nullcontext() if lock is None else lock
        with guard:
            try:
                value = cache[key]
                self._hits += 1
                return value
            except KeyError:
                self._misses += 1
        value = self._function(*args, **kwargs)
        with guard:
            try:
                if lock is not None:
                    return cache.setdefault(key, value)  # another thread may have been faster
                cache[key] = value
            except ValueError:
                pass  # too large
        return value

    def _call_once(self, cache: Any, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = getattr(cache, "cache", cache).get(key, GONE)
        if value is not GONE:
            self._hits += 1
            return value
        self._misses += 1
        tags = _tags_of(self._tags, args, kwargs)

        def load() -> Any:
            return self._function(*args, **kwargs)

        if isinstance(cache, Engine):
            return cache.flights.load(key, load, self._ttl, tags)  # type: ignore[attr-defined]
        return cache.get_or_set(
            key, load, tags=tags, **({} if self._ttl is DEFAULT else {"ttl": self._ttl})
        )  # one with a tier below

    def _call_alone(self, cache: Any, lock: Any, condition: Any, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with lock:
            while key in self._pending:
                condition.wait()
            try:
                value = cache[key]
                self._hits += 1
                return value
            except KeyError:
                self._misses += 1
                self._pending.add(key)
        try:
            value = self._function(*args, **kwargs)
            with lock:
                try:
                    cache[key] = value
                except ValueError:
                    pass  # too large
                return value
        finally:
            with lock:
                self._pending.remove(key)
                condition.notify_all()

    def _guard(self) -> Any:
        return nullcontext() if self.cache_lock is None else self.cache_lock

    def cache_clear(self) -> None:
        """Empty the cache, and begin to count anew."""
        with self._guard():
            self.cache.clear()
            self._hits = self._misses = 0

    def _cache_info(self) -> CacheInfo:
        with self._guard():
            cache = getattr(self.cache, "cache", self.cache)  # what is in memory, of one with a tier below
            if isinstance(cache, Engine):
                return CacheInfo(self._hits, self._misses, cache.maxsize, cache.currsize)  # type: ignore[attr-defined]
            return CacheInfo(self._hits, self._misses, None, len(cache))


def _tags_of(tags: Tags, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
    found = tags(*args, **kwargs) if callable(tags) else tags
    return (found,) if isinstance(found, str) else tuple(found)


class _Function(_Calls):
    """A cached function."""

    def __init__(
        self,
        function: Callable[..., Any],
        cache: Any,
        key: Callable[..., Any],
        lock: Any,
        condition: Any,
        info: bool,
        tags: Tags,
        ttl: Any,
    ) -> None:
        # First: what the function carries in its `__dict__`, from another decorator, must not hide ours.
        functools.update_wrapper(self, function)
        self.cache = cache
        self.cache_key = key
        self.cache_lock = condition if lock is None else lock
        self.cache_condition = condition
        self.__dict__.pop("cache_info", None)
        self._prepare(function, info, tags, ttl)
        self._dead: deque[_Weakly] = deque()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self.cache_key is not keys.hashkey or self.cache_lock is not None or self.cache_condition is not None:
            return types.MethodType(self, instance)
        return _Method(self, instance)

    def call_of(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call as a method."""
        return self._call(self.key_of(instance, args, kwargs), (instance, *args), kwargs)

    def key_of(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The key of a method call; it knows the object by identity, and weakly."""
        while self._dead:
            self._forget(self._dead.popleft())
        try:
            owner: Any = _Weakly(instance, self._dead)
        except TypeError:
            owner = instance  # has no weak references (`__slots__`, int)
        return (owner, *keys.hashkey(*args, **kwargs))

    def _forget(self, owner: _Weakly) -> None:
        """What is known of an object that is gone."""
        for key in [key for key in self.cache if isinstance(key, tuple) and key and key[0] is owner]:
            self.cache.pop(key, None)

    def __copy__(self) -> _Function:
        return self

    def __deepcopy__(self, memo: Any) -> _Function:
        return self

    def __reduce__(self) -> str:
        return str(self.__qualname__)  # type: ignore[attr-defined]  # from the function

    def __repr__(self) -> str:
        return f"<cached {self._function!r}>"


class _Method:
    """A cached function bound to an object."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: _Function, instance: Any) -> None:
        self.__func__ = function
        self.__self__ = instance

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.call_of(self.__self__, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r} of {object.__repr__(self.__self__)}>"


class _Weakly:
    """An object by identity, without keeping it.  Its hash outlives it."""

    __slots__ = ("__weakref__", "_hash", "_reference")

    def __init__(self, instance: Any, dead: deque[_Weakly]) -> None:
        self._hash = id(instance)
        mine = weakref.ref(self)

        def gone(_: Any) -> None:
            # Only noted: this runs in the middle of anything.
            me = mine()
            if me is not None:
                dead.append(me)

        self._reference = weakref.ref(instance, gone)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Weakly) or self._hash != other._hash:
            return False
        instance = self._reference()
        return instance is not None and instance is other._reference()


def _coroutine(function: Callable[..., Any], cache: Any, key: Callable[..., Any], info: bool, tags: Tags, ttl: Any) -> Any:
    calls = _Function(function, cache, key, None, None, info, tags, ttl)
    # It stays a coroutine function, which no object with a `__get__` can be in 3.11: a method is known by its signature.
    is_method = key is keys.hashkey and _looks_like_a_method(function)

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        place = calls.key_of(args[0], args[1:], kwargs) if is_method and args else key(*args, **kwargs)
        found = _tags_of(tags, args, kwargs)
        if not isinstance(cache, Engine) and hasattr(cache, "aget_or_set"):
            more = {} if ttl is DEFAULT else {"ttl": ttl}
            return await cache.aget_or_set(place, lambda: function(*args, **kwargs), tags=found, **more)
        if not isinstance(cache, Engine):
            try:
                return cache[place]
            except KeyError:
                value = cache[place] = await function(*args, **kwargs)
                return value
        value = cache.get(place, GONE)
        if value is not GONE:
            calls._hits += 1
            return value
        calls._misses += 1
        return await cache.flights.aload(place, lambda: function(*args, **kwargs), ttl, found)  # type: ignore[attr-defined]

    for name, value in {
        "cache": cache,
        "cache_key": key,
        "cache_lock": None,
        "cache_condition": None,
        "cache_clear": calls.cache_clear,
    }.items():
        setattr(call, name, value)
    if info:
        call.cache_info = calls._cache_info  # type: ignore[attr-defined]
    return call


def _looks_like_a_method(function: Callable[..., Any]) -> bool:
    """Whether the first argument is the object: by its name, or because it stands in a class and is not annotated.

    What another decorator made without `functools.wraps` cannot be told.
    """
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    holder = getattr(function, "__qualname__", "").rpartition(".")[0]
    stands_in_class = bool(holder) and not holder.endswith("<locals>")
    return first.name == "self" or (stands_in_class and first.annotation is first.empty)


def cachedmethod(
    cache: Callable[[Any], Any],
    key: Callable[..., Any] = keys.methodkey,
    lock: Callable[[Any], Any] | None = None,
    condition: Callable[[Any], Any] | None = None,
    info: bool = False,
    *,
    tags: Tags = (),
    ttl: Any = DEFAULT,
) -> Callable[[Callable[..., Any]], Any]:
    """Remember what a method returned, in a cache that each object has: `@cachedmethod(lambda self: self.cache)`.

    Args: as for `cached`; *cache*, *lock* and *condition* are functions of the object.
    """
    if not callable(cache):
        raise TypeError("cache must be callable: a function of the object that returns its cache")

    def decorate(method: Callable[..., Any]) -> Any:
        return _Descriptor(method, cache, key, lock, condition, info, tags, ttl)

    return decorate


_OTHERS = "__memwatch_cachedmethods"
"""Where an object keeps the calls of methods that a subclass overrides."""


class _Descriptor:
    """A cached method, in its class."""

    def __init__(self, method: Callable[..., Any], *settings: Any) -> None:
        functools.update_wrapper(self, method)
        self._method = method
        self._settings = settings
        self._owner: type | None = None
        self._name: str | None = None
        self._unbound: _Unbound | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        if self._name is None:
            self._owner, self._name = owner, name
        elif name != self._name:
            raise TypeError(f"Cannot assign the same descriptor to two different names ({self._name!r} and {name!r}).")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self._name is None:
            if isinstance(instance, type):
                self()
            raise TypeError("Cannot use descriptor instance without calling __set_name__ on it")
        if instance is None:
            if self._unbound is None:
                self._unbound = _Unbound(self)
            return self._unbound
        found = next((kind.__dict__[self._name] for kind in type(instance).__mro__ if self._name in kind.__dict__), None)
        try:
            if found is self:
                # From now on the object finds it without asking the class.
                return instance.__dict__.setdefault(self._name, _Bound(self, instance))
            others = instance.__dict__.setdefault(_OTHERS, {})
        except AttributeError:
            raise TypeError(f"No '__dict__' attribute on {type(instance).__name__!r} instance to cache {self._name!r}") from None
        except TypeError:
            raise TypeError(
                f"The '__dict__' attribute on {type(instance).__name__!r} instance does not support item assignment "
                f"for caching {self._name!r}"
            ) from None
        bound = others.get(self)
        return others.setdefault(self, _Bound(self, instance)) if bound is None else bound

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "Cannot call @cachedmethod descriptor directly: @cachedmethod must be the outermost decorator, and decorating class "
            "methods, static methods or properties is not supported"
        )

    def __reduce__(self) -> Any:
        return _look_up, (self._owner, self._name)


def _look_up(owner: type, name: str) -> Any:
    return owner.__dict__[name]


class _Bound(_Calls):
    """A cached method of one object."""

    def __init__(self, descriptor: _Descriptor, instance: Any) -> None:
        method = descriptor._method
        functools.update_wrapper(self, method)
        cache, key, lock, condition, info, tags, ttl = descriptor._settings
        self._descriptor, self._instance = descriptor, instance
        self._sources = cache, lock, condition
        self.cache_key = functools.partial(key, instance)
        self._prepare(types.MethodType(method, instance), info, tags, ttl)

    @property
    def cache(self) -> Any:
        return self._sources[0](self._instance)

    @property
    def cache_lock(self) -> Any:
        _, lock, condition = self._sources
        source = condition if lock is None else lock
        return None if source is None else source(self._instance)

    @property
    def cache_condition(self) -> Any:
        return None if self._sources[2] is None else self._sources[2](self._instance)

    def __reduce__(self) -> Any:
        return self._descriptor.__get__, (self._instance,)

    def __repr__(self) -> str:
        return f"<cachedmethod {self._descriptor._method!r} of {object.__repr__(self._instance)}>"


class _Unbound:
    """A cached method as its class shows it."""

    def __init__(self, descriptor: _Descriptor) -> None:
        functools.update_wrapper(self, descriptor._method)
        self._descriptor = descriptor

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._descriptor.__get__(instance)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if args:
            instance, *args = args  # type: ignore[assignment]
        else:
            first = next(iter(inspect.signature(self._descriptor._method).parameters.values()), None)
            if first is None or first.kind is not first.POSITIONAL_OR_KEYWORD or first.name not in kwargs:
                raise TypeError("Cannot call @cachedmethod through the class without an instance")
            instance = kwargs.pop(first.name)
        return self._descriptor.__get__(instance)(*args, **kwargs)

    def __reduce__(self) -> Any:
        return self._descriptor.__get__, (None,)

    def __repr__(self) -> str:
        return f"<cachedmethod {self._descriptor._method!r}>"
