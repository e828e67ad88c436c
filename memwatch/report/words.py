"""What the parts of a report are called in plain words, and the one sentence that comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memwatch.model import CHANNEL_BY_NAME, CHANNELS, NO_GOODBYE, ChannelSummary, Kind, Process, Report, State, Verdict, iso
from memwatch.report.layout import shown
from memwatch.units import (
    count_rate_scale,
    format_count,
    format_count_rate,
    format_duration,
    format_rate,
    format_size,
    format_sizes,
    rate_scale,
)

KIND_TITLES: Mapping[Kind, str] = {
    "python-heap": "Python heap",
    "native": "native heap",
    "fragmentation": "fragmentation",
    "descriptors": "open descriptors",
    "threads": "threads",
    "tasks": "asyncio tasks",
    "children": "child processes",
    "none": "memory",
}
KIND_CHANNELS: Mapping[Kind, str] = {
    "python-heap": "heap",
    "native": "native",
    "fragmentation": "retained",
    "descriptors": "fds",
    "threads": "threads",
    "tasks": "tasks",
    "children": "children",
}
"""Which channel stands for a kind in "not the cause"."""
RESOURCE_KINDS: tuple[Kind, ...] = ("descriptors", "threads", "tasks", "children")
MEMORY_KINDS: tuple[Kind, ...] = ("python-heap", "native", "fragmentation", "none")

STATE_WORDS: Mapping[State, str] = {
    "leaking": "LEAK",
    "growing": "GROWING",
    "recovering": "RECOVERING",
    "warming-up": "WARMING UP",
    "stable": "STABLE",
}
NOT_A_LEAK = "NOT A LEAK"


def status(verdict: Verdict) -> str:
    """The word a report begins with."""
    return NOT_A_LEAK if is_lookalike(verdict) else STATE_WORDS[verdict.state]


def is_lookalike(verdict: Verdict) -> bool:
    """Whether something grew that was examined and found harmless, which is worth more than "stable".

    The detector gives an interval where it looked closer, and it looks closer where growth is large enough to matter.
    """
    return verdict.state == "stable" and verdict.grown > 0 and verdict.rate_low is not None


def what_grows(verdict: Verdict) -> str:
    """The kind of growth in words; the channel where the kind is not known."""
    return title(verdict.channel) if verdict.kind == "none" else KIND_TITLES[verdict.kind]


def who(report: Report) -> str:
    """`name[pid]`, safe to print."""
    return f"{shown(report.process.name)}[{report.process.pid}]"


def headline(report: Report) -> str:
    """The verdict in one sentence, on one line of any length: what a log line, a table or a subject needs."""
    verdict = report.verdict
    start = f"{status(verdict)}  {who(report)}  "
    if verdict.state in ("leaking", "growing"):
        return start + _growth(report)
    if verdict.state == "stable" and not is_lookalike(verdict):
        return start + _calm(report)
    return start + (shown(verdict.reason) or verdict.state) + _fate_clause(report)


def _growth(report: Report) -> str:
    verdict = report.verdict
    text = f"{what_grows(verdict)}  {pace(verdict.channel, verdict.rate)}"
    if verdict.rate_low is not None and verdict.rate_high is not None:
        text += f" (95 %: {_between(verdict.channel, verdict.rate, verdict.rate_low, verdict.rate_high)})"
    now = as_of(report)
    if verdict.since is not None and now is not None and now > verdict.since:
        text += f" for {format_duration(now - verdict.since)}"
    level = level_of_limit(report)
    if level:
        text += f", {level}"
    if report.process.fate == "running" and verdict.exhausted_in_s is not None:
        text += f", out of {what_runs_out(verdict.channel)} in about {format_duration(verdict.exhausted_in_s)}"
    return text + _fate_clause(report)


def what_runs_out(channel: str) -> str:
    """What a process that grows on *channel* runs out of."""
    return "memory" if is_bytes(channel) else title(channel)


def _calm(report: Report) -> str:
    level = level_of_limit(report)
    parts = [f"resident memory {level}"] if level else []
    if report.statistics.samples:
        parts.append(f"no growth that matters in {format_duration(report.statistics.uptime_s)}")
    return (", ".join(parts) or "nothing was measured yet") + _fate_clause(report)


def _fate_clause(report: Report) -> str:
    process = report.process
    if process.fate == "running":
        return ""
    word = "ended" if process.fate == "exited" else fate_word(process)
    return f"; {word}: {shown(process.end)}" if process.end else f"; {word}"


def fate_word(process: Process) -> str:
    """What became of a process.  Where nobody saw it end, "killed" would claim a crash: it is gone."""
    return "gone" if process.fate == "killed" and (process.end or "").startswith(NO_GOODBYE) else process.fate


def level_of_limit(report: Report) -> str:
    """How much of what runs out is in use: `1.21 of 2.00 GiB`, `812 of 1,024`; empty when nothing was read."""
    verdict = report.verdict
    channels = report.statistics.channels
    if not is_bytes(verdict.channel):
        summary = channels.get(verdict.channel)
        if summary is None or summary.current is None:
            return ""
        return format_count(summary.current) + (f" of {format_count(verdict.limit)}" if verdict.limit else "")
    rss = channels.get("rss")
    if rss is None or rss.current is None:
        return ""
    limit = memory_limit(report)
    return of_limit(rss.current, limit)


def of_limit(size: float, limit: float | None) -> str:
    """A size and what it is part of: `1.21 of 2.00 GiB`, but `24.0 MiB of 2.00 GiB` where the common unit would round it away."""
    if not limit:
        return format_size(size)
    return format_sizes(size, limit) if size >= limit / 10 else f"{format_size(size)} of {format_size(limit)}"


def memory_limit(report: Report) -> float | None:
    """The memory limit: the channel, else the one the verdict was made against."""
    summary = report.statistics.channels.get("limit")
    if summary is not None and summary.current:
        return summary.current
    return report.verdict.limit if is_bytes(report.verdict.channel) else None


def as_of(report: Report) -> float | None:
    """Unix time of the newest reading the report knows."""
    taken = [item.taken for item in report.statistics.channels.values() if item.taken is not None]
    if taken:
        return max(taken)
    if report.process.started is not None and report.statistics.samples:
        return report.process.started + report.statistics.uptime_s
    return None


ONLY_NOW = ("cpu", "gc2", "limit")
"""Channels whose average and peak say nothing: sums that only rise, and settings."""


def says_only_now(channel: str) -> bool:
    return channel in ONLY_NOW


def channels_in_order(report: Report) -> list[tuple[str, ChannelSummary]]:
    """The channels that were read, in the order of `CHANNELS`, those we do not know last."""
    order = {channel.name: position for position, channel in enumerate(CHANNELS)}
    return sorted(report.statistics.channels.items(), key=lambda item: order.get(item[0], len(order)))


def unit(channel: str) -> str:
    """The unit of a channel; those we do not know are counts."""
    known = CHANNEL_BY_NAME.get(channel)
    return known.unit if known is not None else "count"


def is_bytes(channel: str) -> bool:
    return unit(channel) == "bytes"


def title(channel: str) -> str:
    """What a channel is called."""
    known = CHANNEL_BY_NAME.get(channel)
    return known.title if known is not None else shown(channel)


def amount(channel: str, value: float | None) -> str:
    """A quantity of *channel* with its unit; empty when there is none."""
    if value is None:
        return ""
    match unit(channel):
        case "bytes":
            return format_size(value)
        case "seconds":
            return format_duration(value)
        case "percent":
            return f"{value:.1f} %"
        case _:
            return format_count(value)


def pace(channel: str, rate: float | None) -> str:
    """A rate of *channel* in the unit of time that reads best; `0` where nothing moves."""
    if rate is None:
        return ""
    if unit(channel) == "seconds":
        return f"{rate:.1%}".replace("%", " %")
    if rate == 0:
        return "0"
    return format_rate(rate) if is_bytes(channel) else format_count_rate(rate)


def _between(channel: str, rate: float, low: float, high: float) -> str:
    """An interval in the unit its rate is told in: `11.8–13.0`."""
    if is_bytes(channel):
        factor, _ = rate_scale(rate)
        first, last = (format_sizes(bound * factor, abs(rate) * factor).partition(" of ")[0] for bound in (low, high))
    else:
        factor, _ = count_rate_scale(rate)
        digits = 1 if abs(rate) * factor < 10 else 0
        first, last = (f"{bound * factor:,.{digits}f}" for bound in (low, high))
    return f"{first}–{last}" if low >= 0 else f"{first} to {last}"


def share_of(part: float) -> str:
    """A part of the growth: `91 %`; what is little but not nothing is `<1 %`."""
    return "<1 %" if 0 < part < 0.005 else f"{part * 100:.0f} %"


def moment(time_s: float | None) -> str:
    """A moment as people read it, in UTC."""
    text = iso(time_s)
    return "?" if text is None else text[:19].replace("T", " ")


TOO_RARE = "not read often enough"
"""How the reason of a channel says that it was read too rarely to be judged."""


def is_judged(summary: ChannelSummary) -> bool:
    """Whether the rate and the state of a channel say something: not where it was read too rarely for either."""
    return TOO_RARE not in (summary.reason or "")


def channel_state(summary: ChannelSummary) -> str:
    """The state of a channel in a table."""
    return summary.state or "" if is_judged(summary) else "too few readings"


def channel_pace(name: str, summary: ChannelSummary) -> str:
    """The rate of a channel in a table; not that of a stable one: it is what steps and noise add up to in one window, and beside
    "stable" it would read as growth."""
    return pace(name, summary.rate) if is_judged(summary) and summary.state != "stable" else ""


def not_the_cause(report: Report) -> list[str]:
    """For growth of one kind: the kinds that are not it, each with why it can be said (`native heap (stable)`)."""
    verdict = report.verdict
    if verdict.state not in ("leaking", "growing") or verdict.kind == "none":
        return []
    cleared = []
    for kind, channel in KIND_CHANNELS.items():
        summary = report.statistics.channels.get(channel)
        if kind == verdict.kind or channel == verdict.channel or summary is None or not is_judged(summary):
            continue
        if verdict.since is not None and summary.taken is not None and summary.taken <= verdict.since:
            continue  # not read since the growth began: it proves nothing
        if summary.state == "stable":
            cleared.append(f"{KIND_TITLES[kind]} (stable)")
        elif summary.state != "leaking" and summary.rate is not None and is_bytes(channel) and is_bytes(verdict.channel):
            share = summary.rate / verdict.rate if verdict.rate > 0 else 1.0
            if share < 0.1:
                cleared.append(f"{KIND_TITLES[kind]} ({max(share, 0.0) * 100:.0f} %)")
    return cleared


def cache_line(cache: Mapping[str, Any]) -> str:
    """What a cache holds and did, in one line.  Whatever a record says: a figure that is none is left out."""

    def number(name: str) -> float | None:
        value = cache.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None

    held, most, entries, maxsize = number("bytes"), number("max_bytes"), number("entries"), number("maxsize")
    parts = []
    if held is not None:
        about = "about " if cache.get("is_estimated") else ""
        parts.append(f"{about}{format_size(held)}" + (f" of {format_size(most)}" if most is not None else ""))
    if entries is not None:
        parts.append(f"{format_count(entries)} entries" + (f" of {format_count(maxsize)}" if maxsize is not None else ""))
    ratio, reads = number("hit_ratio"), (number("hits") or 0) + (number("misses") or 0)
    if ratio is not None:
        parts.append(f"{ratio * 100:.0f} % hits" + (f" of {format_count(reads)} reads" if reads else ""))
    left = cache_removals(cache)
    if left:
        parts.append(f"left: {', '.join(left)}")
    parts += cache_remarks(cache)
    return f"{cache.get('name', '?')}  {', '.join(parts)}"


def cache_removals(cache: Mapping[str, Any]) -> list[str]:
    """How many entries left a cache, by cause."""
    removals = cache.get("removals")
    causes = removals.items() if isinstance(removals, Mapping) else ()
    return [f"{format_count(count)} {cause}" for cause, count in causes if isinstance(count, int) and abs(count) < 2**63]


def cache_remarks(cache: Mapping[str, Any]) -> list[str]:
    """What is out of the ordinary about a cache."""
    room, errors = _number(cache, "room"), _number(cache, "hook_errors")
    remarks = [f"may use {room * 100:.0f} % of its bounds after pressure"] if room is not None and room < 1 else []
    return [*remarks, f"{format_count(errors)} errors of hooks"] if errors else remarks


def blame(row: Mapping[str, Any]) -> str:
    """What a route does to memory, in one line: `POST /login leaks 8.1 KiB per request (95 %: 7.6–8.6), 93 % of the growth`."""
    route, others = str(row.get("route", "?")), row.get("together_with")
    is_job = route.startswith(JOB)
    names = [route, *(str(other) for other in others)] if isinstance(others, list | tuple) and others else [route]
    per = "job" if is_job else "request"
    amount_of, low, high = (_number(row, f"bytes_per_request{part}") for part in ("", "_low", "_high"))
    if amount_of is not None:
        text = f"{format_size(amount_of)} per {per}"
        if low is not None and high is not None:
            first, last = (format_sizes(bound, abs(amount_of)).partition(" of ")[0] for bound in (low, high))
            text += f" (95 %: {first}–{last})" if low >= 0 else f" (95 %: {first} to {last})"
    else:
        amount_of, low, high = (_number(row, f"count_per_request{part}") for part in ("", "_low", "_high"))
        if amount_of is None:
            return route
        text = f"{amount_of:.2f} {title(str(row.get('channel')))} per {per}"
        if low is not None and high is not None:
            text += f" (95 %: {low:.2f}–{high:.2f})"
    share = _number(row, "share")
    if share is not None:
        text += f", {share_of(min(1.0, max(0.0, share)))} of the growth"
    if len(names) == 1:
        return f"{route} leaks {text}"
    return (
        f"one of {', '.join(names[:4])}{' …' if len(names) > 4 else ''} leaks (they come together and cannot be told apart): {text}"
    )


JOB = "job:"
"""How the name of a job begins among the routes."""


def route_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One route for a table: name, requests, errors, rate, the three percentiles, bytes per request.  Whatever a record says."""

    def count(name: str) -> str:
        value = _number(row, name)
        return "" if value is None else format_count(value)

    def seconds(name: str) -> str:
        value = _number(row, name)
        return "" if value is None else f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"

    rate = _number(row, "rate_per_s")
    growth = _number(row, "bytes_per_request")
    counted = _number(row, "count_per_request")
    return (
        shown(str(row.get("route", "?"))),
        count("requests"),
        count("errors"),
        "" if rate is None else f"{rate:.3g}/s",
        seconds("p50_s"),
        seconds("p95_s"),
        seconds("p99_s"),
        format_size(growth, sign=True) if growth is not None else f"{counted:+.2f}" if counted is not None else "",
    )


ROUTE_HEADER = ("", "done", "errors", "rate", "p50", "p95", "p99", "a request")


def blamed_routes(routes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are blamed, a group once."""
    found: list[Mapping[str, Any]] = []
    told: set[str] = set()
    for row in routes:
        if row.get("blamed") is True and str(row.get("route")) not in told:
            found.append(row)
            others = row.get("together_with")
            told.update(map(str, others if isinstance(others, list | tuple) else ()))
    return found


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if good and value is not None else None
