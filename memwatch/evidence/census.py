"""What runs in the forked child: count every object, find who holds what grows, write it down, leave.

Law: it prints nothing, runs no code of the program, drops no reference of the program's, and ends by `os._exit`.  What it finds
goes to the pipe line by line, so that a deadline loses only what was not found yet.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from memwatch.evidence import holders, names, resources

PIPE = 3
"""Where `_heap.fork_quietly` puts the way back."""
PATHS_WANTED = 240
"""Paths looked for; their number is that of a sample, and 240 tell a share to within 3 % (one sigma)."""
TYPES_SEARCHED = 6
"""Types whose instances are followed where sampled blocks do not tell what survives: those that grew most."""
UNSEEN_SHARE = 0.3
"""Growth of a type that no sampled block shows is followed from this part of all growth."""
TYPES_TOLD = 4000
NEARLY_ALL = 0.8
CHAIN = 8
"""So many holders of one type, one behind the other, are a chain."""
FOUND, CYCLE, FROM_C, CUT = range(4)
"""How a search for holders ended, as `_heap.paths` says it."""

Counts = Mapping[str, tuple[int, int]]
"""Type name to (count, bytes)."""


Rows = Sequence[tuple[type, int, int]]
"""Type, count, bytes.  Types are never keys of a dictionary here: a metaclass may have a hash of its own."""


class Block(NamedTuple):
    """A sampled memory block that may belong to the growth."""

    address: int
    weight_bytes: float
    """Bytes of the heap that it stands for."""
    stack: int


class Task(NamedTuple):
    """What a child is to find out."""

    blocks: Callable[[], Sequence[Block]]
    """Called in the child."""
    before: Counts | None
    """An earlier census; None if this one is to be the baseline, and no paths are wanted."""
    want_paths: bool
    kinds: tuple[str, ...] = ()
    """Names of classes whose instances, and those of classes derived from them, are what grew (sockets, tasks)."""
    grown: int | None = None
    """How many of such resources there are more since *before*: a type that grew by about as many may be what owns them."""


def run(task: Task) -> None:
    """Do it, in the child.  Never returns."""
    status = 1
    try:
        _switch_monitoring_off()
        _find_out(task)
        status = 0
    except BaseException as error:  # whatever it is, it ends here
        try:
            _tell({"what": "failed", "error": f"{type(error).__name__}: {error}"[:300]})
        except BaseException:
            pass
    finally:
        os._exit(status)


def _switch_monitoring_off() -> None:
    """Coverage and debuggers since 3.12: their callbacks are the program's code."""
    monitoring: Any = getattr(sys, "monitoring", None)
    for tool in range(6) if monitoring is not None else ():
        if monitoring.get_tool(tool) is not None:
            monitoring.set_events(tool, 0)


def _heap() -> Any:
    return importlib.import_module("memwatch.evidence._heap")


def _tell(what: Mapping[str, Any]) -> None:
    data = json.dumps(what).encode("ascii", "backslashreplace") + b"\n"
    while data:
        data = data[os.write(PIPE, data) :]


def _find_out(task: Task) -> None:
    began_s = time.perf_counter()
    heap = _heap()
    blocks = list(task.blocks()) if task.want_paths else []
    addresses = array.array("Q", (block.address for block in blocks))
    found, whole = heap.census(addresses.tobytes())
    counts = _by_name(found)
    told = sorted(counts.items(), key=lambda item: -item[1][1])[:TYPES_TOLD]
    _tell({"what": "types", "types": dict(told), "whole": whole, "took_s": _since(began_s)})
    members = list(resources.look("tasks").values())
    _tell({"what": "tasks", "members": [[member.identity, member.group, member.trail] for member in members]})
    if not task.want_paths:
        return
    targets: list[int] = []
    weights: list[tuple[float, int]] = []
    lost: dict[int, float] = {}
    seen: dict[int, float] = {}
    made: dict[int, int] = {}
    for number, block in enumerate(blocks):
        owner = heap.owner(number)
        if task.kinds:
            if owner is not None and _derives(type(owner), task.kinds):
                made[block.stack] = made.get(block.stack, 0) + 1
        elif owner is None:
            lost[block.stack] = lost.get(block.stack, 0.0) + block.weight_bytes
        elif len(targets) < PATHS_WANTED:
            targets.append(number)
            weights.append((block.weight_bytes, block.stack))
            seen[id(type(owner))] = seen.get(id(type(owner)), 0.0) + block.weight_bytes
        del owner
    for kind, weight in _unseen(found, counts, task, seen):
        drawn = heap.instances(kind)
        targets += drawn
        weights += [(weight / max(1, len(drawn)), 0)] * len(drawn)
    if made:
        _tell({"what": "made", "stacks": {str(stack): count for stack, count in made.items()}})
    _tell({"what": "lost", "stacks": {str(stack): weight for stack, weight in lost.items()}, "looked_at": len(blocks)})
    if targets:
        _paths(heap, targets, weights, holders.registries() if task.kinds else [])
    _tell({"what": "end", "took_s": _since(began_s)})


def _since(began_s: float) -> float:
    return round(time.perf_counter() - began_s, 3)


def _by_name(found: Rows) -> dict[str, tuple[int, int]]:
    """Types of one name (classes made again and again) are one row."""
    counts: dict[str, tuple[int, int]] = {}
    for kind, count, size in found:
        name = names.type_name(kind)
        if name.startswith("memwatch."):
            continue
        before = counts.get(name, (0, 0))
        counts[name] = before[0] + count, before[1] + size
    return counts


