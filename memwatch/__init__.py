"""memwatch watches a Python service from inside and says, before the OOM killer does, whether it leaks.

    import memwatch
    memwatch.start()

Importing does nothing but define names: no thread, no registration, and no module beyond the standard library's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from memwatch.audience import Sink
    from memwatch.blocks import Block
    from memwatch.expectations import Expectation, Expectations
    from memwatch.gate.blocks import checkpoint, limit
    from memwatch.gate.functions import assert_no_leak
    from memwatch.gate.judging import MemoryGrowth
    from memwatch.gate.objects import assert_collected
    from memwatch.model import Freed, Report, Sample, Statistics, Verdict
    from memwatch.pressure import Hook, HookLevel, Pressure, ReliefHooks
    from memwatch.watcher import Watcher

__version__ = "0.1.0"

H = TypeVar("H", bound="Hook")

__all__ = [
    "Freed",
    "MemoryGrowth",
    "Pressure",
    "Report",
    "Sample",
    "SettingError",
    "Statistics",
    "Verdict",
    "Watcher",
    "assert_collected",
    "assert_no_leak",
    "checkpoint",
    "collect_garbage",
    "current",
    "expect_gone",
    "limit",
    "on_cleanup",
    "remove_cleanup",
    "start",
    "stop",
    "track",
]

# Public names that are loaded when first asked for, so that importing costs next to nothing.
_LAZY = {
    "Watcher": "memwatch.watcher",
    "SettingError": "memwatch.config",
    "Pressure": "memwatch.pressure",
    "Freed": "memwatch.model",
    "Report": "memwatch.model",
    "Sample": "memwatch.model",
    "Statistics": "memwatch.model",
    "Verdict": "memwatch.model",
    "MemoryGrowth": "memwatch.gate.judging",
    "assert_collected": "memwatch.gate.objects",
    "assert_no_leak": "memwatch.gate.functions",
    "checkpoint": "memwatch.gate.blocks",
    "limit": "memwatch.gate.blocks",
}

_current: Watcher | None = None
_hooks: ReliefHooks | None = None
_expectations: Expectations | None = None


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if name == "caches":  # so that `memwatch.caches.stats()` needs no import of its own
        import importlib

        return importlib.import_module("memwatch.caches")
    if module is None:
        raise AttributeError(f"module 'memwatch' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def start(
    *,
    interval: str | None = None,
    growth_limit: str | None = None,
    memory_limit: str | None = None,
    warning: float | str | None = None,
    critical: float | str | None = None,
    evidence: str | None = None,
    sample_every: str | None = None,
    directory: str | os.PathLike[str] | bool | None = None,
    labels: Mapping[str, str] | None = None,
    name: str | None = None,
    sinks: Iterable[Sink | str] | None = None,
    on_leak: Callable[[Report], Any] | None = None,
    on_pressure: Callable[[Pressure], Any] | None = None,
    cleanup_interval: str | bool | None = None,
    record_limit: str | None = None,
    request_growth: str | bool | None = None,
    socket: bool | str | None = None,
) -> Watcher:
    """Watch this process.  Returns the running watcher; a second call returns the same one.

    What is not given is read from `MEMWATCH_*` in the environment, else the default in brackets holds.

    Args:
        interval: time between samples, such as `"10s"` [10s].
        growth_limit: a leak at or above this rate is critical, such as `"10MiB/min"` or `"5%/h"` of the limit [10MiB/min].
            Slower leaks are found and reported too.
        memory_limit: `"auto"`, the tightest of cgroup, rlimit and host, or a size such as `"2GiB"` [auto].
        warning, critical: pressure levels, as a fraction of the limit or as a size such as `"500MB"` [0.70, 0.85].
        evidence: how it is found out what grows: `"auto"`, `"off"`, `"sampling"` or `"tracemalloc"` [auto].
        sample_every: bytes between two sampled allocations, on average, such as `"512KiB"` [64KiB, more where they are many].
        directory: where the record goes [`MEMWATCH_DIR`, else the user's state directory]; False for no record.
        labels: kept in the record, such as `{"version": "1.4.2"}`.
        name: what this process is called in reports [from its command].
        sinks: names such as `"sentry"` or `"prometheus"`, functions called with a `Report` when a leak is found, has doubled or is
            over, and at alerts, or objects with methods of `memwatch.audience` [`MEMWATCH_SINKS`, else none].
        on_leak: called with a `Report` when a leak is found or has doubled.
        on_pressure: called with a `Pressure` when a level is entered.
        cleanup_interval: time between periodic clean-ups, or False [5m].
        record_limit: size the record stays within [32MiB].
        request_growth: a single request that grows resident memory by this much is told of, where an integration counts requests;
            False: none is [10MiB].
        socket: `"on"`: `memwatch report --now` of the same user reaches this process; `"control"`: `memwatch gc`, too; `"off"`
            [on].

    Raises:
        SettingError: a setting is unknown or malformed.

    `MEMWATCH_DISABLE=1` makes this a no-op: it returns a watcher that does not run.  In a sub-interpreter, too.
    """
    global _current
    from memwatch import config, forks
    from memwatch.audience import log
    from memwatch.watcher import Watcher

    given = {
        "interval": interval,
        "growth_limit": growth_limit,
        "memory_limit": memory_limit,
        "warning": warning,
        "critical": critical,
        "evidence": evidence,
        "sample_every": sample_every,
        "directory": directory,
        "labels": labels,
        "name": name,
        "cleanup_interval": cleanup_interval,
        "record_limit": record_limit,
        "request_growth": request_growth,
        "socket": socket,
    }
    with forks.lock:
        if _current is not None and not _current.stopped:
            _current.start()  # its thread may have been refused for want of resources
            wanted = config.load(given)
            others = [key for key in wanted.origins if given[key] is not None and key != "labels"]
            differing = [key for key in others if not _current.config.agrees(wanted, key)]
            if labels is not None and not _current.add_labels(wanted.labels):
                differing.append("labels")
            if differing:
                log.warning(
                    "already watching: %s given to start() again is ignored; call memwatch.stop() first to change it",
                    ", ".join(differing),
                )
            _current.add_callbacks(sinks=sinks, on_leak=on_leak, on_pressure=on_pressure)
            return _current
        watcher = Watcher(
            **given,  # type: ignore[arg-type]
            sinks=sinks,
            on_leak=on_leak,
            on_pressure=on_pressure,
            hooks=_relief_hooks(),
            expectations=_awaited(),
        )
        if not config.is_disabled():
            watcher.start()
            _current = watcher
        return watcher


def stop() -> None:
    """Stop the watcher that `start` started.  Does nothing without one; safe from inside a sink or hook."""
    global _current
    if _current is None:
        return  # also in a signal handler that comes while start() is importing
    from memwatch import forks

    with forks.lock:
        watcher, _current = _current, None
    if watcher is not None:
        watcher.stop()


def current() -> Watcher | None:
    """The running watcher that `start` started, or None."""
    watcher = _current
    return watcher if watcher is not None and watcher.running else None


def collect_garbage() -> Freed:
    """Run a full collection and ask malloc to hand free pages back; tell what that freed.

    Cost: about 0.24 s per million containers, with the GIL held: a pause.
    """
    from memwatch.vitals import collect_garbage

    return collect_garbage()


@overload
def on_cleanup(hook: H, priority: int = 0, level: HookLevel = "warning") -> H: ...
@overload
def on_cleanup(hook: None = None, priority: int = 0, level: HookLevel = "warning") -> Callable[[H], H]: ...
def on_cleanup(hook: H | None = None, priority: int = 0, level: HookLevel = "warning") -> H | Callable[[H], H]:
    """Register a function that gives memory back under pressure; returns it, so that it serves as a decorator.

    `@on_cleanup` and `@on_cleanup(priority=1)` both work.

    Args:
        hook: called with a `Pressure`; returns the bytes it freed, or None.  A bound method or callable object is held weakly: it
            goes with its object.  A function is held until `remove_cleanup(hook)`.
        priority: lower runs first.
        level: `"warning"` hooks run at the warning and critical levels, `"critical"` ones at critical only, `"periodic"` ones at
            every clean-up.

    Raises:
        TypeError, ValueError: not callable, or an unknown level.
    """
    if hook is None:
        return lambda decorated: on_cleanup(decorated, priority, level)
    _relief_hooks().add(hook, priority=priority, level=level)
    return hook


def remove_cleanup(hook: Hook) -> None:
    """Forget a hook that `on_cleanup` registered.  Does nothing if it never did."""
    _relief_hooks().remove(hook)


def track(name: str) -> Block:
    """Measure how much a block of code grows the process: `with track("name") as block:` or a decorator, also of coroutines.

    RSS belongs to the whole process: what other threads allocate meanwhile counts too.  Each `with` block is noted in the record of
    the running watcher; of decorated functions, only calls that grew by 1 MiB or more.

    Cost: two readings of RSS, about 5 µs each while a watcher runs (else 50 µs), and two counts of the allocator's blocks, left out
    above 256 MiB, where they would take longer than 1 ms.
    """
    from memwatch.blocks import Block

    return Block(name, _resident_bytes, _note_block)


def expect_gone(obj: object, within: str = "30s", reason: str = "") -> Expectation:
    """Expect an object to be gone within a time; if it is still alive then, that is a finding, with who holds it.

    Args:
        obj: anything that can be weakly referenced; it is not kept.
        within: such as `"30s"`.
        reason: why it should be gone, such as `"request finished"`; shown in the finding.

    Raises:
        TypeError: *obj* cannot be weakly referenced.
        memwatch.units.UnitError: *within* is malformed.
    """
    from memwatch.units import parse_duration

    return _awaited().add(obj, now_s=time.monotonic(), within_s=parse_duration(within), reason=reason)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext memwatch` in Jupyter and IPython."""
    import importlib

    importlib.import_module("memwatch.integrations.jupyter").load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext memwatch`."""
    import importlib

    importlib.import_module("memwatch.integrations.jupyter").unload(shell)


def _relief_hooks() -> ReliefHooks:
    global _hooks
    if _hooks is None:
        from memwatch.pressure import ReliefHooks

        _hooks = ReliefHooks()
    return _hooks


def _awaited() -> Expectations:
    global _expectations
    if _expectations is None:
        from memwatch.expectations import Expectations

        _expectations = Expectations()
    return _expectations


def _resident_bytes() -> float | None:
    watcher = current()
    if watcher is not None:
        return watcher.read_rss()
    from memwatch.vitals import Vitals

    with Vitals() as vitals:
        return vitals.read_rss()


def _note_block(details: dict[str, Any]) -> None:
    watcher = current()
    if watcher is not None:
        watcher.note("block", details)
