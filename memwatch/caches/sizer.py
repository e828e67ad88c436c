"""How many bytes a value holds: by type, with large containers sampled, in microseconds.

Law: exact for what holds its bytes itself (text, bytes, arrays, frames, tensors); an estimate for containers, which are taken to be
of a kind; at most `MOST_OBJECTS` objects are looked at.  What several values share is charged to each of them.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

ENTRY_BYTES = 260
"""What the cache itself adds to an entry with a time to live and a size (bench/caches.py); 30 less without a time to live."""
MOST_OBJECTS = 512
SAMPLED_ABOVE = 32
"""Containers of more are sampled with a stride, so that about this many of their elements are looked at."""
_MOST_DEPTH = 20
_SHARED = 4
"""A text key of a dictionary with more references than this is taken to be shared (interned, a schema's), and costs nothing."""

getsizeof = sys.getsizeof
_LEAVES: frozenset[type] = frozenset({int, float, complex, bool, str, bytes, bytearray, type(None)})
"""Hold nothing else, and have no header of the collector's: `__sizeof__` says it all, in a quarter of `getsizeof`'s time."""
_SHARED_KINDS: frozenset[type] = frozenset({type, type(len), type(lambda: 0), type(sys)})
"""What a value refers to without holding it: a class, a function, a module."""
_registered: dict[type, Callable[[Any], int]] = {}


def register_sizeof(kind: type, function: Callable[[Any], int]) -> None:
    """Size values of a type, and of its subclasses, with a function of the value that returns bytes."""
    if not callable(function):
        raise TypeError(f"register_sizeof: {type(function).__name__} is not callable")
    _registered[kind] = function


def sizeof(value: Any) -> int:
    """Bytes that *value* holds.

    Cost: 0.3 µs for text and bytes, 1 to 10 µs for a row of a table, at most some 300 µs.
    Source: the dispatch and the sampling are described, with their errors, in docs/explanation/caches.md.
    """
    if type(value) in _LEAVES:
        return value.__sizeof__()  # type: ignore[no-any-return]
    try:
        return round(_Look().size(value, 0))
    except Exception:  # the program's: a proxy outside its context, a container that another thread changes, a sizer of its own
        return object.__sizeof__(value)


class _Look:
    """One measurement: what it has seen, and how much it may still look at."""

    __slots__ = ("left", "seen")

    def __init__(self) -> None:
        self.left = MOST_OBJECTS
        self.seen: set[int] = set()

    def size(self, value: Any, depth: int) -> float:
        kind = type(value)  # not `__class__`: a proxy's runs the program's code
        if kind in _LEAVES:
            return float(value.__sizeof__())
        if kind in _SHARED_KINDS:
            return 0.0
        if self.left <= 0 or depth > _MOST_DEPTH or id(value) in self.seen:
            return 0.0
        self.left -= 1
        self.seen.add(id(value))
        if _registered:
            for known in type(value).__mro__:
                if known in _registered:
                    return float(_registered[known](value))
        try:
            own = float(getsizeof(value))
        except Exception:  # a broken __sizeof__ of the program's
            own = 0.0
        # With subclasses, so that subclasses (OrderedDict, namedtuple, defaultdict) are known too.
        if issubclass(kind, dict):
            return own + self._pairs(value, depth) + self._attributes(value, depth)
        if issubclass(kind, list | tuple | set | frozenset | deque):
            return own + self._elements(value, len(value), depth) + self._attributes(value, depth)
        if issubclass(kind, str | bytes | bytearray | int | float):
            return own + self._attributes(value, depth)
        held = _buffer_bytes(value)
        return held if held is not None else own + self._attributes(value, depth)

    def _elements(self, values: Any, count: int, depth: int) -> float:
        step = max(1, count // SAMPLED_ABOVE)
        total, looked = 0.0, 0
        try:
            for item in values[::step] if isinstance(values, list | tuple) else islice(values, 0, None, step):
                if self.left <= 0 and looked:
                    break
                total += self.size(item, depth + 1)
                looked += 1
        except RuntimeError:
            pass  # another thread changes it: what was seen so far counts
        return total / looked * count if looked else 0.0

    def _pairs(self, mapping: dict[Any, Any], depth: int) -> float:
        count = len(mapping)
        step = max(1, count // SAMPLED_ABOVE)
        total, looked = 0.0, 0
        try:
            for key, item in islice(dict.items(mapping), 0, None, step):
                if self.left <= 0 and looked:
                    break
                if not (key.__class__ is str and sys.getrefcount(key) > _SHARED):
                    total += self.size(key, depth + 1)
                total += self.size(item, depth + 1)
                looked += 1
        except RuntimeError:
            pass  # another thread changes it
        return total / looked * count if looked else 0.0

    def _attributes(self, value: Any, depth: int) -> float:
        total = 0.0
        try:
            attributes = value.__dict__
        except Exception:  # it has none, or a property of the program's that fails
            attributes = None
        if type(attributes) is dict:
            total += getsizeof(attributes) + self._pairs(attributes, depth)
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__"):
                    slot = kind.__dict__.get(
                        f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
                    )
                    try:
                        item = slot.__get__(value, kind) if slot is not None else None
                    except Exception:
                        continue  # never set, or no slot any more
                    if item is not None:
                        total += self.size(item, depth + 1)
        return total


def _buffer_bytes(value: Any) -> float | None:
    """Arrays, frames and tensors, known by their module so that none of those libraries has to be imported."""
    family = type(value).__module__.partition(".")[0]
    try:
        if family == "numpy":
            base = value
            while getattr(base, "base", None) is not None and type(base.base).__module__.partition(".")[0] == "numpy":
                base = base.base  # a view keeps its base
            return float(base.nbytes) + getsizeof(value) - (value.nbytes if base is value and value.base is None else 0)
        if family == "pandas":
            used = value.memory_usage(deep=True)
            return float(used if isinstance(used, int) else used.sum())
        if family == "torch":
            storage = value.untyped_storage()
            return float(storage.nbytes()) + getsizeof(value) if value.device.type == "cpu" else float(getsizeof(value))
        if isinstance(value, memoryview):
            return float(getsizeof(value)) + (0 if value.obj is None else sizeof(value.obj))
        if family == "array":
            return float(getsizeof(value))
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None  # looks like one, and is none
    return None
