"""What runs in the forked child: count every object, find who holds what grows, write it down, leave.

Law: it prints nothing, runs no code of the program, drops no reference of the program's, and ends by `os._exit`.  What it finds goes to
the pipe line by line, so that a deadline loses only what was not found yet.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from memwatch.evidence import holders, names

PIPE = 3
"""Where `_heap.fork_quietly` puts the way back."""
PATHS_WANTED = 240
"""Paths looked for; their number is that of a sample, and 240 tell a share to within 3 % (one sigma)."""
INSTANCES_EACH = 12
TYPES_SEARCHED = 6
"""Where no sampled blocks tell what survives: instances of the types that grew most."""
TYPES_TOLD = 4000
DEEP_INSTANCES = 5

Counts = Mapping[str, tuple[int, int]]
"""Type name to (count, bytes)."""


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


def run(task: Task) -> None:
    """Do it, in the child.  Never returns."""
    status = 1
    try:
        _find_out(task)
        status = 0
    except BaseException as error:  # whatever it is, it ends here
        try:
            _tell({"what": "failed", "error": f"{type(error).__name__}: {error}"[:300]})
        except BaseException:
            pass
    finally:
        os._exit(status)


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
    if not task.want_paths:
        return
    targets: list[int] = []
    weights: list[tuple[float, int]] = []
    lost: dict[int, float] = {}
    for number, block in enumerate(blocks):
        if heap.owner(number) is None:
            lost[block.stack] = lost.get(block.stack, 0.0) + block.weight_bytes
        elif len(targets) < PATHS_WANTED:
            targets.append(number)
            weights.append((block.weight_bytes, block.stack))
    if task.kinds:
        targets, weights = [], []
        for kind in _derived(found, task.kinds):
            chosen = heap.instances(kind, PATHS_WANTED)
            targets += chosen
            weights += [(found[kind][0] / max(1, len(chosen)), 0)] * len(chosen)
    elif len(targets) < INSTANCES_EACH and task.before is not None:
        for kind in _grown(found, counts, task.before):
            chosen = heap.instances(kind, INSTANCES_EACH)
            targets += chosen
            each = growth(names.type_name(kind), counts, task.before)[1] / max(1, len(chosen))
            weights += [(max(each, 0.0), 0)] * len(chosen)
    _tell({"what": "lost", "stacks": {str(stack): weight for stack, weight in lost.items()}, "looked_at": len(blocks)})
    if targets:
        _paths(heap, targets, weights)
    _tell({"what": "end", "took_s": _since(began_s)})


def _since(began_s: float) -> float:
    return round(time.perf_counter() - began_s, 3)


def _by_name(found: Mapping[type, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Types of one name (classes made again and again) are one row."""
    counts: dict[str, tuple[int, int]] = {}
    for kind, (count, size) in found.items():
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


def _derived(found: Iterable[type], wanted: Sequence[str]) -> list[type]:
    """The classes that are, or derive from, one of the *wanted* names."""
    mro = type.__dict__["__mro__"].__get__
    return [kind for kind in found if any(names.type_name(base) in wanted for base in mro(kind))]


def _grown(found: Iterable[type], counts: Counts, before: Counts) -> list[type]:
    """The types whose bytes grew most, one class for each name."""
    by_name = {names.type_name(kind): kind for kind in found}
    grown = [(growth(name, counts, before)[1], name) for name in by_name if name in counts]
    return [by_name[name] for size, name in sorted(grown, reverse=True)[:TYPES_SEARCHED] if size > 0]


def _paths(heap: Any, targets: list[int], weights: Sequence[tuple[float, int]]) -> None:
    roots, ours = holders.roots()
    texts = [(root.text, None) for root in roots] + holders.thread_root_texts(heap.thread_roots())
    # Only a module's globals are themselves a root; what a frame, a thread or a C part refers to is the first step.
    given = len(roots)
    rows = heap.paths(targets, [root.thing for root in roots], [root.penalty for root in roots], [*ours, *map(id, (roots, texts))])
    for (status, root, things), (weight, stack) in zip(rows, weights, strict=True):
        if not things:
            continue
        kind = names.type_name(type(things[-1]))
        told: dict[str, Any] = {"what": "path", "status": status, "weight": weight, "stack": stack, "type": kind}
        if status == 0 and root >= 0:
            text, variable = texts[root]
            holding = holders.in_words(text, variable, things, at_root=root < given)
            told |= {"place": holding.place, "trail": holding.trail}
            if holding.bound is not None:
                told["bound"] = [holding.bound.text, holding.bound.holds, holding.bound.most]
        elif status == 2:
            told["trail"] = [names.type_name(type(thing)) for thing in things[:6]]
        _tell(told)
