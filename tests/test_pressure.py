from __future__ import annotations

import gc
from typing import Any

import pytest

import memwatch
from memwatch.pressure import Pressure, PressureGauge, ReliefHooks, hook_name

WARNING = Pressure("warning", 700.0, 1000.0, 50.0)
CRITICAL = Pressure("critical", 900.0, 1000.0, 100.0)
PERIODIC = Pressure("periodic", 100.0, 1000.0, None)


def fail_if_called(name: str, error: BaseException) -> None:
    raise AssertionError((name, error))


def levels(gauge: PressureGauge, readings: list[float]) -> list[str]:
    seen = []
    for reading in readings:
        gauge.update(reading, 700.0, 850.0)
        seen.append(gauge.level)
    return seen


def test_levels_are_entered_at_their_threshold_and_left_only_below_the_margin() -> None:
    assert levels(PressureGauge(), [699, 700, 690, 666, 664, 700]) == [
        "normal",
        "warning",
        "warning",
        "warning",
        "normal",
        "warning",
    ]


def test_a_level_hovering_at_its_threshold_does_not_flap() -> None:
    gauge = PressureGauge()
    changes = [gauge.update(700 + (-1) ** index * 10, 700.0, 850.0) for index in range(100)]
    assert sum(change is not None for change in changes) == 1


def test_critical_falls_to_warning_before_normal_and_a_jump_passes_both() -> None:
    assert levels(PressureGauge(), [900, 820, 800, 100]) == ["critical", "critical", "warning", "normal"]


def test_without_a_limit_there_are_no_levels() -> None:
    gauge = PressureGauge()
    assert gauge.update(1e12, None, None) is None
    assert gauge.level == "normal"


def test_a_level_is_left_when_its_limit_is_lifted() -> None:
    gauge = PressureGauge()
    gauge.update(900, 700.0, 850.0)
    change = gauge.update(900, None, None)
    assert change is not None
    assert change.after == "normal"


def test_hooks_run_by_priority_then_in_the_order_of_registration() -> None:
    hooks, ran = ReliefHooks(), []
    for name, priority in (("late", 5), ("first", -1), ("middle", 0), ("middle too", 0)):
        hooks.add(lambda pressure, name=name: ran.append(name), priority=priority)
    list(hooks.run(WARNING, fail_if_called))
    assert ran == ["first", "middle", "middle too", "late"]


def test_a_hook_runs_at_its_level_and_above_and_is_told_the_pressure() -> None:
    hooks, told = ReliefHooks(), []
    kept = []
    for level in ("periodic", "warning", "critical"):

        def hook(pressure: Pressure, level: str = level) -> None:
            told.append((level, pressure.level))

        kept.append(hook)
        hooks.add(hook, level=level)
    for pressure in (PERIODIC, WARNING, CRITICAL):
        list(hooks.run(pressure, fail_if_called))
    assert told == [
        ("periodic", "periodic"),
        ("periodic", "warning"), ("warning", "warning"),
        ("periodic", "critical"), ("warning", "critical"), ("critical", "critical"),
    ]  # fmt: skip


def test_a_bound_method_does_not_keep_its_object_and_goes_with_it() -> None:
    class Cache:
        def shrink(self, pressure: Pressure) -> int:
            return 7

    hooks, cache = ReliefHooks(), Cache()
    hooks.add(cache.shrink)
    assert [step.freed_bytes for step in hooks.run(WARNING, fail_if_called)] == [7.0]
    del cache
    gc.collect()
    assert list(hooks.run(WARNING, fail_if_called)) == []
    assert len(hooks) == 0


def test_a_lambda_stays_until_it_is_removed() -> None:
    hooks = ReliefHooks()
    hooks.add(hook := lambda pressure: 1)
    hooks.add(lambda pressure: None)
    gc.collect()
    assert len(list(hooks.run(WARNING, fail_if_called))) == 2
    hooks.remove(hook)
    assert len(list(hooks.run(WARNING, fail_if_called))) == 1


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_hook_that_raises_is_told_by_name_dropped_and_the_others_go_on(error: BaseException) -> None:
    hooks, failed = ReliefHooks(), []

    def breaks(pressure: Pressure) -> None:
        raise error

    hooks.add(breaks)
    hooks.add(lambda pressure: 3)
    for _ in range(2):
        assert [step.freed_bytes for step in hooks.run(WARNING, lambda name, error: failed.append((name, error)))] == [3.0]
    assert failed == [(hook_name(breaks), error)]


def test_a_hook_may_add_and_remove_hooks_while_they_run() -> None:
    hooks, ran = ReliefHooks(), []

    def first(pressure: Pressure) -> None:
        ran.append("first")
        hooks.remove(second)
        hooks.add(lambda pressure: ran.append("third"))

    hooks.add(first)
    hooks.add(second := lambda pressure: ran.append("second"), priority=1)
    list(hooks.run(WARNING, fail_if_called))
    assert ran[0] == "first"
    list(hooks.run(WARNING, fail_if_called))
    assert ran.count("third") == 1
    assert ran.count("second") <= 1


@pytest.mark.parametrize(
    ("returned", "freed"),
    [(None, None), (12, 12.0), (1.5, 1.5), ("lots", None), (True, None), (10**400, None), (float("nan"), None)],
)
def test_only_a_number_counts_as_bytes_freed(returned: Any, freed: float | None) -> None:
    hooks = ReliefHooks()
    hooks.add(lambda pressure: returned)
    assert [step.freed_bytes for step in hooks.run(WARNING, fail_if_called)] == [freed]


def test_what_is_not_callable_and_an_unknown_level_are_refused() -> None:
    with pytest.raises(TypeError, match="must be callable, not int"):
        ReliefHooks().add(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'urgent' is not one of periodic, warning, critical"):
        ReliefHooks().add(print, level="urgent")  # type: ignore[arg-type]


def test_on_cleanup_serves_as_a_decorator_and_leaves_the_function_as_it_is() -> None:
    @memwatch.on_cleanup
    def drop(pressure: Pressure) -> int:
        return 5

    @memwatch.on_cleanup(priority=1, level="critical")
    def drop_more(pressure: Pressure) -> int:
        return 6

    try:
        assert (drop(WARNING), drop_more(CRITICAL)) == (5, 6)
    finally:
        memwatch.remove_cleanup(drop)
        memwatch.remove_cleanup(drop_more)


def test_the_name_of_a_hook_never_runs_its_repr() -> None:
    class Loud:
        def __repr__(self) -> str:
            raise AssertionError("user code ran")

        def __call__(self, pressure: Pressure) -> None: ...

    assert hook_name(Loud()).endswith("Loud")


def test_a_priority_that_is_no_integer_is_refused_and_the_next_registration_works() -> None:
    hooks = ReliefHooks()
    with pytest.raises(TypeError, match="priority: str is not a whole number"):
        hooks.add(lambda pressure: None, priority="x")  # type: ignore[arg-type]
    hooks.add(lambda pressure: 1)
    hooks.add(lambda pressure: 2, priority=-1)
    assert [step.freed_bytes for step in hooks.run(WARNING, fail_if_called)] == [2.0, 1.0]
