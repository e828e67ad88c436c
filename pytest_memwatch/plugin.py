"""The hooks that are always there: settings are declared, and the gate is set up where it is asked for.

Law: an installed plugin that nobody asked for changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_memwatch import limits, options

GATE = "memwatch-gate"


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "memwatch(growth=None, peak=None, fds=0, threads=0, children=0, tasks=0, rerun=3, warmup=0, ignore=(), strict=False, "
        "reason=None): limits of what the test may retain and use; memwatch(False, reason=…) switches the check off.",
    )
    if not has_pytest_memray(config):
        for line in (
            "limit_memory(size): the body may allocate less than this at once (pytest-memray's marker, checked by memwatch).",
            "limit_leaks(size, filter_fn=None): the test may retain less than this (pytest-memray's marker, checked by memwatch).",
            "limit_leaked_objects(filter_fn=None): no object made in the test may be left (pytest-memray's marker).",
        ):
            config.addinivalue_line("markers", line)
    settings = options.load(config)
    limits.Rules(settings, on=False, aliases=())  # what is malformed is told now, by the controller of workers, too
    if options.is_on(config):
        _gate(config, on=True)
    elif getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput"):
        from pytest_memwatch import baseline

        baseline.read(settings)
        config.pluginmanager.register(Receiver(config), f"{GATE}-receiver")


def has_pytest_memray(config: pytest.Config) -> bool:
    """Whether pytest-memray itself is active: its markers are its own then."""
    return config.pluginmanager.hasplugin("memray") or config.pluginmanager.hasplugin("memray_manager")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    state = options.is_on(config)
    if state is None:
        return
    names = ("memwatch",) if has_pytest_memray(config) else ("memwatch", "limit_memory", "limit_leaks", "limit_leaked_objects")
    if not state and not any(mark.name in names for item in items for mark in item.iter_markers()):
        asked_for = config.getoption("memwatch_baseline", None)
        if asked_for is not None and items:
            # As when pytest lost the ini file that says `memwatch = true`: a gate that checks nothing must not look like a pass.
            told = f"memwatch is off and no test is marked: no test is compared with {asked_for}; is --memwatch missing?"
            warnings.warn(pytest.PytestWarning(told), stacklevel=1)
        return
    _gate(config, on=state).prepare(items)


class Receiver:
    """On the controller of workers: takes their results where only markers asked for the gate, which it has not seen."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        if hasattr(report, "memwatch") and self._config.pluginmanager.get_plugin(GATE) is None:
            _gate(self._config, on=False).pytest_runtest_logreport(report)


@pytest.fixture
def memwatch(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The module memwatch: `memwatch.limit`, `memwatch.assert_no_leak`, `memwatch.assert_collected`, `memwatch.checkpoint`."""
    import memwatch as module

    yield module


def _gate(config: pytest.Config, *, on: bool) -> Any:
    gate = config.pluginmanager.get_plugin(GATE)
    if gate is None:
        from pytest_memwatch.gate import Gate

        gate = Gate(config, on=on)
        config.pluginmanager.register(gate, GATE)
        config.add_cleanup(gate.close)
    return gate
