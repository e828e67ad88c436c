"""Which limits apply to a test: the closest wins, key by key.

Function marker > class > module > path in the ini > the session's options.  The markers of pytest-memray are aliases.

Law: a malformed limit is a usage error that names the test; nothing has run by then.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from memwatch.gate.limits import RESOURCES, LimitError, count_of, size_of
from pytest_memwatch.options import Settings, channels, flag

ALIASES = ("limit_memory", "limit_leaks", "limit_leaked_objects")
_KEYS = {
    "growth": size_of, "max_growth": size_of, "peak": size_of, "max_peak": size_of,
    "fds": count_of, "threads": count_of, "children": count_of, "tasks": count_of, "rerun": count_of, "warmup": count_of,
}  # fmt: skip
_MEMRAY_SIZE = re.compile(r"\s*\+?(\d*\.\d+|\d+)\s*([KMGTP]?)B\s*", re.IGNORECASE)
LONGEST_NUMBER = 18


@dataclass(frozen=True)
class Limits:
    """What one test may do."""

    growth: int | None = None
    peak: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    """Resource to the number a test may leave."""
    rerun: int = 3
    warmup: int = 0
    ignore: tuple[str, ...] = ()
    """Patterns of sites and resources that do not count."""
    strict: bool = False
    enabled: bool = False
    """Whether the test is checked."""
    reason: str | None = None
    filter_stack: Callable[[Any], bool] | None = None
    """pytest-memray's `filter_fn` of `limit_leaks`: whether a stack counts."""
    filter_object: Callable[[Any], bool] | None = None
    """pytest-memray's `filter_fn` of `limit_leaked_objects`."""
    objects: bool = False
    """No object made in the test may be left."""
    alias: str | None = None
    """The alias that set a limit, for messages."""


def memray_size(name: str, value: object) -> int:
    """A size as pytest-memray reads it: KB, MB, GB are powers of 1024.

    Raises:
        LimitError: malformed.
    """
    match = _MEMRAY_SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or len(match[1]) > LONGEST_NUMBER:
        raise LimitError(f"{name}({value!r}): not a size such as '24 MB'")
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))


class Rules:
    """The limits of a session.

    Args:
        on: check every test, not only marked ones.
        aliases: markers of pytest-memray that are ours.

    Raises:
        pytest.UsageError: a limit by path is malformed.
    """

    def __init__(self, settings: Settings, *, on: bool, aliases: tuple[str, ...]) -> None:
        self._aliases = aliases
        self._default = Limits(
            growth=settings.growth,
            peak=settings.peak,
            counts=dict.fromkeys(settings.resources, 0),
            rerun=settings.rerun,
            warmup=settings.warmup,
            strict=settings.strict,
            enabled=on,
        )
        self._paths = [_path_rule(line) for line in settings.limits]

    def of(self, item: pytest.Item) -> Limits:
        """The limits of one test.

        Raises:
            pytest.UsageError: one of its markers is malformed.
        """
        limits = self._default
        try:
            for pattern, given in self._paths:
                if _matches(item, pattern):
                    limits = _with(limits, given, "memwatch_limits")
            for mark in reversed(list(_marks(item, ("memwatch", *self._aliases)))):
                limits = self._apply(limits, mark)
        except LimitError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from None
        return limits

    def is_marked(self, item: pytest.Item) -> bool:
        """Whether a test asks to be checked."""
        return any(True for _ in _marks(item, ("memwatch", *self._aliases)))

    def _apply(self, limits: Limits, mark: pytest.Mark) -> Limits:
        if mark.name == "memwatch":
            if mark.args == (False,):
                return replace(_with(limits, mark.kwargs, "memwatch"), enabled=False)
            if mark.args not in ((), (True,)):
                raise LimitError(f"memwatch{mark.args!r}: limits are named, such as memwatch(growth='1MiB')")
            return _with(replace(limits, enabled=True), mark.kwargs, "memwatch")
        return _with_alias(limits, mark)


def _marks(item: pytest.Item, names: tuple[str, ...]) -> Iterator[pytest.Mark]:
    """The closest first."""
    for mark in item.iter_markers():
        if mark.name in names:
            yield mark


