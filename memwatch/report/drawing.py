"""What a browser draws, as data: curves and stacks, packed small.

Law: pure.  `assets/memwatch.js` is the only reader; what a name means here it means there.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from memwatch.model import Report
from memwatch.report.curve import Curve
from memwatch.report.palette import STATE_COLOURS, stroke
from memwatch.report.stacks import NoStacks, profiles
from memwatch.units import format_count, format_size

RESOLUTION, OWN_RESOLUTION = 20_000, 50_000
"""Levels between zero and the highest reading of a picture, and of one of its lines: far more than a screen has pixels, and numbers
stay short."""
FRAMES_DRAWN = 5_000
"""Frames of one flame graph; a stack that is smaller than those is counted as one block."""


def as_script(value: Any) -> str:
    """JSON that may stand in a page: ASCII, and nothing that ends a script or begins a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def curve_data(curve: Curve) -> dict[str, Any]:
    """A curve for the page.

    Times and values are steps from one to the next, in units of `tick_s` and `quantum`; a step that comes again and again is
    `[step, times]`.  A channel that is read rarely is told as the places where it was read.
    """
    tick_s = 0.001 if _least_step(curve.times) < 1.0 else 0.1
    start = curve.times[0]
    highest = max((abs(value) for one in curve.series for value in one.values if value is not None), default=0.0)
    ticks = [round((time_s - start) / tick_s) for time_s in curve.times]
    return {
        "unit": curve.unit,
        "start": round(start, 3),
        "tick_s": tick_s,
        "times": _steps(ticks),
        "gaps": list(curve.gaps),
        "series": [_series(one.channel, one.title, one.values, highest) for one in curve.series],
        "spans": [
            {"from": round(one.from_s, 3), "until": round(one.until_s, 3), "state": one.state} | _colour(one.state)
            for one in curve.spans
        ],
        "marks": [{"time": round(one.time_s, 3), "kind": one.kind, "text": one.text} for one in curve.marks],
        "trend": None
        if curve.trend is None
        else {
            "channel": curve.trend.channel,
            "from": curve.trend.from_s,
            "until": curve.trend.until_s,
            "lines": [
                [curve.trend.at(curve.trend.from_s, rate), curve.trend.at(curve.trend.until_s, rate)]
                for rate in (curve.trend.rate, curve.trend.rate_low, curve.trend.rate_high)
            ],
        },
        "projection": None
        if curve.projection is None
        else {
            "from": curve.projection.from_s,
            "level": curve.projection.level,
            "until": curve.projection.until_s,
            "limit": curve.projection.limit,
            "text": curve.projection.text,
        },
        "limit": None
        if curve.limit is None
        else {
            "value": curve.limit,
            "text": f"limit {format_size(curve.limit) if curve.unit == 'bytes' else format_count(curve.limit)}",
            "drawn": curve.draws_limit,
        },
        "until": curve.until_s,
        "alarm": _colour("leaking"),
    }


def _colour(state: Any) -> dict[str, str]:
    colour = STATE_COLOURS[state]
    return {"light": colour.light, "dark": colour.dark}


def _least_step(times: Sequence[float]) -> float:
    return min((later - earlier for earlier, later in itertools.pairwise(times)), default=1.0)


def _steps(numbers: Iterable[int]) -> list[Any]:
    before, steps = 0, []
    for number in numbers:
        steps.append(number - before)
        before = number
    packed: list[Any] = []
    for step, group in itertools.groupby(steps):
        times = sum(1 for _ in group)
        packed += [[step, times]] if times > 3 else [step] * times
    return packed


def _series(channel: str, title: str, values: Sequence[float | None], highest: float) -> dict[str, Any]:
    read = [(place, value) for place, value in enumerate(values) if value is not None]
    own = max((abs(value) for _, value in read), default=0.0)
    finest = max(own / OWN_RESOLUTION, highest / RESOLUTION)
    quantum: float = 2.0 ** max(0, math.ceil(math.log2(finest))) if finest > 0 else 1.0
    drawn = stroke(channel)
    packed: dict[str, Any] = {
        "channel": channel,
        "title": title,
        "light": drawn.colour.light,
        "dark": drawn.colour.dark,
        "dash": list(drawn.dash),
        "quantum": quantum,
        "values": _steps(round(value / quantum) for _, value in read),
    }
    if len(read) < len(values):
        packed["places"] = _steps(place for place, _ in read)
    return packed


def stack_data(report: Report) -> list[dict[str, Any]]:
    """Flame graphs for the page, one of the growth and one of what is alive; empty where no stacks were taken.

    Each has its frames once, as `[name, file:line]`, and its tree as rows `[depth, frame, bytes]`, children behind their parent.
    """
    try:
        found = profiles(report)
    except NoStacks:
        return []
    drawn = []
    for profile in found:
        root: dict[Any, Any] = {}
        total = 0
        for stack, weight in profile.stacks:
            total += weight
            level = root
            for frame in stack:
                node = level.setdefault(frame, [0, {}])
                node[0] += weight
                level = node[1]
        frames: dict[Any, int] = {}
        rows: list[list[int]] = []
        _walk(root, 0, frames, rows)
        drawn.append(
            {
                "title": profile.kind,
                "total": total,
                "frames": [[frame.name, f"{frame.file}:{frame.line}" if frame.file else ""] for frame in frames],
                "rows": rows,
            }
        )
    return drawn


def _walk(level: dict[Any, Any], depth: int, frames: dict[Any, int], rows: list[list[int]]) -> None:
    pending = [(depth, frame, node) for frame, node in sorted(level.items(), key=lambda item: item[1][0])]
    while pending and len(rows) < FRAMES_DRAWN:
        at, frame, (weight, children) = pending.pop()
        rows.append([at, frames.setdefault(frame, len(frames)), weight])
        pending.extend((at + 1, child, node) for child, node in sorted(children.items(), key=lambda item: item[1][0]))
