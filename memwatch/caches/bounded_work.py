"""Large jobs under a memory budget: loaded in batches, as many at once as fit, and none while the process is short of memory.

Law: what is under way never holds more than the budget by what is known of the sizes; a job goes slower rather than be killed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from memwatch.caches import registry
from memwatch.caches.sizer import sizeof
from memwatch.units import parse_size

K = TypeVar("K")
V = TypeVar("V")

FIRST_BATCH = 8
"""Keys of the first batch: from what it loads, the sizes of the next are known."""
MOST_PER_BATCH = 1000
PAUSE_S = 0.1
"""How often a paused job looks whether it may go on."""
PATIENCE_S = 60.0
"""After so long under pressure a paused job loads one small batch all the same: it may be the one that nobody but it can
relieve."""


def batch(
    load_many: Callable[[Sequence[K]], Mapping[K, V] | Iterable[V]],
    keys: Iterable[K],
    *,
    max_bytes: int | str = "64MB",
    concurrency: int = 1,
    size: Callable[[V], int] = sizeof,
    most_per_batch: int = MOST_PER_BATCH,
    is_under_pressure: Callable[[], bool] | None = None,
) -> Iterator[tuple[K, V]]:
    """Load many things in batches, and hand them out one by one, in the order of *keys*.

        for key, vector in caches.batch(embed, documents, max_bytes="200MB", concurrency=4):
            store(key, vector)

    Args:
        load_many: called with a list of keys, in threads of its own if *concurrency* is above 1; returns a mapping, or the values
            in the
            order of the keys.  A key that the mapping has not is left out.
        keys: any number; taken as needed.
        max_bytes: what loaded values that were not handed out yet may hold together.
        concurrency: batches loaded at once.
        size: bytes of a value.
        most_per_batch: keys of a batch.
        is_under_pressure: whether to pause; by default while the watcher of this process reports a pressure level.

    Raises:
        what *load_many* raises, when its batch would be handed out; ValueError: an argument that cannot be, or a number of values
        other than that of the keys.

    The size of a batch follows what the values before it held: the first has 8 keys.
    """
    budget = parse_size(max_bytes) if isinstance(max_bytes, str) else max_bytes
    if budget <= 0 or concurrency < 1 or most_per_batch < 1:
        given = f"max_bytes={max_bytes!r}, concurrency={concurrency!r}, most_per_batch={most_per_batch!r}"
        raise ValueError(f"{given}: all must be above 0")
    pause = registry.is_under_pressure if is_under_pressure is None else is_under_pressure
    return _run(load_many, iter(keys), float(budget), concurrency, size, most_per_batch, pause)


def _run(
    load_many: Callable[[Sequence[K]], Any],
    keys: Iterator[K],
    budget: float,
    concurrency: int,
    size: Callable[[V], int],
    most: int,
    is_under_pressure: Callable[[], bool],
) -> Iterator[tuple[K, V]]:
    sizes = _Sizes(budget / concurrency, most)
    wake = threading.Event()
    if concurrency == 1:  # in the caller's own thread: what is loaded may belong to it
        while part := list(islice(keys, _patiently(is_under_pressure, wake, sizes.next_count()))):
            pairs: deque[tuple[K, V]] = _pairs(part, load_many(part))
            sizes.learn([size(value) for _, value in pairs])
            while pairs:
                yield pairs.popleft()
        return
    under_way: deque[tuple[list[K], Future[Any]]] = deque()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="memwatch-batch") as pool:
        try:
            while True:
                while len(under_way) < concurrency:
                    if under_way and (not sizes.are_known or is_under_pressure()):
                        break
                    count = sizes.next_count()
                    part = list(islice(keys, count if under_way else _patiently(is_under_pressure, wake, count)))
                    if not part:
                        break
                    under_way.append((part, pool.submit(load_many, part)))
                if not under_way:
                    return
                part, future = under_way.popleft()
                pairs = _pairs(part, future.result())
                del future  # it holds all of them
                sizes.learn([size(value) for _, value in pairs])
                while pairs:
                    yield pairs.popleft()
        finally:
            for _, future in under_way:
                future.cancel()


class _Sizes:
    """How many keys the next batch has, from what the values before it held.

    Args:
        budget: bytes of a batch.
        most: keys of a batch.
    """

    def __init__(self, budget: float, most: int) -> None:
        self._budget, self._most = budget, most
        self._typical: float | None = None
        self._last = min(most, FIRST_BATCH)

    @property
    def are_known(self) -> bool:
        """Whether something has been loaded yet."""
        return self._typical is not None

    def next_count(self) -> int:
        """At least 1; at most twice as many as the last time, for the next values may be larger than those before."""
        if self._typical is not None:
            self._last = int(max(1, min(self._most, 2 * self._last, self._budget / max(self._typical, 1.0))))
        return self._last

    def learn(self, sizes: list[int]) -> None:
        """Bytes of the values of a batch.  The larger half counts, and what is smaller than before counts by half."""
        if sizes:
            upper = sorted(sizes, reverse=True)[: max(1, len(sizes) // 2)]
            mean = sum(upper) / len(upper)
            self._typical = mean if self._typical is None else max(mean, 0.5 * self._typical + 0.5 * mean)


def _patiently(is_under_pressure: Callable[[], bool], wake: threading.Event, count: int) -> int:
    """Wait while the process is short of memory; how many keys to take then."""
    until_s = time.monotonic() + PATIENCE_S
    while is_under_pressure():
        if time.monotonic() >= until_s:
            return max(1, min(count, FIRST_BATCH))
        wake.wait(PAUSE_S)
    return count


def _pairs(part: list[K], loaded: Any) -> deque[tuple[K, V]]:
    if isinstance(loaded, Mapping):
        return deque((key, loaded[key]) for key in part if key in loaded)
    values = list(loaded)
    if len(values) != len(part):
        raise ValueError(f"load_many returned {len(values)} values for {len(part)} keys")
    return deque(zip(part, values, strict=True))
