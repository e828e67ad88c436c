"""Retaining paths in words: who holds what grows.  Runs in the forked child, where looking may be slow but must not run user code.

A path is `module app.sessions → _STORE (dict, 1,204,332 entries) → Session`: how each holder refers to the next, and what that is.
Where a container on the way has far more entries than the others, growth accumulates there.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from memwatch.evidence import names

KEYS_SEARCHED = 2000
"""In a larger dictionary an entry's key is one of many and says nothing."""
KEY_SHOWN = 40
ACCUMULATES_FROM = 16
"""A container of fewer entries is not where growth accumulates (guess)."""
MOST_STEPS = 12
"""Steps of a path that are told; the middle of a longer one is counted."""

VARIABLES = {-3: "thread-local storage", -4: "context variables", -5: "exception being handled", -6: "generator"}


class Root(NamedTuple):
    """Where a path may begin."""

    thing: object
    text: str
    penalty: int
    """Steps by which it is a worse answer than a module's global."""


class Bound(NamedTuple):
    """A container that cannot grow for ever."""

    text: str
    """What it is, `lru_cache app.lookup`."""
    holds: int
    most: int
    unit: str = "entries"
    """What both count: entries or bytes."""


class Holding(NamedTuple):
    """One path in words."""

    place: str
    """From the root to where growth accumulates."""
    trail: tuple[str, ...]
    """From there to the growing object."""
    bound: Bound | None


REGISTRIES = (
    ("threading", "_active"),
    ("threading", "_limbo"),
    ("threading", "_shutdown_locks"),
    ("threading", "_dangling"),
    ("concurrent.futures.thread", "_threads_queues"),
    ("subprocess", "_active"),
    ("multiprocessing.process", "_children"),
    ("asyncio.tasks", "_all_tasks"),
    ("asyncio.tasks", "_scheduled_tasks"),
    ("asyncio.tasks", "_eager_tasks"),
)
"""Where the standard library lists everything of a kind: no answer to who holds one of them."""


def registries() -> list[int]:
    """The ids of those there are."""
    return [id(found) for module, name in REGISTRIES if (found := getattr(sys.modules.get(module), name, None)) is not None]


def roots() -> tuple[list[Root], list[int]]:
    """Every module with its globals; and the ids of memwatch's own, which count for nothing."""
    found: list[Root] = []
    ours: list[int] = []
    for name, module in list(sys.modules.items()):
        if not isinstance(name, str) or not names.isinstance_of(module, types.ModuleType):
            continue
        space = object.__getattribute__(module, "__dict__")
        if name.split(".")[0] in ("memwatch", "pytest_memwatch"):
            ours += [id(module), id(space)]
            continue
        found.append(Root(space, f"module {name}", 0))
        found.append(Root(module, f"module {name}, in its C part", 2))
    return found, ours


def thread_root_texts(rows: Sequence[tuple[types.CodeType | None, int, int, int]]) -> list[tuple[str, str | None]]:
    """The roots that other threads held: what each is called, and the variable that begins the path."""
    threads = _thread_names()
    texts: list[tuple[str, str | None]] = []
    for code, line, variable, ident in rows:
        thread = threads.get(ident, "?")
        of_thread = "" if thread == "MainThread" else f" of thread {thread}"
        if code is None:
            texts.append((f"{VARIABLES.get(variable, 'state')} of thread {thread}", None))
            continue
        where = f"frame {code.co_qualname} ({names.short_file(code.co_filename)}:{line}){of_thread}"
        if variable >= 0:
            local_names = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
            # Cell variables that are arguments stand among the arguments already.
            ordered = list(dict.fromkeys(local_names))
            texts.append((where, ordered[variable] if variable < len(ordered) else None))
        else:
            texts.append((where, "its globals" if variable == -1 else "its locals" if variable == -2 else None))
    return texts


def _thread_names() -> dict[int, str]:
    active = getattr(sys.modules.get("threading"), "_active", None)
    found: dict[int, str] = {}
    for ident, thread in list(active.items()) if isinstance(active, dict) else ():
        attributes = names.instance_dict(thread)
        name = None if attributes is None else attributes.get("_name")
        if isinstance(ident, int) and isinstance(name, str):
            found[ident] = name
    return found


