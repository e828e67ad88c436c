"""`assert_collected`: an object has to be gone, or at least held by nobody but the caller; else it is told who holds it.

Law: variables of the caller do not count, and no code of the program runs but what its finalizers are.
"""

from __future__ import annotations

import gc
import inspect
import sys
import types
import weakref
from typing import Any

from memwatch.evidence import names
from memwatch.gate.judging import MemoryGrowth
from memwatch.gate.readings import Reader
from memwatch.gate.settling import FROZEN_AT_START, settle

DEEPEST = 16
MOST_VISITED = 20_000
"""Objects looked at on the way back to a root; each step is one pass over the heap."""


def assert_collected(subject: object, *, what: str | None = None) -> None:
    """Fail if an object is alive, with the path that holds it.

    Args:
        subject: a `weakref.ref`, best, whose object has to be gone; or the object itself, which has to be reachable from no module,
            thread or other frame: the caller's own variables do not count.
        what: what the message calls it.

    Raises:
        MemoryGrowth: something holds it.

    Cost: a full collection; if it is alive, one pass over the heap for each step of the path (30 ms per million containers).
    """
    __tracebackhide__ = True
    reader = Reader()
    settle(reader, trim=False)
    reader.close()
    weak = isinstance(subject, weakref.ReferenceType)
    target: Any = subject() if isinstance(subject, weakref.ReferenceType) else subject
    if target is None and weak:
        return
    caller = sys._getframe(1)
    name = what or names.type_name(type(target))
    path = way_to_root(target, ignored=[caller, sys._getframe()])
    if path is not None:
        raise MemoryGrowth(f"{name} is still alive\n  held by  " + " → ".join(path), {"held_by": path, "exceeded": ["objects"]})
    if weak:
        holder = _local_name(caller, target)
        told = f"local variable {holder} of {caller.f_code.co_qualname}" if holder else "no Python object that could be found"
        raise MemoryGrowth(f"{name} is still alive\n  held by  {told}", {"held_by": [told], "exceeded": ["objects"]})


def _local_name(frame: types.FrameType, target: object) -> str | None:
    found = next((name for name, value in frame.f_locals.items() if value is target), None)
    if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.gettrace() is None:
        frame.f_locals.clear()  # a copy, which would hold what the variables held
    return found


def way_to_root(target: object, *, ignored: list[Any]) -> list[str] | None:
    """The shortest way from a module, class, thread or frame to *target*, in words; None if there is none.

    Breadth first against the references.  What is frozen (`gc.freeze`) is thawed for the search, then frozen
    again with all there is.
    """
    frozen = gc.get_freeze_count() > FROZEN_AT_START
    if frozen:
        gc.unfreeze()  # gc.get_referrers passes frozen objects over
    try:
        return _search(target, ignored)
    finally:
        if frozen:
            gc.freeze()


def _search(target: object, ignored: list[Any]) -> list[str] | None:
    skipped = {id(thing) for thing in ignored}
    found: dict[int, object] = {id(target): target}
    child_of: dict[int, int | None] = {id(target): None}
    frontier: list[object] = [target]
    skipped |= {id(found), id(child_of)}
    for _ in range(DEEPEST):
        known = {id(thing) for thing in frontier}
        following: list[object] = []
        referrers = gc.get_referrers(*frontier)
        ours = {id(frontier), id(following), id(known), id(referrers)}
        for holder in referrers:
            if id(holder) in ours or id(holder) in skipped or id(holder) in found or _is_own_frame(holder):
                continue
            child = next((id(thing) for thing in gc.get_referents(holder) if id(thing) in known), None)
            if child is None:
                continue
            found[id(holder)], child_of[id(holder)] = holder, child
            root = _root_text(holder)
            if root is not None:
                return _told(root, [found[key] for key in _way(id(holder), child_of)])
            following.append(holder)
            if len(found) > MOST_VISITED:
                return ["more objects than could be looked at"]
        frontier = following
        if not frontier:
            return None
    return None


def _way(key: int | None, child_of: dict[int, int | None]) -> list[int]:
    way = []
    while key is not None:
        way.append(key)
        key = child_of[key]
    return way


def _is_own_frame(holder: object) -> bool:
    return isinstance(holder, types.FrameType) and names.is_ours(holder.f_code.co_filename)


def _root_text(holder: object) -> str | None:
    if type(holder) is dict:
        name = holder.get("__name__")
        module = sys.modules.get(name) if type(name) is str else None
        if module is not None and getattr(module, "__dict__", None) is holder:
            return f"module {name}"
    if isinstance(holder, types.FrameType):
        return f"frame {holder.f_code.co_qualname} ({names.short_file(holder.f_code.co_filename)}:{holder.f_lineno})"
    return None


def _told(root: str, way: list[object]) -> list[str]:
    """A way from a root, as words: each step by how the one before refers to it."""
    path = [root]
    for position in range(1, len(way)):
        parent, child = way[position - 1], way[position]
        last = position == len(way) - 1
        if not last and type(child) is dict and names.instance_dict(parent) is child:
            continue  # its entries are the owner's attributes
        kind, entries = names.type_name(type(child)), names.length(child)
        size = f", {entries:,} entries" if entries is not None else ""
        label = _edge(parent, child)
        path.append(f"{label} ({kind}{size})" if label else f"{kind}{size}")
    return path


def _edge(parent: object, child: object) -> str | None:
    space = parent if type(parent) is dict else None
    if space is None:
        space = names.instance_dict(parent) if names.length(parent) is None else None
    for key, value in list(space.items())[:2000] if space is not None else ():
        if value is child:
            return key if type(key) is str else f"[{type(key).__qualname__}]"
    return None
