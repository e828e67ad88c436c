"""Watchers with a scripted leak, for the tests of sinks; no process is harmed and no time passes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from memwatch.testing import FakeClock, ScriptedSource
from memwatch.watcher import Watcher

MIB = 2.0**20


def ramp(mib_per_tick: float = 2.0, start_mib: float = 100.0, ticks: int = 400, flat: int = 0) -> list[dict[str, float]]:
    """A straight leak of small Python objects, after a flat part."""
    return [
        {
            "rss": (start_mib + mib_per_tick * max(0, n - flat)) * MIB,
            "heap": (start_mib / 2 + mib_per_tick * max(0, n - flat)) * MIB,
            "native": 20.0 * MIB,
            "blocks": 1e6 + 2e4 * max(0, n - flat),
            "cpu": n * 1.0,
            "fds": 9.0,
            "threads": 4.0,
            "sockets": 2.0,
        }
        for n in range(ticks)
    ]


def watcher_of(readings: Iterable[Mapping[str, float] | Exception], sinks: list[Any], **options: Any) -> tuple[Watcher, FakeClock]:
    """A watcher of these readings, without a record or a thread."""
    clock = FakeClock()
    options = {"memory_limit": "4GiB", "name": "api", "directory": False, "cleanup_interval": False} | options
    return Watcher(interval="10s", clock=clock, source=ScriptedSource(readings), sinks=sinks, **options), clock


def run(watcher: Watcher, clock: FakeClock, ticks: int) -> list[str]:
    """Tick at the interval; the states."""
    states = []
    for _ in range(ticks):
        states.append(watcher.tick().state)
        clock.advance(10.0)
    return states


def promtool() -> str:
    """Prometheus's own tool, of the Debian package of that name."""
    return _program("promtool")


def prometheus() -> str:
    """A Prometheus."""
    return _program("prometheus")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"elsewhere: {name} is not installed (Debian: apt-get install prometheus)")
    return found
