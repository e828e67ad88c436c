"""Events in words: what happened to the process while it was watched, one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from memwatch.model import CHANNEL_BY_NAME, Event
from memwatch.report.layout import shown
from memwatch.report.usage import blame
from memwatch.report.words import of_limit, what_runs_out
from memwatch.units import format_count, format_duration, format_left, format_rate, format_size

BYTES = ("rss", "limit", "threshold", "freed", "rss_freed", "grown", "bytes")
"""Details that are sizes, for events whose details we do not know."""


def happened(event: Event) -> str:
    """One event in words, safe to print, without its time."""
    describe = _WORDS.get(event.what, _anything)
    try:
        return shown(describe(event.details))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return shown(_anything(event.details))  # written by another version: tell what it says


def _verdict(details: Mapping[str, Any]) -> str:
    return f"{details['state']}: {details['reason']}" if details.get("reason") else str(details["state"])


def _pressure(details: Mapping[str, Any]) -> str:
    return f"{details['level']} (was {details['before']}): {_level(details)}"


def _alert(details: Mapping[str, Any]) -> str:
    if details["alert"] == "exhaustion":
        return f"out of {what_runs_out(details['channel'])} {format_left(details['exhausted_in_s'])}"
    if details["alert"] == "growth":
        return f"{CHANNEL_BY_NAME[details['channel']].title} grows by {format_rate(details['rate'])}, at or above the growth limit"
    return f"{details['level']} level reached: {_level(details)}"


def _level(details: Mapping[str, Any]) -> str:
    return f"{of_limit(details['rss'], details.get('limit'))} resident"


def _relief(details: Mapping[str, Any]) -> str:
    freed = details.get("freed")
    parts = [f"freed {format_size(freed)}" if freed is not None else "does not say what it freed"]
    if details.get("rss_freed") is not None:
        parts.append(f"{format_size(-details['rss_freed'], sign=True)} resident")
    if details.get("collected"):
        parts.append(f"{format_count(details['collected'])} objects")
    if details.get("took_s") is not None:
        parts.append(f"took {format_duration(details['took_s'])}")
    return f"{details['step']}: {', '.join(parts)}"


def _plug(details: Mapping[str, Any]) -> str:
    return f"{details['plug']} {'failed and was disabled' if details.get('disabled') else 'failed'}: {details['error']}"


def _finding(details: Mapping[str, Any]) -> str:
    text = f"{details['type']} is still alive after {format_duration(details['alive_s'])}"
    if details.get("reason"):
        text += f" ({details['reason']})"
    if details.get("held_by"):
        text += f", held by {' → '.join(details['held_by'])}"
    return text + (f"; {details['note']}" if details.get("note") else "")


def _block(details: Mapping[str, Any]) -> str:
    return f"{details['name']}: {format_size(details['rss'], sign=True)} resident, took {format_duration(details['took_s'])}"


def _note(details: Mapping[str, Any]) -> str:
    if details["note"] == "request":
        took = f"in one request of {format_duration(details['took_s'])} that ran alone"
        return f"{details['route']} grew resident memory by {format_size(details['grown'])} {took}"
    if details["note"] == "route":
        return blame(details)
    seconds = details.get("seconds")
    return str(details["note"]) + (f" ({format_duration(abs(seconds))})" if seconds is not None else "")


def _end(details: Mapping[str, Any]) -> str:
    return str(details["how"])


def _anything(details: Mapping[str, Any]) -> str:
    def value(name: str, item: Any) -> str:
        if isinstance(item, int | float) and not isinstance(item, bool):
            with contextlib.suppress(OverflowError):  # an integer that no float holds
                return format_size(item) if name in BYTES else format_duration(item) if name.endswith("_s") else f"{item:,g}"
        return str(item)

    return ", ".join(f"{name} {value(name, item)}" for name, item in details.items() if item is not None) or "(no details)"


_WORDS = {
    "verdict": _verdict,
    "pressure": _pressure,
    "alert": _alert,
    "relief": _relief,
    "plug": _plug,
    "finding": _finding,
    "block": _block,
    "note": _note,
    "end": _end,
}
