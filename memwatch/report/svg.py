"""The curve as a picture by itself, for a ticket, a chat or paper: SVG.

Law: pure; light ground, no script, no font of its own, no reference to anything outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

from memwatch.model import Report
from memwatch.report.curve import Curve, NothingToDraw, Series, memory_curve, resource_curve
from memwatch.report.layout import cells, shown, wrapped
from memwatch.report.palette import STATE_COLOURS, stroke
from memwatch.report.words import RESOURCE_KINDS, headline
from memwatch.units import SIZE_UNITS, format_count, format_size

WIDTH, HEIGHT = 960, 420
POINTS_DRAWN = 600
"""A line has no more points than this: about two of three pixels."""
LEFT, RIGHT, BOTTOM = 78, 16, 34
LINE = 17
CHARACTERS = 108
"""Of the headline in a line, at this size of type."""
HALO = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'
INK, SOFT, RULE, GROUND = "#1d2127", "#555d69", "#d9dde3", "#ffffff"
FONT = 'font-family="system-ui, DejaVu Sans, Liberation Sans, sans-serif"'
TICKS = 5
DAY_S = 86400.0
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, DAY_S)
MOST_LINES = 4
"""Of the headline; a name as long as a page has no room in a picture."""


def render_svg(report: Report) -> str:
    """The curve of what the verdict is about, under its sentence.

    Raises:
        NothingToDraw: fewer than two readings were kept.
    """
    of_resources = report.verdict.kind in RESOURCE_KINDS
    curve = (resource_curve(report) if of_resources else None) or memory_curve(report)
    if curve is None:
        raise NothingToDraw("there is no curve to draw: fewer than two readings were kept; --format text tells what is known")
    lines = wrapped(headline(report), CHARACTERS)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][: CHARACTERS - 1] + "…"]
    return picture(curve, lines) + "\n"


def picture(curve: Curve, title: list[str] | None = None, *, label: str = "") -> str:
    """One curve as an `<svg>` element, with *title* above it.

    Args:
        label: what it is called for whoever does not see it; the title by default.
    """
    heading = title or []
    top = 14 + LINE * len(heading) + (8 if heading else 0)
    legend_y = top + 12
    frame = _Frame(curve, top + 34, HEIGHT + LINE * len(heading) - BOTTOM)
    height = frame.bottom + BOTTOM
    name = escape(label or " ".join(heading) or "memory over time")
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{name}" {FONT} font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="{GROUND}"/>',
    ]
    style = f'font-size="13.5" fill="{INK}" font-weight="600"'
    for number, line in enumerate(heading):
        parts.append(f'<text x="{RIGHT}" y="{22 + LINE * number}" {style}>{escape(line)}</text>')
    parts += [*_legend(curve, legend_y), *_states(curve, frame), *_grid(curve, frame), *_marks(curve, frame)]
    parts += [*_trend(curve, frame), *_limit(curve, frame)]
    for series in curve.series:
        parts.append(_line(series, curve, frame))
    return "\n".join([*parts, *_projection(curve, frame), "</svg>"])


class _Frame:
    """Where things are: times from left to right, values from bottom to top."""

    def __init__(self, curve: Curve, top: float, bottom: float) -> None:
        self.top, self.bottom = top, bottom
        self.start_s, self.end_s = curve.times[0], max(curve.until_s, curve.times[-1])
        self.low, self.high = value_range(curve)

    def x(self, time_s: float) -> float:
        part = (time_s - self.start_s) / ((self.end_s - self.start_s) or 1.0)
        return LEFT + min(max(part, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        part = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.bottom - min(max(part, -0.02), 1.02) * (self.bottom - self.top)


def value_range(curve: Curve) -> tuple[float, float]:
    """The lowest and the highest value of the picture; from zero where that does not press the curves flat."""
    values = [value for series in curve.series for value in series.values if value is not None]
    if curve.draws_limit and curve.limit is not None:
        values.append(curve.limit)
    if curve.projection is not None:
        p = curve.projection
        values.append(p.level + (p.limit - p.level) * (curve.until_s - p.from_s) / ((p.until_s - p.from_s) or 1.0))
    low, high = min(values), max(values)
    if low < 0.7 * high:
        low = 0.0
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    return (low - margin if low else 0.0), high + margin


def value_ticks(low: float, high: float, what: str) -> list[tuple[float, str]]:
    """Round values for a scale, with their text.  Bytes are round in their own unit, which is binary and the same for all."""
    factor, unit = 1.0, 0
    while what == "bytes" and unit < len(SIZE_UNITS) - 1 and max(abs(low), abs(high)) >= 1024 * factor:
        factor, unit = factor * 1024, unit + 1
    raw = (high - low) / factor / TICKS
    if not math.isfinite(raw) or raw <= 0:
        return []
    power: float = 10.0 ** math.floor(math.log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw)
    if what != "bytes":
        step = max(1.0, step)
    first = math.ceil(low / factor / step)
    places = [number * step * factor for number in range(first, math.floor(high / factor / step) + 1)]
    if what != "bytes":
        return [(place, format_count(place)) for place in places]
    return [(place, f"{place / factor:.6g} {SIZE_UNITS[unit]}" if place else "0") for place in places]


def time_ticks(start_s: float, end_s: float) -> list[tuple[float, str]]:
    """Round moments, with their text in UTC."""
    raw = (end_s - start_s) / 7 or 1.0
    step = next((nice for nice in _STEPS_S if nice >= raw), None) or math.ceil(raw / DAY_S) * DAY_S
    first = math.ceil(start_s / step)
    pattern = "%d %b" if step >= DAY_S else "%H:%M" if step >= 60 else "%H:%M:%S"
    if step < DAY_S < end_s - start_s:
        pattern = "%d %b %H:%M"
    return [(number * step, _date(number * step, pattern)) for number in range(first, math.floor(end_s / step) + 1)]


def _date(time_s: float, pattern: str) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime(pattern)
    except (ValueError, OverflowError, OSError):
        return "?"


def _legend(curve: Curve, y: float) -> Iterator[str]:
    x: float = LEFT
    for series in curve.series:
        drawn = stroke(series.channel)
        dash = f' stroke-dasharray="{" ".join(map(str, drawn.dash))}"' if drawn.dash else ""
        yield f'<path d="M{x:.0f} {y - 4:.0f}h26" stroke="{drawn.colour.light}" stroke-width="2.2"{dash}/>'
        name = shown(series.title)
        yield f'<text x="{x + 32:.0f}" y="{y:.0f}" fill="{INK}">{escape(name)}</text>'
        x += 48 + 7 * cells(name)
    yield f'<text x="{WIDTH - RIGHT}" y="{y:.0f}" fill="{SOFT}" text-anchor="end">times in UTC</text>'


def _states(curve: Curve, frame: _Frame) -> Iterator[str]:
    """The verdict over time, as a strip above the curves, with its word where there is room."""
    for span in curve.spans:
        left, right = frame.x(span.from_s), frame.x(span.until_s)
        colour = STATE_COLOURS[span.state].light
        yield f'<rect x="{left:.1f}" y="{frame.top - 14:.1f}" width="{max(0.8, right - left):.1f}" height="12" fill="{colour}"/>'
        if right - left > 8 + 6.2 * len(span.state):
            y = frame.top - 4.5
            yield f'<text x="{left + 4:.1f}" y="{y:.1f}" fill="#fff" font-size="10" font-weight="600">{span.state}</text>'


def _grid(curve: Curve, frame: _Frame) -> Iterator[str]:
    for value, text in value_ticks(frame.low, frame.high, curve.unit):
        y = frame.y(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{RULE}"/>'
        yield f'<text x="{LEFT - 7}" y="{y + 4:.1f}" fill="{SOFT}" text-anchor="end">{text}</text>'
    for time_s, text in time_ticks(frame.start_s, frame.end_s):
        x = frame.x(time_s)
        yield f'<path d="M{x:.1f} {frame.bottom:.1f}v5" stroke="{SOFT}"/>'
        if LEFT + 20 < x < WIDTH - RIGHT - 20:
            yield f'<text x="{x:.1f}" y="{frame.bottom + 18:.1f}" fill="{SOFT}" text-anchor="middle">{text}</text>'
    yield f'<path d="M{LEFT} {frame.bottom:.1f}H{WIDTH - RIGHT}" stroke="{SOFT}"/>'


def _marks(curve: Curve, frame: _Frame) -> Iterator[str]:
    for mark in curve.marks:
        x = frame.x(mark.time_s)
        yield (
            f'<g><title>{escape(mark.kind)}: {escape(mark.text)}</title><path d="M{x:.1f} {frame.top:.1f}V{frame.bottom:.1f}" '
            f'stroke="{SOFT}" stroke-dasharray="1 4"/><path d="M{x:.1f} {frame.top:.1f}l-4 -7h8z" fill="{SOFT}"/></g>'
        )


def _line(series: Series, curve: Curve, frame: _Frame) -> str:
    drawn = stroke(series.channel)
    gaps = set(curve.gaps)
    points = [
        (None if place in gaps else (frame.x(time_s), frame.y(value)) if value is not None else ())
        for place, (time_s, value) in enumerate(zip(curve.times, series.values, strict=True))
    ]
    read = [point for point in points if point != ()]
    every = max(1, math.ceil(2 * len(read) / POINTS_DRAWN))
    path, pen = [], "M"
    for group in (read[place : place + every] for place in range(0, len(read), every)):
        if None in group:
            pen = "M"
        kept = [point for point in group if point]
        extremes = (
            {min(range(len(kept)), key=lambda at: kept[at][1]), max(range(len(kept)), key=lambda at: kept[at][1])} if kept else ()
        )
        for place in sorted(extremes):
            path.append(f"{pen}{kept[place][0]:.1f} {kept[place][1]:.1f}")
            pen = "L"
    dash = f' stroke-dasharray="{" ".join(map(str, drawn.dash))}"' if drawn.dash else ""
    return f'<path d="{"".join(path)}" fill="none" stroke="{drawn.colour.light}" stroke-width="1.8" stroke-linejoin="round"{dash}/>'


def _trend(curve: Curve, frame: _Frame) -> Iterator[str]:
    trend = curve.trend
    if trend is None:
        return
    colour = STATE_COLOURS["leaking"].light
    ends = (trend.from_s, trend.until_s)
    corners = [(time_s, trend.at(time_s, rate)) for rate in (trend.rate_low, trend.rate_high) for time_s in ends]
    first, second, third, fourth = (f"{frame.x(time_s):.1f},{frame.y(value):.1f}" for time_s, value in corners)
    # The two lines cross in the middle: a bow tie, of two triangles.
    middle = f"{frame.x(sum(ends) / 2):.1f},{frame.y(trend.middle):.1f}"
    yield f'<path d="M{first}L{middle}L{third}zM{second}L{middle}L{fourth}z" fill="{colour}" opacity="0.16"/>'
    (x1, y1), (x2, y2) = ((frame.x(time_s), frame.y(trend.at(time_s))) for time_s in ends)
    line = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"
    yield f'<path d="{line}" stroke="{colour}" stroke-width="5" opacity="0.35" stroke-linecap="round"/>'


def _limit(curve: Curve, frame: _Frame) -> Iterator[str]:
    if curve.limit is None:
        return
    text = f"limit {format_size(curve.limit) if curve.unit == 'bytes' else format_count(curve.limit)}"
    if not curve.draws_limit:
        yield f'<text x="{WIDTH - RIGHT - 4}" y="{frame.top + 14:.1f}" fill="{SOFT}" text-anchor="end" {HALO}>↑ {text}</text>'
        return
    y = frame.y(curve.limit)
    yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-width="1.4" stroke-dasharray="2 4"/>'
    yield f'<text x="{LEFT + 6}" y="{y - 5:.1f}" fill="{INK}" {HALO}>{text}</text>'


def _projection(curve: Curve, frame: _Frame) -> Iterator[str]:
    ahead = curve.projection
    if ahead is None:
        return
    colour = STATE_COLOURS["leaking"].light
    part = (curve.until_s - ahead.from_s) / ((ahead.until_s - ahead.from_s) or 1.0)
    end = ahead.level + (ahead.limit - ahead.level) * min(part, 1.0)
    x, y = frame.x(curve.until_s), frame.y(end)
    yield (
        f'<path d="M{frame.x(ahead.from_s):.1f} {frame.y(ahead.level):.1f}L{x:.1f} {y:.1f}" stroke="{colour}" stroke-width="1.8" '
        f'stroke-dasharray="5 4"/>'
    )
    below = min(frame.bottom - 8, frame.y(ahead.level) + 18)  # under the line, which rises
    style = f'fill="{colour}" font-weight="600" text-anchor="end" {HALO}'
    yield f'<text x="{x - 6:.1f}" y="{below:.1f}" {style}>{escape(ahead.text)}</text>'
