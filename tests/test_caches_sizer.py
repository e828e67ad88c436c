"""The sizer against what tracemalloc says that a value holds."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from memwatch.caches import register_sizeof, sizeof, sizer

ROW = json.dumps({"id": 7, "name": "somebody", "mail": "s@example.org", "tags": ["a-tag", "b-tag"], "scores": [1.5, 2.5, 3.5]})
Point = namedtuple("Point", "x y")


@dataclass
class Plain:
    name: str
    numbers: list[float]


class Slotted:
    __slots__ = ("_hidden", "name", "never_set")

    def __init__(self, name: str) -> None:
        self.name = name
        self._hidden = [name + "!"]


def truth(make: Callable[[int], Any], count: int = 200) -> float:
    """Bytes that one value holds, by the allocator, of *count* made in turn."""
    make(-1)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [make(number) for number in range(count)]
        grown = tracemalloc.get_traced_memory()[0] - before - sys.getsizeof(kept)
    finally:
        tracemalloc.stop()
    return grown / count


CASES: dict[str, tuple[Callable[[int], Any], float]] = {
    "text": (lambda number: "x" * (1000 + number), 0.02),
    "bytes": (lambda number: b"x" * (100_000 + number), 0.01),
    "a row": (lambda number: json.loads(ROW), 0.1),
    "100 rows": (lambda number: [json.loads(ROW) for _ in range(100)], 0.1),
    "1,536 floats": (lambda number: [number + index / 3 for index in range(1536)], 0.05),
    "10,000 floats": (lambda number: [number + index / 3 for index in range(10_000)], 0.05),
    "a dictionary of 1,000 texts": (lambda number: {f"k{index}-{number}": f"v{index}-{number}" for index in range(1000)}, 0.1),
    "a set of 500 texts": (lambda number: {f"k{index}-{number}" for index in range(500)}, 0.1),
    "a deque of 1,000 floats": (lambda number: deque(number + index / 3 for index in range(1000)), 0.2),
    "a dataclass": (lambda number: Plain(f"name {number}", [number + 0.5]), 0.35),
    "an object with slots": (lambda number: Slotted(f"name {number}"), 0.25),
    "a named tuple": (lambda number: Point(number + 0.5, f"y {number}"), 0.25),
    "an ordered dictionary": (lambda number: OrderedDict((f"k{index}{number}", index + 0.5) for index in range(20)), 0.35),
}


@pytest.mark.parametrize("name", CASES)
def test_a_value_is_sized_as_what_it_holds(name: str) -> None:
    make, within = CASES[name]
    held = truth(make, 20 if "00" in name else 200)
    assert sizeof(make(100)) == pytest.approx(held, rel=within)


def test_arrays_are_sized_by_what_they_keep_alive() -> None:
    numpy = pytest.importorskip("numpy", reason="elsewhere: numpy has no wheel for this interpreter")
    whole = numpy.zeros(1_000_000, dtype="float64")
    assert sizeof(whole) == pytest.approx(8_000_000, rel=0.001)
    assert sizeof(whole[:10]) == pytest.approx(8_000_000, rel=0.001)  # a view keeps all of it
    assert sizeof(whole[:10].copy()) < 400
    assert sizeof({"vector": numpy.zeros(1536, dtype="float32")}) == pytest.approx(6144 + 400, rel=0.1)
    assert sizeof(memoryview(bytearray(10_000))) == pytest.approx(10_000, rel=0.05)


def test_the_program_may_say_how_large_its_own_types_are() -> None:
    class Remote:
        pass

    class Special(Remote):
        pass

    register_sizeof(Remote, lambda remote: 5000)
    try:
        assert sizeof(Remote()) == sizeof(Special()) == 5000
        assert 10_000 < sizeof([Remote(), Special()]) < 10_200
    finally:
        sizer._registered.clear()
    with pytest.raises(TypeError, match="int is not callable"):
        register_sizeof(Remote, 5)  # type: ignore[arg-type]


def test_no_value_however_it_is_made_stops_the_sizer_or_takes_long() -> None:
    ring: list[Any] = []
    ring.append(ring)
    deep: Any = None
    for _ in range(100_000):
        deep = [deep]

    class Evil:
        def __sizeof__(self) -> int:
            raise RuntimeError("evil")

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("evil")

    class Proxy:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError("outside of its context")

    for value in (ring, deep, Evil(), Proxy(), (one for one in range(3)), [object()] * 10, {1: ring, 2: {3: ring}}):
        assert 0 <= sizeof(value) < 10_000_000
    looked = []

    class Counted:
        def __sizeof__(self) -> int:
            looked.append(1)
            return 100

    sizeof([[Counted() for _ in range(100)] for _ in range(1000)])
    assert len(looked) <= sizer.MOST_OBJECTS
    while deep is not None:  # or its end would be a long recursion
        deep = deep[0]