def _with(limits: Limits, given: Mapping[str, Any], what: str) -> Limits:
    changes: dict[str, Any] = {}
    counts = dict(limits.counts)
    for key, value in given.items():
        if key in RESOURCES:
            most = count_of(key, value)
            counts.pop(key, None)
            if most is not None:
                counts[key] = most
        elif key in _KEYS:
            changes[key.removeprefix("max_")] = _KEYS[key](key, value)
        elif key == "resources":
            wanted = channels(key, "none" if value in (False, None) else str(value))
            counts = {channel: counts.get(channel, 0) for channel in wanted}
        elif key == "ignore":
            changes[key] = _patterns(value)
        elif key == "strict":
            changes[key] = flag(key, str(value))
        elif key == "reason":
            changes[key] = value
        else:
            raise LimitError(
                f"{what}({key}=…): unknown; known are {', '.join([*_KEYS, 'resources', 'ignore', 'strict', 'reason'])}"
            )
    for key in ("rerun", "warmup"):
        if key in changes and changes[key] is None:
            changes[key] = 0
    return replace(limits, counts=counts, **changes)


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = (value,) if isinstance(value, str) else value
    if not isinstance(patterns, tuple | list | set | frozenset) or not all(isinstance(one, str) for one in patterns):
        raise LimitError(f"ignore={value!r} is not a pattern, or a list of them")
    return tuple(patterns)


def _with_alias(limits: Limits, mark: pytest.Mark) -> Limits:
    objects = mark.name == "limit_leaked_objects"
    known = {"filter_fn"} if objects else {"filter_fn", "current_thread_only", "location_limit", "memory_limit"}
    unknown, keep = set(mark.kwargs) - known, mark.kwargs.get("filter_fn")
    if unknown:
        raise LimitError(f"{mark.name}({', '.join(sorted(unknown))}=…): unknown")
    if keep is not None and not callable(keep):
        raise LimitError(f"{mark.name}(filter_fn={keep!r}): not a function")
    if len(mark.args) > (0 if objects else 1):
        raise LimitError(f"{mark.name} takes {'no' if objects else 'one'} limit")
    if objects:
        base = limits if limits.enabled else replace(limits, growth=None, counts={})
        return replace(base, enabled=True, objects=True, filter_object=keep, alias=mark.name)
    value = mark.args[0] if mark.args else mark.kwargs.get("location_limit", mark.kwargs.get("memory_limit"))
    size = memray_size(mark.name, value)
    # Who marked a test for pytest-memray asked for one limit, not for ours beside it.
    base = limits if limits.enabled else replace(limits, growth=None, peak=None, counts={})
    if mark.name == "limit_memory":
        return replace(base, enabled=True, peak=size, alias=mark.name)
    return replace(base, enabled=True, growth=max(0, size - 1), filter_stack=keep, alias=mark.name)


def _path_rule(line: str) -> tuple[str, dict[str, Any]]:
    pattern, colon, rest = line.partition(": ") if ": " in line else line.partition(":")
    given: dict[str, Any] = {}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise pytest.UsageError(f"memwatch_limits: {line!r} is not 'GLOB: KEY=VALUE, …'")
        given[key.strip()] = value.strip()
    if not colon or not pattern.strip():
        raise pytest.UsageError(f"memwatch_limits: {line!r} is not 'GLOB: KEY=VALUE, …'")
    try:
        _with(Limits(), given, "memwatch_limits")
    except LimitError as error:
        raise pytest.UsageError(f"memwatch_limits: {line!r}: {error}") from None
    return pattern.strip(), given


def _matches(item: pytest.Item, pattern: str) -> bool:
    """Whether a test's path, or its whole id, is one of a glob's; `**` is any number of folders."""
    try:
        path = item.path.relative_to(item.config.rootpath).as_posix()
    except ValueError:
        path = item.path.as_posix()
    plain = pattern.replace("**/", "*").replace("**", "*")
    return any(fnmatch.fnmatchcase(text, glob) for text in (path, item.nodeid) for glob in (pattern, plain))
