"""Reports as Sentry events: plain data, made without Sentry.

Law: an event has the shape of an exception, so that issues, alerts and search treat it as one.  Its fingerprint is the same in
every worker, host and release; never a pid, a size or a rate.  Names of the program's types and places are values, never keys:
scrubbers judge by keys, and would empty one that is called `Session`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memwatch.audience import Occasion
from memwatch.model import Report, Suspect
from memwatch.report import headline
from memwatch.report.causes import known_causes
from memwatch.report.stacks import frames
from memwatch.report.words import amount, as_of, is_bytes, level_of_limit, pace, share_of, title, what_grows
from memwatch.units import format_duration, format_left, format_size

TYPES: Mapping[Occasion, str] = {
    "leak": "MemoryLeakSuspected",
    "doubled": "MemoryLeakSuspected",
    "growth": "FastMemoryGrowth",
    "exhaustion": "MemoryExhaustionNear",
    "peak": "HighMemory",
    "finding": "ObjectStillAlive",
}
"""Occasion to the type of the exception."""
RESOURCE_LEAK = "ResourceLeakSuspected"
"""The same of descriptors, threads, tasks and child processes."""
FATAL_S = 600.0
"""With less time than this until memory runs out, it is fatal and sent at once.  Guess: what a person needs to look."""
CONFIRMED = 0.5
"""A leak of which the evidence explains this part is confirmed.  Guess."""
SHOWN = 10
"""Suspects in the context, labels among the tags; the attachment has all of them."""
LONGEST = 300
"""Characters of a line in the context."""
LONGEST_TAG = 200
"""Sentry drops tags that are longer."""


def event_of(occasion: Occasion, report: Report, *, help_link: str | None = None) -> dict[str, Any]:
    """The event for what a sink was told.

    Args:
        help_link: where somebody who is woken finds help; where a known cause is recognised, its own link comes first.

    Raises:
        KeyError: nothing is sent on this occasion (`over`).
    """
    type_ = TYPES[occasion]
    leaks = type_ == TYPES["leak"]
    if leaks and report.verdict.kind in ("descriptors", "threads", "tasks", "children"):
        type_ = RESOURCE_LEAK
    details = newest(report, occasion)
    causes = known_causes(report)
    link = causes[0].link if causes and occasion in ("leak", "doubled", "growth") else help_link
    mechanism = {"type": "memwatch", "handled": True}
    exception: dict[str, Any] = {
        "type": type_,
        "module": "memwatch",
        "value": _sentence(occasion, report, details),
        "mechanism": mechanism | ({"help_link": link} if link else {}),
    }
    stack = _stack(report) if occasion in ("leak", "doubled", "growth") else []
    if stack:
        exception["stacktrace"] = {"frames": stack}
    return {
        "level": level(occasion, report),
        "logger": "memwatch",
        "exception": {"values": [exception]},
        "fingerprint": list(fingerprint(occasion, report)),
        "tags": _tags(occasion, report, details),
        "contexts": {"memwatch": _context(occasion, report, details)},
    }


def fingerprint(occasion: Occasion, report: Report) -> tuple[str, ...]:
    """What makes two events one issue."""
    if occasion in ("leak", "doubled"):
        return "memwatch", "leak", report.fingerprint
    details = newest(report, occasion)
    if occasion == "finding":
        return "memwatch", "finding", report.process.name, str(details.get("type")), str(details.get("reason") or "")
    channel = str(details.get("channel") or report.verdict.channel)
    return "memwatch", occasion, report.process.name, str(details.get("level") or ("memory" if is_bytes(channel) else channel))


def level(occasion: Occasion, report: Report) -> str:
    """`warning` while it is suspected, `error` when it is confirmed, `fatal` when little time is left."""
    left_s = report.verdict.exhausted_in_s
    if left_s is not None and left_s < FATAL_S and occasion in ("leak", "doubled", "exhaustion"):
        return "fatal"
    if occasion in ("leak", "doubled"):
        confirmed = (report.explained or 0.0) >= CONFIRMED or report.verdict.severity == "critical"
        return "error" if confirmed else "warning"
    if occasion == "peak":
        return "error" if newest(report, "peak").get("level") == "critical" else "warning"
    return "error" if occasion in ("exhaustion", "growth") else "warning"


def newest(report: Report, occasion: Occasion) -> Mapping[str, Any]:
    """The details of the newest event that led to this occasion; none for a leak, whose details are the verdict."""
    for event in reversed(report.events):
        if event.what == "alert" and event.details.get("alert") == occasion:
            return event.details
        if event.what == "finding" and occasion == "finding":
            return event.details
    return {}


def _sentence(occasion: Occasion, report: Report, details: Mapping[str, Any]) -> str:
    verdict = report.verdict
    if occasion == "peak":
        return _short(f"{report.process.name}: memory has reached the {details.get('level')} level, {level_of_limit(report)}")
    if occasion == "growth":
        return _short(f"{report.process.name}: {what_grows(verdict)} grows by {pace(verdict.channel, verdict.rate)}")
    if occasion == "exhaustion" and verdict.exhausted_in_s is not None:
        left = format_left(verdict.exhausted_in_s)
        return _short(f"{report.process.name}: out of {what_grows(verdict)} {left}, {level_of_limit(report)}")
    if occasion == "finding":
        reason = f" ({details['reason']})" if details.get("reason") else ""
        held = f", held by {' → '.join(map(str, details['held_by']))}" if details.get("held_by") else ""
        return _short(f"{report.process.name}: {details.get('type')} is still alive{reason}{held}")
    # Of issues with one fingerprint the newest sentence is the title: it names no pid, which would be one worker's.
    return _short(headline(report).partition("  ")[2].replace(f"[{report.process.pid}]", ""))


def _stack(report: Report) -> list[dict[str, Any]]:
    """Where most of the growth was allocated, the outermost frame first."""
    suspect = next((item.suspects[0] for item in report.evidence if item.collector == "sites" and item.suspects), None)
    if suspect is None or report.is_evidence_earlier:
        return []
    return [
        {"function": frame.name, "filename": frame.file or "?", "lineno": frame.line}
        if frame.line is not None
        else {"function": frame.name, "filename": frame.file or "?"}
        for frame in frames(suspect)
    ]


def _tags(occasion: Occasion, report: Report, details: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "memwatch.occasion": occasion,
        "memwatch.process": report.process.name,
        "memwatch.state": report.verdict.state,
        "memwatch.kind": report.verdict.kind,
        "memwatch.severity": report.verdict.severity,
        "memwatch.level": details.get("level"),
    }
    for key, value in list(report.process.labels.items())[:SHOWN]:
        tags["memwatch.label." + re.sub(r"[^a-zA-Z0-9_.:-]", "_", key)[:100]] = value
    return {key: " ".join(str(value).split())[:LONGEST_TAG] for key, value in tags.items() if value}


def _context(occasion: Occasion, report: Report, details: Mapping[str, Any]) -> dict[str, Any]:
    verdict, process = report.verdict, report.process
    now_s = as_of(report)
    since = now_s - verdict.since if now_s is not None and verdict.since is not None else None
    context = {
        "reason": _short(verdict.reason),
        "kind": what_grows(verdict),
        "state": verdict.state,
        "channel": title(verdict.channel),
        "rate": pace(verdict.channel, verdict.rate),
        "rate_per_second": round(verdict.rate, 3),
        "growing_for": format_duration(since) if since is not None and since > 0 else None,
        "grown": amount(verdict.channel, verdict.grown) if verdict.grown else None,
        "in_use": level_of_limit(report) or None,
        "exhausted_in": format_duration(verdict.exhausted_in_s) if verdict.exhausted_in_s is not None else None,
        "explained": share_of(report.explained) if report.explained is not None else None,
        "suspects": _suspects(report) or None,
        "held_by": [_short(str(item)) for item in details.get("held_by") or ()][:SHOWN] or None,
        "known_causes": [_short(cause.sentence) for cause in known_causes(report)][:SHOWN] or None,
        "fingerprint": report.fingerprint,
        "pid": process.pid,
        "watched_for": format_duration(report.statistics.uptime_s),
        "look": f"memwatch report {process.pid}",
    }
    return {"type": "memwatch"} | {key: value for key, value in context.items() if value is not None}


def _suspects(report: Report) -> list[str]:
    """The largest suspects of all collectors, one a line."""
    found = [(item.collector, suspect) for item in report.evidence for suspect in item.suspects]
    found.sort(key=lambda pair: -(pair[1].share or 0.0))
    return [_short(_line(collector, suspect)) for collector, suspect in found[:SHOWN]]


def _line(collector: str, suspect: Suspect) -> str:
    parts = [f"{collector}:"]
    if suspect.share is not None:
        parts.append(share_of(suspect.share))
    if suspect.bytes is not None:
        parts.append(format_size(suspect.bytes, sign=True))
    if suspect.count is not None:
        parts.append(f"{suspect.count:,.0f} ×")
    return " ".join((*parts, suspect.label))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
