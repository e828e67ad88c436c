"""What caches hold and what routes and jobs did, in words.

Law: pure; whatever a record says: a figure that is none is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memwatch.report.layout import shown
from memwatch.report.words import share_of, title
from memwatch.units import format_count, format_size, format_sizes


def cache_line(cache: Mapping[str, Any]) -> str:
    """What a cache holds and did, in one line.  Whatever a record says: a figure that is none is left out."""
    held, most, entries, maxsize = (number(cache, name) for name in ("bytes", "max_bytes", "entries", "maxsize"))
    parts = []
    if held is not None:
        about = "about " if cache.get("is_estimated") else ""
        parts.append(f"{about}{format_size(held)}" + (f" of {format_size(most)}" if most is not None else ""))
    if entries is not None:
        parts.append(f"{format_count(entries)} entries" + (f" of {format_count(maxsize)}" if maxsize is not None else ""))
    ratio, reads = number(cache, "hit_ratio"), (number(cache, "hits") or 0) + (number(cache, "misses") or 0)
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
    room, errors = number(cache, "room"), number(cache, "hook_errors")
    remarks = [f"may use {room * 100:.0f} % of its bounds after pressure"] if room is not None and room < 1 else []
    return [*remarks, f"{format_count(errors)} errors of hooks"] if errors else remarks


def blame(row: Mapping[str, Any]) -> str:
    """What a route does to memory, in one line: `POST /login leaks 8.1 KiB per request (95 %: 7.6–8.6), 93 % of the growth`."""
    route, others = str(row.get("route", "?")), row.get("together_with")
    is_job = route.startswith(JOB)
    names = [route, *(str(other) for other in others)] if isinstance(others, list | tuple) and others else [route]
    per = "job" if is_job else "request"
    amount_of, low, high = (number(row, f"bytes_per_request{part}") for part in ("", "_low", "_high"))
    if amount_of is not None:
        text = f"{format_size(amount_of)} per {per}"
        if low is not None and high is not None:
            first, last = (format_sizes(bound, abs(amount_of)).partition(" of ")[0] for bound in (low, high))
            text += f" (95 %: {first}–{last})" if low >= 0 else f" (95 %: {first} to {last})"
    else:
        amount_of, low, high = (number(row, f"count_per_request{part}") for part in ("", "_low", "_high"))
        if amount_of is None:
            return route
        text = f"{amount_of:.2f} {title(str(row.get('channel')))} per {per}"
        if low is not None and high is not None:
            text += f" (95 %: {low:.2f}–{high:.2f})"
    share = number(row, "share")
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
        value = number(row, name)
        return "" if value is None else format_count(value)

    def seconds(name: str) -> str:
        value = number(row, name)
        return "" if value is None else f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"

    rate = number(row, "rate_per_s")
    # An estimate that does not stand out is none: requests that come together share growth in any proportion.
    blamed = row.get("blamed") is True
    growth = number(row, "bytes_per_request") if blamed else None
    counted = number(row, "count_per_request") if blamed else None
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


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A figure of a cache or a route as a record has it; None for what is no number that can be told."""
    value = row.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if good and value is not None else None