def in_words(root: str, variable: str | None, things: Sequence[object], *, at_root: bool, after: tuple[str, ...] = ()) -> Holding:
    """Tell one path.

    Args:
        root: what the root is called.
        variable: the local variable that refers to the first thing, where the root is a frame.
        things: from the root to the growing object.
        at_root: the first thing is the root itself (a module's globals), not something it refers to.
        after: what follows the last of *things*, in words.
    """
    texts: list[str] = [root]
    sizes: list[int] = [0]
    bounds: dict[int, Bound] = {}
    previous: object = None
    owner: object = None
    edge = variable
    for position, thing in enumerate(things):
        if position > 0:
            edge = _edge(previous, thing, owner)
        last = position == len(things) - 1 and not after
        following = things[position + 1] if position + 1 < len(things) else None
        previous, before = thing, previous
        if position == 0 and at_root:
            owner = None
            continue
        if _is_attributes(before, thing):
            owner = before  # an instance's or a class's own dictionary: its attributes are the owner's
            continue
        owner = None
        if not last and (type(thing) is types.CellType or names.type_name(type(thing)) in _INNER):
            continue
        entries = names.length(thing) or 0
        sizes.append(entries)
        # The end is what grows: its type, as the other evidence calls it; or the container itself, by a larger table.
        texts.append(_named(edge, thing) if not last or entries >= ACCUMULATES_FROM else names.type_name(type(thing)))
        found = bound_of(thing, following)
        if found is not None:
            bounds[len(texts) - 1] = found
    place = _accumulation(sizes)
    bound = _bound_there(bounds, sizes, place)
    return Holding(" → ".join(_folded(texts[: place + 1])), tuple(_folded([*texts[place + 1 :], *after])), bound)


def _bound_there(bounds: dict[int, Bound], sizes: Sequence[int], place: int) -> Bound | None:
    """The bound of the container where growth accumulates, or of what directly wraps it; one elsewhere on the path bounds something
    else (a cache of one client that keeps a log)."""
    if place in bounds:
        return bounds[place]
    wrapper = bounds.get(place - 1)
    if wrapper is None:
        return None
    wraps = wrapper.unit == "bytes" or wrapper.holds / 2 <= sizes[place] <= 4 * wrapper.holds + 16
    return wrapper if wraps else None


def _accumulation(sizes: Sequence[int]) -> int:
    """Where growth accumulates: the largest container, the nearest to the root among equals; else what the root refers to."""
    largest = max(sizes)
    return sizes.index(largest) if largest >= ACCUMULATES_FROM else min(1, len(sizes) - 1)


def _folded(texts: Sequence[str]) -> list[str]:
    """Runs of one step told once (a linked list), and a long middle counted."""
    runs = [(text, len(list(group))) for text, group in itertools.groupby(texts)]
    told = [text if count == 1 else f"{text} (× {count})" for text, count in runs]
    if len(told) > MOST_STEPS:
        half = MOST_STEPS // 2
        told = [*told[:half], f"… {len(told) - MOST_STEPS + 1} more …", *told[-(half - 1) :]]
    return told


def _is_attributes(owner: object, thing: object) -> bool:
    if type(thing) is not dict or owner is None:
        return False
    if names.isinstance_of(owner, type):
        space = type.__dict__["__dict__"].__get__(owner)  # a proxy: the dictionary behind it is told by what it holds
        return len(space) == len(thing) and all(thing.get(name) is value for name, value in itertools.islice(space.items(), 3))
    return names.length(owner) is None and names.instance_dict(owner) is thing


def _named(edge: str | None, thing: object) -> str:
    what = _described(thing)
    return f"{edge} ({what})" if edge else what


