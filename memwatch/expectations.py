"""Objects that were expected to be gone by now.  Deterministic where a trend is statistical: one object, one deadline.

Law: an expected object is held weakly, and its `repr` is never called.
"""

from __future__ import annotations

import gc
import itertools
import sys
import types
import weakref
from typing import Any

SEARCH_BUDGET_S = 0.010
SEARCH_COST_S = 0.03e-6
"""Seconds of `gc.get_referrers` per allocator block (0.03 s per million containers, the GIL held): beyond the budget no holder is
searched for, and the finding says so."""
MAX_DEPTH = 4
MAX_WAITING = 100_000
"""Expectations beyond this are refused: a program that expects more is itself growing without bound."""


class Expectation:
    """One expectation.  `met` is True once the object has gone."""

    __slots__ = ("__weakref__", "_reference", "deadline_s", "reason", "since_s", "type_name")

    def __init__(self, subject: object, since_s: float, within_s: float, reason: str) -> None:
        self._reference = weakref.ref(subject)
        self.type_name = f"{type(subject).__module__}.{type(subject).__qualname__}"
        self.since_s = since_s
        self.deadline_s = since_s + within_s
        self.reason = reason

    @property
    def met(self) -> bool:
        """Whether the object has gone."""
        return self._reference() is None


class Expectations:
    """The expectations of a program, checked by its watcher on every tick."""

    def __init__(self) -> None:
        self._waiting: list[Expectation] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, subject: object, *, now_s: float, within_s: float, reason: str) -> Expectation:
        """Expect *subject* to be gone within a time.

        Raises:
            TypeError: it cannot be weakly referenced.
            ValueError: too many expectations are waiting.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise ValueError(f"{MAX_WAITING:,} expectations are waiting already; is the watcher running?")
        try:
            expectation = Expectation(subject, now_s, within_s, reason)
        except TypeError:
            raise TypeError(
                f"a {type(subject).__qualname__} cannot be weakly referenced, so nobody can tell when it goes; "
                "expect the object that owns it instead (with __slots__, add '__weakref__')"
            ) from None
        self._waiting.append(expectation)
        return expectation

    def overdue(self, now_s: float, blocks: float | None = None) -> list[dict[str, Any]]:
        """What is still alive past its deadline, as details of a finding; each is told once.

        Before an object is told to be alive, unreachable cycles are collected, once for all of this call.
        """
        if not self._waiting:
            return []
        waiting: list[Expectation] = []
        late: list[Expectation] = []
        for expectation in list(self._waiting):
            if expectation.met:
                continue
            (late if now_s >= expectation.deadline_s else waiting).append(expectation)
        added = self._waiting[len(self._waiting) :]
        self._waiting = waiting + added
        if late:
            gc.collect()
        return [self._finding(item, now_s, blocks) for item in late if not item.met]

    @staticmethod
    def _finding(expectation: Expectation, now_s: float, blocks: float | None) -> dict[str, Any]:
        held_by: list[str] = []
        note = "no Python object holds it: a reference from C, or a frame that runs"
        if blocks is None or blocks * SEARCH_COST_S > SEARCH_BUDGET_S:
            note = "its holders were not searched for: the heap is too large to do that without a pause"
        else:
            subject = expectation._reference()
            if subject is not None:
                held_by = retaining_path(subject)
            del subject
        return {
            "type": expectation.type_name,
            "reason": expectation.reason,
            "alive_s": round(now_s - expectation.since_s, 1),
            "held_by": held_by,
            "note": None if held_by else note,
        }


def retaining_path(subject: object, *, max_depth: int = MAX_DEPTH) -> list[str]:
    """Follow one holder after another from *subject* towards a root; names, outermost first.

    Cost: one `gc.get_referrers` per step, 0.03 s per million containers with the GIL held.
    """
    path: list[str] = []
    ignored = {id(path)}
    current: object = subject
    seen = {id(subject)}
    for _ in range(max_depth):
        holder, name = _best_holder(current, ignored, seen)
        if holder is None:
            break
        path.append(name)
        if isinstance(holder, types.ModuleType | types.FrameType):
            break
        seen.add(id(holder))
        current = holder
    return path[::-1]


def _best_holder(subject: object, ignored: set[int], seen: set[int]) -> tuple[object | None, str]:
    own = sys._getframe()
    fallback: tuple[object | None, str] = (None, "")
    referrers = gc.get_referrers(subject)
    ignored = ignored | {id(referrers)}
    for holder in itertools.islice(referrers, 50):
        if id(holder) in ignored or id(holder) in seen or holder is own:
            continue
        if isinstance(holder, types.FrameType):
            if holder.f_code.co_filename == __file__:
                continue
            return holder, f"frame {holder.f_code.co_qualname} ({holder.f_code.co_filename}:{holder.f_lineno})"
        module = _module_of(holder)
        if module is not None:
            return module, f"module {module.__name__} → {_key_of(holder, subject)}"
        if fallback[0] is None:
            fallback = holder, _container_name(holder, subject)
    return fallback


def _module_of(holder: object) -> types.ModuleType | None:
    if type(holder) is not dict:
        return None
    name = holder.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    return module if isinstance(module, types.ModuleType) and module.__dict__ is holder else None


def _key_of(holder: object, subject: object) -> str:
    if type(holder) is dict:
        for key, value in list(holder.items()):
            if value is subject:
                return key if type(key) is str else f"[{type(key).__qualname__}]"
    return "?"


def _container_name(holder: object, subject: object) -> str:
    kind = type(holder)
    if kind in (dict, list, set, tuple, frozenset):
        return f"{kind.__name__} ({len(holder):,} entries)"  # type: ignore[arg-type]
    return f"{kind.__module__}.{kind.__qualname__}"
