"""`assert_no_leak`: call a function until it is sure whether each call keeps something.

Law: one quiet round acquits; only growth in every round that does not fade convicts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from memwatch import units
from memwatch.gate import resources
from memwatch.gate.blocks import counted as named
from memwatch.gate.blocks import parts
from memwatch.gate.explaining import Explanation, LineMeter, Look
from memwatch.gate.judging import MemoryGrowth, is_fading
from memwatch.gate.limits import LimitError, size_of
from memwatch.gate.readings import RESOURCES, Growth, Reader, between
from memwatch.gate.settling import settle

ROUNDS = 4
"""Growing rounds in a row that are a leak, if they do not fade."""
MOST_ROUNDS = 10
"""Source: psleak."""
ESCALATION = 1.5
"""Each further round calls so many times more often.  Source: psleak."""
ENOUGH_S = 60.0
"""No round begins after this long."""


def assert_no_leak(
    function: Callable[[], object],
    times: int = 200,
    *,
    warmup: int = 10,
    per_call: str | int = 1,
    counted: tuple[str, ...] = RESOURCES,
) -> float:
    """Call a function again and again, and fail if each call keeps memory or a resource.

    Args:
        function: called without arguments; for others `lambda: f(x)`.
        times: calls of the first round; later ones have more.
        warmup: calls before the first round.
        per_call: bytes that a call may keep, on average.
        counted: of `fds`, `threads`, `children`, `tasks`, those that may not grow either.

    Returns:
        Bytes that a call kept in the last round, on average.

    Raises:
        MemoryGrowth: it leaks; the message has the rate per call, the allocator, the line and the holder.
        memwatch.gate.limits.LimitError: *per_call* is malformed.
        ValueError: *times* is less than 1, or *warmup* less than 0.

    Cost: *times* and *warmup* calls for a function that does not leak; up to 10 growing rounds for one that seems to, but none
    is begun after a minute.
    """
    __tracebackhide__ = True
    most = size_of("per_call", per_call)
    if most is None:
        raise LimitError("per_call=None: a call has to be limited to something")
    if times < 1 or warmup < 0:
        raise ValueError("times is at least 1, and warmup at least 0")
    for _ in range(warmup):
        function()
    rates: list[float] = []
    counts: list[int] = []
    rounds: list[Growth] = []
    began_s, calls = time.monotonic(), times
    reader = Reader()
    try:
        # What the measuring itself needs at its first time is there then, and what was garbage before is gone.
        _round(function, max(1, min(warmup, times)), reader, counted)
        while True:
            growth, arrived = _round(function, calls, reader, counted)
            kept = growth.heap if growth.heap is not None else growth.rss or 0
            resident = (growth.rss or 0) - max(0, kept)
            if resident > max(calls * max(most, 4096), 2**20):  # mapped outside malloc: told in pages
                kept += resident
            rates.append(kept / calls)
            rounds.append(growth)
            counts.append(sum(arrival.number for arrival in arrived))
            grows, piles_up = rates[-1] > most, counts[-1] > 0
            if not grows and not piles_up:
                return max(0.0, rates[-1])
            every = [rate for rate in rates if rate > most] if len(rates) == sum(rate > most for rate in rates) else []
            leaks = len(every) >= ROUNDS and not is_fading([round(rate * 1000) for rate in rates])
            piles = len(counts) >= 2 and all(counts)
            over = len(rates) >= MOST_ROUNDS or time.monotonic() - began_s > ENOUGH_S
            if leaks or piles:
                break
            if over:
                return max(0.0, rates[-1])
            calls = int(calls * ESCALATION)
    finally:
        reader.close()
    if piles:
        arrival = arrived[0]
        raise MemoryGrowth(
            f"each round leaves more: {named(arrival.number, arrival.channel)} after {calls} calls: {arrival.group}"
            + "".join(f"\n  made at  {line}" for line in arrival.trail[:2]),
            {"calls": calls, "resources": [one._asdict() for one in arrived], "exceeded": [arrival.channel]},
        )
    raise _leak(function, rates, rounds, calls, most)


def _round(
    function: Callable[[], object], calls: int, reader: Reader, counted: tuple[str, ...]
) -> tuple[Growth, list[resources.Arrival]]:
    settle(reader)
    seen = resources.look(counted)
    before = reader.read(small=True)
    for _ in range(calls):
        function()
    settle(reader, before, channels=counted)
    return between(before, reader.read(small=True)), resources.arrivals(seen, resources.look(counted))


def _leak(function: Callable[[], object], rates: list[float], rounds: list[Growth], calls: int, most: int) -> MemoryGrowth:
    """Look once more, and say it."""
    rate = statistics.median(rates)
    found = _look(function, min(calls, 1000), rate)
    rss_only = (rounds[-1].heap or 0) / calls <= most
    native = not rss_only and (found.python_bytes or 0.0) < 0.5 * rate * min(calls, 1000)
    kind = "mapped memory outside malloc" if rss_only else "native memory" if native else "Python memory"
    head = f"each call keeps {units.format_size(rate)} of {kind}, in {len(rates)} rounds of up to {calls:,} calls"
    lines = [f"{head} ({parts(rounds[-1])} in the last)"]
    sites = found.sites
    if native:
        with LineMeter() as meter:
            for _ in range(20):
                function()
        sites = meter.suspects(round(rate * 20))
    lines += [f"  allocated at  {site.label}" for site in sites[:2]]
    held_by = [(holder.label, *holder.trail) for holder in found.holders[:1] if not native]
    finding: dict[str, Any] = {
        "per_call": rate,
        "rates": rates,
        "kind": kind,
        "sites": [site.to_dict() for site in sites],
        "held_by": list(held_by[0]) if held_by else [],
        "exceeded": ["rss" if rss_only else "heap"],
    }
    lines += ["  held by  " + " → ".join(way) for way in held_by]
    return MemoryGrowth("\n".join(lines), finding)


def _look(function: Callable[[], object], calls: int, rate: float) -> Explanation:
    look = Look(round(rate * calls))
    look.begin()
    try:
        for _ in range(calls):
            function()
    except BaseException:
        look.abandon()
        raise
    return look.conclude(round(rate * calls))
