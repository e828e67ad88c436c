"""Counting asyncio's tasks from another thread, without importing asyncio and without keeping a task alive.

Law: a strong reference to a task exists only inside one C call, during which no other thread runs, so that it is never the last
one (3.14: for as long as `asyncio.all_tasks` is asked).
"""

from __future__ import annotations

import itertools
import operator
import sys
import weakref
from typing import Any

# About 0.1 ms of GIL between two chances for the other threads.
_CHUNK = 1000

_is_done = operator.methodcaller("done")


def count_tasks() -> int | None:
    """How many asyncio tasks are not done, over all loops; None while asyncio is not loaded.

    Cost: about 0.1 µs per task.
    Threads: safe from any.
    Source: CPython `Lib/asyncio/tasks.py`: `_all_tasks` (3.11), `_scheduled_tasks` and `_eager_tasks` (3.12, 3.13), and from
    3.14 on lists per thread in C, reached through the running loops.
    """
    module: Any = sys.modules.get("asyncio.tasks")
    if module is None:
        return None
    references = references_of_tasks(module)
    if sys.version_info >= (3, 14):
        return _count_pending(references) + sum(len(module.all_tasks(loop)) for loop in _loops())
    return _count_pending(references) + len(getattr(module, "_eager_tasks", ()))


def registered() -> int | None:
    """How many tasks asyncio knows of, done ones included: the cost of `count_tasks` goes with it.  At once."""
    module: Any = sys.modules.get("asyncio.tasks")
    if module is None:
        return None
    return len(references_of_tasks(module))


def references_of_tasks(module: Any) -> set[weakref.ReferenceType[Any]]:
    """The weak references that asyncio keeps, in one step; empty where it keeps none."""
    known = getattr(module, "_scheduled_tasks", None)
    if known is None:
        known = getattr(module, "_all_tasks", None)
    found = getattr(known, "data", None)
    return found if isinstance(found, set) else set()


def _count_pending(references: set[weakref.ReferenceType[Any]]) -> int:
    # Copied in one step in C, because the loop's thread changes the set.  Not by list() or tuple(): on 3.11 these may start a
    # collection after they have begun to iterate, and that removes references from the set.
    remaining = iter(references.copy())
    pending = 0
    while chunk := tuple(itertools.islice(remaining, _CHUNK)):
        alive = filter(None, map(operator.call, chunk))
        pending += tuple(map(_is_done, alive)).count(False)
    return pending


def _loops() -> list[Any]:
    """The event loops that run now, found by the frames that run them."""
    loops: dict[int, Any] = {}
    for frame in sys._current_frames().values():
        current: Any = frame
        while current is not None:
            if current.f_code.co_name == "run_forever" and current.f_code.co_filename.endswith("base_events.py"):
                loop = current.f_locals.get("self")
                if loop is not None:
                    loops[id(loop)] = loop
            current = current.f_back
    return list(loops.values())
