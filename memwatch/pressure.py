"""How near the limit: levels with hysteresis, and the hooks that give memory back.

Law: a level is entered at its threshold and left only a margin below it; hooks run in order of priority, never under a lock of
ours; a hook that raises is reported to the caller's `on_error` and dropped.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, NamedTuple

Level = Literal["normal", "warning", "critical"]
LEVELS: tuple[Level, ...] = ("normal", "warning", "critical")
HookLevel = Literal["periodic", "warning", "critical"]
HOOK_LEVELS: tuple[HookLevel, ...] = ("periodic", "warning", "critical")

MARGIN = 0.05
"""A level is left this share of its threshold below it.  A guess: wider than the tick-to-tick noise of RSS in the traces."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """What a relief hook is told."""

    level: Literal["periodic", "warning", "critical"]
    rss_bytes: float
    limit_bytes: float | None
    target_bytes: float | None
    """Free this much to leave the level; None for a periodic clean-up."""


class LevelChange(NamedTuple):
    """The gauge moved."""

    before: Level
    after: Level
    threshold_bytes: float


class PressureGauge:
    """Tells the level for each reading of resident memory, with hysteresis.

    Args:
        margin: a level is left at `threshold * (1 - margin)`.
    """

    def __init__(self, *, margin: float = MARGIN) -> None:
        self.level: Level = "normal"
        self.margin = margin

    def update(self, rss_bytes: float, warning_bytes: float | None, critical_bytes: float | None) -> LevelChange | None:
        """Take one reading; tell whether the level changed.

        Args:
            warning_bytes, critical_bytes: the thresholds now (they move with the limit); None: that level does not exist.
        """
        before = self.level
        thresholds = {"warning": warning_bytes, "critical": critical_bytes}
        after: Level = "normal"
        for level in LEVELS[1:]:
            threshold = thresholds[level]
            if threshold is None:
                continue
            held = LEVELS.index(before) >= LEVELS.index(level)
            if rss_bytes >= threshold * (1 - self.margin if held else 1):
                after = level
        if after == before:
            return None
        self.level = after
        edge = thresholds[after if after != "normal" else "warning"] or thresholds["critical"] or 0.0
        return LevelChange(before, after, edge)


Hook = Callable[[Pressure], Any]


class ReliefStep(NamedTuple):
    """What one hook did."""

    name: str
    freed_bytes: float | None
    """What the hook says it freed; None if it does not say."""


class ReliefHooks:
    """The hooks of a program, by level and priority.

    Bound methods and callable objects are held weakly: a hook goes with its object, so that registering a cache does not keep it.
    Plain functions are held strongly, as a lambda or a nested function would otherwise be gone at once.
    """

    def __init__(self) -> None:
        self._hooks: list[tuple[int, int, HookLevel, Callable[[], Hook | None], str]] = []
        self._registered = 0

    def add(self, hook: Hook, *, priority: int = 0, level: HookLevel = "warning") -> None:
        """Register a hook.

        Args:
            hook: called with a `Pressure`; returns the bytes it freed, or None.
            priority: lower runs first.
            level: the least pressure at which it runs: `warning` hooks also run when critical, `periodic` ones always.

        Raises:
            TypeError: not callable, or a priority that is no whole number.
            ValueError: an unknown level.
        """
        if not callable(hook):
            raise TypeError(f"a cleanup hook must be callable, not {type(hook).__name__}")
        try:
            priority = operator.index(priority)
        except TypeError:
            raise TypeError(f"priority: {type(priority).__name__} is not a whole number") from None
        if level not in HOOK_LEVELS:
            raise ValueError(f"level: {level!r} is not one of {', '.join(HOOK_LEVELS)}")
        self._registered += 1
        entry = (priority, self._registered, level, _holder(hook), hook_name(hook))
        # Replaced, never changed in place: a run in another thread goes on over the list it started with.
        self._hooks = sorted([*self._hooks, entry], key=lambda item: item[:2])

    def remove(self, hook: Hook) -> None:
        """Forget a hook, however often it was registered.  Does nothing if it never was."""
        self._hooks = [item for item in self._hooks if item[3]() != hook]

    def __len__(self) -> int:
        return sum(1 for *_, held, _ in self._hooks if held() is not None)

    def run(self, pressure: Pressure, on_error: Callable[[str, BaseException], None]) -> Iterator[ReliefStep]:
        """Run the hooks due at this pressure, in order; yields what each did.

        A hook that raises, `SystemExit` included, is reported to *on_error* and removed.
        """
        rank = HOOK_LEVELS.index(pressure.level)
        for entry in self._hooks:
            _, _, level, held, name = entry
            if HOOK_LEVELS.index(level) > rank:
                continue
            hook = held()
            if hook is None:
                self._hooks = [item for item in self._hooks if item is not entry]
                continue
            try:
                freed = _bytes_freed(hook(pressure))
            except BaseException as error:
                self._hooks = [item for item in self._hooks if item is not entry]
                on_error(name, error)
                continue
            yield ReliefStep(name, freed)


def _bytes_freed(told: object) -> float | None:
    """What a hook returned, if it is a sane number of bytes."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    return float(told) if abs(told) < 2**62 else None


def hook_name(hook: Callable[..., Any]) -> str:
    """`module.qualified_name` of a callable; never its repr, which may run user code."""
    owner = getattr(hook, "__func__", hook)
    module = getattr(owner, "__module__", None) or type(hook).__module__
    name = getattr(owner, "__qualname__", None) or type(hook).__qualname__
    return f"{module}.{name}"


def _holder(hook: Hook) -> Callable[[], Hook | None]:
    if isinstance(hook, MethodType):
        return weakref.WeakMethod(hook)
    if hasattr(hook, "__qualname__"):  # functions, builtins, classes, and what functools wraps as one
        return lambda: hook
    try:
        return weakref.ref(hook)
    except TypeError:
        return lambda: hook
