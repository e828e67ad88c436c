"""What the parts of a report are called in plain words, and the one sentence that comes first."""

from __future__ import annotations

from collections.abc import Mapping

from memwatch.model import CHANNEL_BY_NAME, CHANNELS, NO_GOODBYE, ChannelSummary, Kind, Process, Report, State, Verdict, iso
from memwatch.report.layout import shown
from memwatch.units import (
    count_rate_scale,
    format_count,
    format_count_rate,
    format_duration,
    format_left,
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
FASTER = 1.25
"""Resident memory that grows by so much more than the channel of the verdict is told of: the time left would not fit the rate."""
LONGEST_NAME = 100
"""Characters of a process's name that a sentence shows."""


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
    name = report.process.name
    return f"{shown(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + '…')}[{report.process.pid}]"


def headline(report: Report) -> str:
    """The verdict in one sentence, on one line of any length: what a log line, a table or a subject needs."""
    verdict = report.verdict
    start = f"{status(verdict)}  {who(report)}  "
    if grows(report):
        return start + _growth(report)
    if verdict.state == "stable" and not is_lookalike(verdict) and not verdict.held:
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
        text += f", out of {what_runs_out(verdict.channel)} {format_left(verdict.exhausted_in_s)}{_by_resident(report)}"
    return text + _fate_clause(report)


def _by_resident(report: Report) -> str:
    """Time left follows resident memory; how fast that grows, where it is faster than what the sentence is about."""
    verdict = report.verdict
    summary = report.statistics.channels.get("rss")
    rate = None if summary is None or verdict.channel == "rss" else summary.rate
    if rate is None or not is_bytes(verdict.channel) or rate < FASTER * verdict.rate:
        return ""
    return f" (resident memory {format_rate(rate)})"


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
    rss = resident_bytes(report)
    return "" if rss is None else of_limit(rss, memory_limit(report))


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


def grows(report: Report) -> bool:
    """Whether there is a rate worth telling."""
    return report.verdict.state in ("leaking", "growing")


def resident_bytes(report: Report) -> float | None:
    """Resident memory at the last reading; None where there was none."""
    summary = report.statistics.channels.get("rss")
    return None if summary is None else summary.current


def time_left_s(report: Report) -> float | None:
    """Until a process that runs and grows has used up what it may; None where that says nothing."""
    return report.verdict.exhausted_in_s if report.process.fate == "running" and grows(report) else None


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
    if not grows(report) or verdict.kind == "none":
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
