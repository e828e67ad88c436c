"""Growth of one block of code: `track`.

RSS belongs to the process: where other threads or tasks run meanwhile, what they allocate is in the figure too.  The result says
how often that could have been so.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar

from memwatch.osthread import get_ident
from memwatch.units import format_size

P = ParamSpec("P")
R = TypeVar("R")

Tell = Callable[[dict[str, Any]], None]

COUNT_BELOW_BYTES = 256 * 2**20
"""Counting the allocator's blocks walks all of its pools with the GIL held: 6 ms at 1 GiB, under 1 ms below this."""
TELL_BYTES = 2**20
"""Growth of less than this by one call of a decorated function is counted, not told: a function may be called millions of times."""
TELL_BLOCK_BYTES = 2**16
"""The same for a `with` block, after its first run."""


class Growth(NamedTuple):
    """What one run of the block changed; None where it could not be read."""

    rss_bytes: float | None
    blocks: float | None
    """Live allocator blocks; None on heaps so large that counting them would pause the program."""
    took_s: float


class _Reading(NamedTuple):
    rss: float | None
    blocks: float | None


class Block:
    """Measures growth: `with track("load") as block: …`, then `block.growth`; or as a decorator of functions and coroutines.

    `calls`, `total_rss_bytes` and `peak_growth_bytes` add up over all uses of this object.
    """

    def __init__(self, name: str, read_rss: Callable[[], float | None], tell: Tell) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"track() takes the name of the block, not {name!r}")
        self.name = name
        self.growth: Growth | None = None
        """Of the last run that ended; None before."""
        self.calls = 0
        self.overlapping = 0
        """Runs during which another run of this block was under way: their figures share what they allocated."""
        self.total_rss_bytes = 0.0
        self.peak_growth_bytes = 0.0
        self._read_rss = read_rss
        self._tell = tell
        self._open: dict[int, list[tuple[_Reading, float]]] = {}
        self._running = 0

    def __repr__(self) -> str:
        return f"<track {self.name!r}: {self.calls} calls, {format_size(self.total_rss_bytes, sign=True)} resident>"

    def __enter__(self) -> Self:
        self._open.setdefault(get_ident(), []).append(self._begin())
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        ident = get_ident()
        stack = self._open.get(ident)
        if stack:
            self._end(*stack.pop(), worth_bytes=TELL_BLOCK_BYTES if self.calls else 0)
            if not stack:
                self._open.pop(ident, None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.__exit__(kind, value, trace)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, a coroutine function or an (asynchronous) generator function."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def measured_coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                begun = self._begin()
                try:
                    return await function(*args, **kwargs)
                finally:
                    self._end(*begun, worth_bytes=TELL_BYTES)

            return measured_coroutine  # type: ignore[return-value]
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"track() cannot decorate the generator {function.__qualname__}: its body runs in pieces; "
                "use 'with memwatch.track(…)' inside it"
            )

        @functools.wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> R:
            begun = self._begin()
            try:
                return function(*args, **kwargs)
            finally:
                self._end(*begun, worth_bytes=TELL_BYTES)

        return measured

    def _reading(self) -> _Reading:
        rss = self._read_rss()
        countable = rss is not None and rss <= COUNT_BELOW_BYTES
        return _Reading(rss, sys.getallocatedblocks() if countable and hasattr(sys, "getallocatedblocks") else None)

    def _begin(self) -> tuple[_Reading, float]:
        if self._running:
            self.overlapping += 1
        self._running += 1
        return self._reading(), time.perf_counter()

    def _end(self, before: _Reading, started_s: float, *, worth_bytes: float) -> None:
        took_s = time.perf_counter() - started_s
        after = self._reading()
        self._running -= 1
        self.calls += 1

        self.growth = Growth(_difference(before.rss, after.rss), _difference(before.blocks, after.blocks), took_s)
        rss = self.growth.rss_bytes or 0.0
        self.total_rss_bytes += rss
        self.peak_growth_bytes = max(self.peak_growth_bytes, rss)
        if abs(rss) >= worth_bytes:
            self._tell(
                {
                    "name": self.name,
                    "rss": self.growth.rss_bytes,
                    "blocks": self.growth.blocks,
                    "took_s": round(took_s, 4),
                    "calls": self.calls,
                }
            )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