def growth(name: str, after: Counts, before: Counts) -> tuple[int, int]:
    """What a type has grown by between two censuses: (count, bytes)."""
    count, size = after.get(name, (0, 0))
    old_count, old_size = before.get(name, (0, 0))
    return count - old_count, size - old_size


def _derives(kind: type, wanted: Sequence[str]) -> bool:
    """Whether a class is, or derives from, one of the *wanted* names."""
    return any(names.type_name(base) in wanted for base in type.__dict__["__mro__"].__get__(kind))


def _in_step(found: Rows, counts: Counts, task: Task) -> list[tuple[type, float]]:
    """Types that grew by as many as the resources did: what owns a descriptor in C (a database's connection) is one of them."""
    if not task.grown or task.grown < 3 or task.before is None:
        return []
    near = []
    for kind, count, _ in found:
        name = names.type_name(kind)
        more = growth(name, counts, task.before)[0]
        if "." in name and 0.7 * task.grown <= more <= 1.4 * task.grown:
            near.append((abs(more - task.grown), name, kind, float(count)))
    return [(kind, count) for _, _, kind, count in sorted(near, key=lambda row: row[:2])[:3]]


def _unseen(found: Rows, counts: Counts, task: Task, seen: Mapping[int, float]) -> list[tuple[type, float]]:
    """Types that grew and that no sampled block has shown: resources, and what other allocators than Python's hold (arrays)."""
    if task.kinds:
        return [(kind, float(count)) for kind, count, _ in found if _derives(kind, task.kinds)] or _in_step(found, counts, task)
    if task.before is None:
        return []
    by_name = {names.type_name(kind): kind for kind, _, _ in found}
    grown = [(growth(name, counts, task.before)[1], name) for name in by_name if name in counts]
    largest = [(size, by_name[name]) for size, name in sorted(grown, reverse=True)[:TYPES_SEARCHED] if size > 0]
    total = sum(size for size, _ in largest)
    missing = [(kind, size - seen.get(id(kind), 0.0)) for size, kind in largest]
    return [(kind, size) for kind, size in missing if size > UNSEEN_SHARE * total]


def _paths(heap: Any, targets: list[int], weights: Sequence[tuple[float, int]], ignored: Sequence[int]) -> None:
    roots, ours = holders.roots()
    ours += ignored
    texts = [(root.text, None) for root in roots] + holders.thread_root_texts(heap.thread_roots())
    things = [root.thing for root in roots]
    penalties = [root.penalty for root in roots]
    # Only a module's globals are themselves a root; what a frame, a thread or a C part refers to is the first step.
    given = len(roots)

    def found(numbers: list[int]) -> list[tuple[int, int, list[object]]]:
        return list(heap.paths(numbers, things, penalties, [*ours, *map(id, (roots, texts, things))]))

    def in_words(root: int, way: list[object], after: tuple[str, ...] = ()) -> holders.Holding:
        text, variable = texts[root]
        return holders.in_words(text, variable, way, at_root=root < given, after=after)

    told: list[dict[str, Any]] = []
    searched: list[tuple[dict[str, Any], int]] = []
    cut: list[tuple[dict[str, Any], int, list[type]]] = []
    rows = found(targets)
    for (status, root, way), (weight, stack), target in zip(rows, weights, targets, strict=True):
        if not way:
            continue
        line: dict[str, Any] = {"what": "path", "status": status, "weight": weight, "stack": stack}
        line["type"] = names.type_name(type(way[-1]))
        told.append(line)
        searched.append((line, target))
        if status == FOUND:
            line |= _said(in_words(root, way))
        elif status == FROM_C:
            line["trail"] = [names.type_name(type(thing)) for thing in way[:6]]
        elif status == CUT and len(way) >= CHAIN:
            links = list({id(type(thing)): type(thing) for thing in way[: CHAIN // 2]}.values())
            cut.append((line, target, links))  # as far as the search came: a long chain
        way.clear()  # our own lists are holders, too
    rows.clear()
    begins: dict[tuple[int, ...], holders.Holding | None] = {}
    for line, target, links in cut:
        key = tuple(map(id, links))
        if key not in begins:
            begins[key] = None
            top = heap.climb(target, links)
            for status, root, way in found([top[0]]) if top is not None else []:
                if status == FOUND:
                    chain = f"{names.type_name(links[0])} (a chain of {top[1]:,})"
                    begins[key] = in_words(root, way, after=(chain, line["type"]))
                way.clear()
        begin = begins[key]
        if begin is not None:
            line |= {"status": FOUND} | _said(begin)
    _find_garbage(heap, [(line, target) for line, target in searched if line["status"] == CUT])
    for line in told:
        _tell(line)


def _find_garbage(heap: Any, unresolved: list[tuple[dict[str, Any], int]]) -> None:
    """What no search could reach may be garbage in large cycles (trees with links to parents): counting all references tells.

    What the collector does not track, such as text, is taken for garbage where nearly all that it does track is.
    """
    if not unresolved:
        return
    flags = heap.garbage([target for _, target in unresolved]) or []
    known = [flag for flag in flags if flag is not None]
    nearly_all = bool(known) and sum(known) >= NEARLY_ALL * len(known)
    for (line, _), flag in zip(unresolved, flags, strict=False):
        if flag or (flag is None and nearly_all):
            line["status"] = CYCLE


def _said(holding: holders.Holding) -> dict[str, Any]:
    said: dict[str, Any] = {"place": holding.place, "trail": holding.trail}
    if holding.bound is not None:
        said["bound"] = list(holding.bound)
    return said
