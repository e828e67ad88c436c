"""How good a detector is on labelled traces: what is counted, and how.

Definitions
    detected       a leak trace with the alarm (`leaking`) raised or standing at any time after the leak's onset
    false alarm    a trace with an alarm that is raised while nothing leaks (before the onset counts)
    precision      detected / (detected + false-alarm traces)
    recall         detected / leak traces
    FA/kpd         alarms raised while nothing leaks, re-alarms within 30 min merged, per 1000 leak-free process-days
    MB             MiB leaked (the simulator's truth) when the alarm came; a leak never detected counts as infinite
    coverage       how often the interval of the rate, when the alarm came, held the true mean rate since the onset
    ETA            how often the time to exhaustion was right within a factor of 1.5, where the trace ends at its limit
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from corpus import Trace

MIB = 2.0**20
MERGE_S = 1800.0
STRAIGHT = {"leak_slow", "leak_mid", "leak_fast", "leak_native", "leak_midlife", "leak_sawtooth", "leak_diurnal", "leak_load",
            "leak_masked_clear", "leak_thread", "leak_with_load", "leak_noisy", "leak_under_day", "leak_descriptor"}  # fmt: skip
"""Kinds whose rate is one number."""


class Detector(Protocol):
    """What is scored: `LeakDetector` or a baseline."""

    def update(self, time_s: float, values: Mapping[str, float]) -> Any: ...


Factory = Callable[[float, float | None], Detector]
"""(interval_s, limit in bytes) -> detector."""


@dataclass
class Score:
    """One trace, one detector."""

    id: int
    kind: str
    leaks: bool
    free_days: float
    false_alarms: int
    detected: bool
    leaked_mib: float
    """At the alarm; infinite where there was none."""
    delay_s: float
    rate_error: float | None
    covered: bool | None
    eta_ratio: float | None
    updates: int
    cpu_s: float
    slowest_s: float
    bytes: int
    channel: str | None = None
    alarm_s: float | None = None


def score(trace: Trace, factory: Factory, only: Iterable[str] | None = None) -> Score:
    """Run a detector over *trace*; *only* limits the channels it sees."""
    label = trace.label
    limit = label["limit_bytes"] or None
    detector = factory(float(label["dt"]), limit)
    names = [name for name in trace.channels if name != "t" and (only is None or name in only)]
    columns = [trace.channels[name].tolist() for name in names]
    times = trace.channels["t"].tolist()
    onset = float(label["onset_s"]) if trace.leaks else math.inf
    alarms: list[tuple[int, Any]] = []
    standing_after_onset: int | None = None
    before, cpu, slowest = "", 0.0, 0.0
    for number, moment in enumerate(times):
        values = {name: column[number] for name, column in zip(names, columns, strict=True)}
        begin = time.thread_time()
        verdict = detector.update(moment, values)
        took = time.thread_time() - begin
        cpu, slowest = cpu + took, max(slowest, took)
        if verdict.state == "leaking":
            if before != "leaking":
                alarms.append((number, verdict))
            if moment > onset and standing_after_onset is None:
                standing_after_onset = number
        before = verdict.state
    false: list[float] = []
    for number, _ in alarms:
        if times[number] <= onset and (not false or times[number] - false[-1] > MERGE_S):
            false.append(times[number])
    result = Score(
        id=trace.id,
        kind=trace.kind,
        leaks=trace.leaks,
        free_days=(min(onset, times[-1]) if trace.leaks else times[-1]) / 86400,
        false_alarms=len(false),
        detected=standing_after_onset is not None,
        leaked_mib=math.inf,
        delay_s=math.inf,
        rate_error=None,
        covered=None,
        eta_ratio=None,
        updates=len(times),
        cpu_s=cpu,
        slowest_s=slowest,
        bytes=deep_size(detector),
    )
    first = next(((number, verdict) for number, verdict in alarms), None)
    if first is not None:
        result.alarm_s, result.channel = times[first[0]], first[1].channel
    if standing_after_onset is not None:
        result.leaked_mib = float(trace.leak[standing_after_onset]) / MIB
        result.delay_s = times[standing_after_onset] - onset
        result.channel = next((verdict.channel for number, verdict in alarms if number == standing_after_onset), result.channel)
        verdict = next((verdict for number, verdict in alarms if number == standing_after_onset), None)
        if verdict is not None and trace.kind in STRAIGHT and verdict.channel in ("rss", "heap", "native"):
            _judge_rate(result, trace, standing_after_onset, onset, verdict)
    return result


def _judge_rate(result: Score, trace: Trace, number: int, onset: float, verdict: Any) -> None:
    times = trace.channels["t"]
    start = int(np.searchsorted(times, onset))
    truth = (trace.leak[number] - trace.leak[start]) / max(1.0, times[number] - times[start])
    if verdict.channel != "heap":
        truth *= overhead(trace, onset)
    truth = max(1.0, truth)
    result.rate_error = abs(verdict.rate - truth) / truth
    if verdict.rate_low is not None:
        result.covered = bool(verdict.rate_low <= truth <= verdict.rate_high)
    if verdict.exhausted_in_s and trace.label["oom"] and trace.label["limit_bytes"]:
        result.eta_ratio = verdict.exhausted_in_s / max(60.0, float(times[-1] - times[number]))


def overhead(trace: Trace, onset: float) -> float:
    """RSS grown for each byte leaked: allocators round up."""
    times = trace.channels["t"]
    during = (times >= onset) & (trace.leak > 0)
    if during.sum() <= 10:
        return 1.0
    elapsed = times[during] - times[during][0]
    resident = np.polyfit(elapsed, (trace.channels["rss"] - trace.channels["file"])[during], 1)[0]
    leaked = np.polyfit(elapsed, trace.leak[during], 1)[0]
    return float(resident / leaked) if resident > 0 and leaked > 0 else 1.0


def deep_size(thing: Any, seen: set[int] | None = None) -> int:
    """Bytes held by *thing* and what it refers to, classes and functions aside."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, type) or callable(thing):
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, dict):
        size += sum(deep_size(key, seen) + deep_size(value, seen) for key, value in thing.items())
    elif isinstance(thing, (list, tuple, set)) or type(thing).__name__ == "deque":
        size += sum(deep_size(item, seen) for item in thing)
    size += deep_size(thing.__dict__, seen) if hasattr(thing, "__dict__") else 0
    for cls in type(thing).__mro__:
        slots = getattr(cls, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            size += deep_size(getattr(thing, name, None), seen)
    return size


@dataclass
class Summary:
    """One detector over many traces."""

    traces: int
    precision: float
    recall: float
    false_per_1000_days: float
    leaked_mib: float
    leaked_mib_p90: float
    delay_min: float
    rate_error: float
    coverage: float
    eta: float
    microseconds: float
    slowest_ms: float
    kib: float


def summarise(scores: list[Score]) -> Summary:
    leaks = [score for score in scores if score.leaks]
    detected = sum(score.detected for score in leaks)
    false = sum(score.false_alarms > 0 for score in scores)
    days = sum(score.free_days for score in scores)
    return Summary(
        traces=len(scores),
        precision=detected / max(1, detected + false),
        recall=detected / max(1, len(leaks)),
        false_per_1000_days=1000 * sum(score.false_alarms for score in scores) / max(1e-9, days),
        leaked_mib=quantile((score.leaked_mib for score in leaks), 0.5),
        leaked_mib_p90=quantile((score.leaked_mib for score in leaks), 0.9),
        delay_min=quantile((score.delay_s / 60 for score in leaks), 0.5),
        rate_error=quantile((score.rate_error for score in leaks if score.rate_error is not None), 0.5),
        coverage=mean(score.covered for score in leaks if score.covered is not None),
        eta=mean(1 / 1.5 <= score.eta_ratio <= 1.5 for score in leaks if score.eta_ratio is not None),
        microseconds=1e6 * sum(score.cpu_s for score in scores) / sum(score.updates for score in scores),
        slowest_ms=1e3 * max(score.slowest_s for score in scores),
        kib=max(score.bytes for score in scores) / 1024,
    )


def quantile(values: Iterable[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(part * (len(ordered) - 1)))] if ordered else math.nan


def mean(values: Iterable[float | bool]) -> float:
    kept = [float(value) for value in values]
    return statistics.fmean(kept) if kept else math.nan


HEADER = (
    f"{'detector':34s} {'prec':>5s} {'recall':>6s} {'FA/kpd':>7s} {'MB':>6s} {'MB p90':>7s} {'delay':>7s} "
    f"{'rate±':>5s} {'cover':>5s} {'ETA':>5s} {'us':>5s} {'max ms':>6s} {'KiB':>4s}"
)


def line(name: str, s: Summary) -> str:
    return (
        f"{name:34s} {s.precision:5.2f} {s.recall:6.2f} {s.false_per_1000_days:7.1f} {s.leaked_mib:6.1f} {s.leaked_mib_p90:7.1f} "
        f"{s.delay_min:6.0f}m {s.rate_error:5.2f} {s.coverage:5.2f} {s.eta:5.2f} "
        f"{s.microseconds:5.0f} {s.slowest_ms:6.1f} {s.kib:4.0f}"
    )


def by_kind(scores: list[Score]) -> str:
    """One line a kind: what was found of leaks, what was raised wrongly elsewhere."""
    lines = []
    for kind in dict.fromkeys(score.kind for score in scores):
        group = [score for score in scores if score.kind == kind]
        false = sum(score.false_alarms > 0 for score in group)
        if group[0].leaks:
            found = sum(score.detected for score in group)
            middle = quantile((score.leaked_mib for score in group), 0.5)
            missed = [score.id for score in group if not score.detected]
            early = [score.id for score in group if score.false_alarms]
            lines.append(f"{kind:20s} found {found:3d} of {len(group):3d}  MB {middle:6.1f}  missed {missed}  too early {early}")
        else:
            wrong = [score.id for score in group if score.false_alarms]
            lines.append(f"{kind:20s} false {false:3d} of {len(group):3d}  {wrong}")
    return "\n".join(lines)