def _described(thing: object) -> str:
    """What a thing is: its type, with the number of entries where it has some."""
    kind = type(thing)
    if names.isinstance_of(thing, type):
        return f"class {names.type_name(thing)}"  # type: ignore[arg-type]
    wrapped = _cached_function(thing)
    if wrapped is not None:
        return wrapped
    if names.is_one_of(kind, (types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
        return f"function {_function_name(thing)}"
    if names.is_one_of(kind, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
        return f"{kind.__name__} {_function_name(thing)}"
    if names.type_name(kind) in ("_asyncio.Task", "asyncio.tasks.Task"):
        return f"task {_task_name(thing)}"
    name = names.type_name(kind)
    entries = names.length(thing)
    if entries is None or kind is tuple:
        return name
    limit = _maxlen(thing)
    return f"{name}, {entries:,}{'' if limit is None else f' of {limit:,}'} {'entry' if entries == 1 else 'entries'}"


def _function_name(thing: Any) -> str:
    try:
        for attribute in ("__qualname__", "__name__"):
            name = object.__getattribute__(thing, attribute)
            if isinstance(name, str):
                return name
    except Exception:
        pass
    return "?"


def _task_name(task: Any) -> str:
    try:
        coroutine = type(task).get_coro(task)
    except Exception:
        return "?"
    return _function_name(coroutine)


def _cached_function(thing: object) -> str | None:
    if names.type_name(type(thing)) != "functools._lru_cache_wrapper":
        return None
    bound = bound_of(thing, None)
    attributes = names.instance_dict(thing) or {}
    function = attributes.get("__wrapped__")
    module = attributes.get("__module__")
    name = f"{module}.{_function_name(function)}" if isinstance(module, str) else _function_name(function)
    if bound is None:
        try:
            info: Any = type(thing).cache_info(thing)  # type: ignore[attr-defined]
            return f"_lru_cache_wrapper of {name}, unbounded, {info.currsize:,} entries" if info.maxsize is None else name
        except Exception:
            return f"_lru_cache_wrapper of {name}"
    return f"lru_cache of {name}, {bound.holds:,} of {bound.most:,} entries"


def _maxlen(thing: object) -> int | None:
    deque = getattr(sys.modules.get("collections"), "deque", None)
    if deque is not None and names.isinstance_of(thing, deque):
        limit = deque.__dict__["maxlen"].__get__(thing)
        return limit if isinstance(limit, int) else None
    return None


_INNER = ("hamt", "hamt_bitmap_node", "hamt_array_node", "hamt_collision_node")
"""Parts of a `contextvars.Context`."""
_BOUNDED = (
    # (attribute that is the bound, attribute that is the current size, or a container to be counted)
    ("_Cache__maxsize", "_Cache__currsize"),  # cachetools
    ("maxsize", "queue"),  # queue.Queue
    ("_maxsize", "_queue"),  # asyncio.Queue
    ("max_workers", "_threads"),
    ("_max_workers", "_threads"),  # concurrent.futures.ThreadPoolExecutor
    ("_maxsize", "_holders"),  # asyncpg
    ("maxsize", "currsize"),
    ("max_size", "currsize"),
)


def bound_of(thing: object, after: object) -> Bound | None:
    """The bound of a container that has one and has not reached it; None for everything else."""
    kind = type(thing)
    if names.type_name(kind) == "functools._lru_cache_wrapper":
        try:
            info: Any = kind.cache_info(thing)  # type: ignore[attr-defined]
        except Exception:
            return None
        if info.maxsize is None:
            return None
        attributes = names.instance_dict(thing) or {}
        module = attributes.get("__module__")
        name = _function_name(attributes.get("__wrapped__"))
        return Bound(f"lru_cache {module}.{name}" if isinstance(module, str) else f"lru_cache {name}", info.currsize, info.maxsize)
    limit = _maxlen(thing)
    if limit is not None:
        return Bound(f"{names.type_name(kind)} with maxlen", names.length(thing) or 0, limit)
    engine = getattr(sys.modules.get("memwatch.caches.engine"), "Engine", None)
    if engine is not None and names.isinstance_of(thing, engine):
        return _bound_of_ours(thing)
    attributes = names.instance_dict(thing) or {}
    for bound_name, size_name in _BOUNDED:
        most, size = attributes.get(bound_name), attributes.get(size_name)
        if type(most) is int and most > 0 and size is not None:
            holds = size if type(size) is int else names.length(size)
            if holds is None and after is not None:
                holds = names.length(after)
            if holds is not None:
                return Bound(names.type_name(kind), holds, most)
    return None


def _bound_of_ours(thing: object) -> Bound | None:
    """Of a cache of memwatch's: the bound that it is nearer to."""
    slots, name = names.slots(thing), names.type_name(type(thing)).rpartition(".")[2]
    called = f"{name} {slots['name']}" if isinstance(slots.get("name"), str) else name
    found = []
    for most, holds, unit in (
        (slots.get("_maxsize"), names.length(slots.get("_entries")), "entries"),
        (slots.get("_max_bytes"), slots.get("_bytes"), "bytes"),
    ):
        if isinstance(most, int) and isinstance(holds, int) and most > 0:
            found.append(Bound(called, holds, most, unit))
    return max(found, key=lambda bound: bound.holds / bound.most, default=None)


def _edge(parent: object, child: object, owner: object) -> str | None:
    """How *parent* refers to *child*: an attribute, a key, a variable; None where there is no name for it."""
    if owner is not None:  # parent is the dictionary of an instance or a class
        return _key_of(parent, child)
    if type(parent) is dict:
        key = _key_of(parent, child)
        if key is None:
            return None
        return key if _is_namespace(parent) else f"[{key!r}]"
    for name, value in names.slots(parent).items():
        if value is child:
            return name
    attributes = names.instance_dict(parent) if names.length(parent) is None else None
    if attributes is not None:
        found = _key_of(attributes, child)
        if found is not None:
            return found
    if type(parent) is types.FunctionType:
        return _of_function(parent, child)
    if names.is_one_of(type(parent), (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
        return _local_of(parent, child)
    return None


def _is_namespace(space: dict[Any, Any]) -> bool:
    return "__name__" in space and "__builtins__" in space


def _key_of(parent: Any, child: object) -> str | None:
    if dict.__len__(parent) > KEYS_SEARCHED:
        return None
    for key, value in dict.items(parent):
        if value is child:
            return key if type(key) is str and len(key) <= KEY_SHOWN else None
    return None


def _of_function(function: types.FunctionType, child: object) -> str | None:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if cell is child:
            return f"closure variable {name}"
    if function.__defaults__ is child:
        return "defaults"
    if function.__globals__ is child:
        return "globals"
    return None


def _local_of(generator: Any, child: object) -> str | None:
    for attribute in ("gi_frame", "cr_frame", "ag_frame"):
        frame = getattr(generator, attribute, None)
        if isinstance(frame, types.FrameType):
            for name, value in dict(frame.f_locals).items():
                if value is child:
                    return f"local {name}"
    return None
