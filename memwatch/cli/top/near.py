"""One process from near, as text: its headline, its curve, and what each page below them says.

Law: pure, but for the zone that times are told in.  No line is wider than asked for; what is left out is counted and said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from memwatch.cli.top.draw import Line, picture, stretched
from memwatch.model import Event, Report
from memwatch.report import headline, shown
from memwatch.report.curve import Curve, Series, memory_curve, resource_curve
from memwatch.report.happenings import happened
from memwatch.report.layout import cells, padded, wrapped
from memwatch.report.palette import STATE_TERMINAL, STROKE_TERMINAL
from memwatch.report.text import facts, sections
from memwatch.report.words import STATE_WORDS, fate_word, is_bytes, moment, status
from memwatch.units import format_count, format_duration, format_size

PAGES = ("Evidence", "Caches", "Events", "Channels", "Process")
HEADLINE_MOST = 600
"""Characters of a headline: a process may have a name of any length."""
FACT_MOST = 600
"""Characters of one fact about a process, such as its labels."""
LINES_MOST = 1000
EVENTS_MOST = 200
"""The newest of them; `memwatch report --json` has all."""
SERIES_DRAWN = 3
DASHES: Sequence[tuple[int, int] | None] = (None, (5, 3), (2, 4))
SAMPLES_OF_DASHES = ("⠤⠤⠤", "⠤ ⠤", "⠄⠠ ")
HEADING = re.compile(r"^  (?:[^ \n].*:$|[a-z][a-z ]+:)", re.MULTILINE)
RELIEF = ("pressure", "relief")


# -- times ---------------------------------------------------------------------------------------------------------------------


def clock(time_s: float) -> str:
    """A time of day in the reader's zone, with UTC beside it where that differs: `14:03:11 (13:03:11 UTC)`."""
    here = _here(time_s)
    utc = moment(time_s)[11:]
    if here is None or not utc:
        return "?"
    return f"{utc} UTC" if here.tm_gmtoff == 0 else f"{time.strftime('%H:%M:%S', here)} ({utc} UTC)"


def day(time_s: float) -> str:
    """A date in the reader's zone."""
    here = _here(time_s)
    return "" if here is None else time.strftime("%Y-%m-%d", here)


def _here(time_s: float) -> time.struct_time | None:
    try:
        return time.localtime(time_s)
    except (OverflowError, ValueError, OSError):
        return None  # no moment that a calendar has


# -- the headline --------------------------------------------------------------------------------------------------------------


def headline_text(report: Report, width: int) -> Text:
    """The verdict in one sentence, in lines of *width* cells, its word in colour."""
    word = status(report.verdict)
    sentence = _clipped(headline(report).removeprefix(word).lstrip(" "), HEADLINE_MOST)
    lines = wrapped(sentence, width, first=f"{word}  ", rest="  ")
    text = Text("\n".join(lines), no_wrap=True)
    text.stylize(f"bold {STATE_TERMINAL[report.verdict.state]}", 0, len(word))
    return text


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … and {len(text) - most:,} more characters"


# -- the curve -----------------------------------------------------------------------------------------------------------------


def curve_of(report: Report, *, resources: bool) -> Curve | None:
    """The curve that is drawn: of memory, or of descriptors, threads, tasks and children."""
    return resource_curve(report) if resources else memory_curve(report)


def curve_text(report: Report, width: int, height: int, *, resources: bool) -> Text:
    """A curve of *height* rows with its legend, the verdict over time and the times under it: three rows more."""
    curve = curve_of(report, resources=resources)
    what = "descriptors, threads, tasks and children" if resources else "memory"
    if curve is None:
        return Text(f"no curve of {what} yet: fewer than two samples were taken", style="dim")
    others = [one.channel for one in curve.series] if resources else []
    channels = dict.fromkeys([*([] if resources else ("rss", "heap")), report.verdict.channel, *others])
    by_name = {one.channel: one for one in curve.series}
    drawn = [by_name[name] for name in channels if name in by_name][:SERIES_DRAWN]
    lines = [Line(_points(curve, one), DASHES[place]) for place, one in enumerate(drawn)]
    read = [value for line in lines for _, value in line.points if value is not None]
    low, high = min(read), max(read)
    if curve.draws_limit and curve.limit is not None:
        high = max(high, curve.limit)
        lines.append(Line([(curve.times[0], curve.limit), (curve.times[-1], curve.limit)], (1, 3)))
    low, high = stretched(low, high)

    def told(value: float) -> str:
        return format_size(value) if curve.unit == "bytes" else format_count(value)

    labels = {0: told(high), height // 2: told(high - (high - low) * (height // 2) / max(1, height - 1)), height - 1: told(low)}
    side = max(map(cells, labels.values()))
    across = max(10, width - side - 3)
    styles = [STROKE_TERMINAL.get(one.channel, "") for one in drawn]
    legend = Text(no_wrap=True)
    for place, one in enumerate(drawn):
        newest = next(value for value in reversed(one.values) if value is not None)
        legend.append(SAMPLES_OF_DASHES[place], style=styles[place])
        legend.append(f" {one.title} {told(newest)}   ")
    if curve.limit is not None:
        legend.append(f"{'⠄⠠ ' if curve.draws_limit else ''}limit {told(curve.limit)}")
    legend.rstrip()
    text = Text(" " * min(side + 3, max(0, width - legend.cell_len)), no_wrap=True)
    text.append_text(legend)
    text.truncate(width, overflow="ellipsis")
    rows = picture(lines, across, height, times=(curve.times[0], curve.times[-1]), levels=(low, high))
    for place, row in enumerate(rows):
        text.append(f"\n{padded(labels.get(place, ''), side, right=True)} {'┤' if place in labels else '│'} ", style="dim")
        for cell in row:
            text.append(cell.char, style=styles[cell.line] if cell.line is not None and cell.line < len(styles) else "")
    text.append("\n")
    text.append(" " * (side + 1) + "└ ", style="dim")
    text.append_text(_strip(curve, across))
    text.append("\n")
    text.append(_times(curve, across, indent=side + 3), style="dim")
    return text


def _points(curve: Curve, one: Series) -> list[tuple[float, float | None]]:
    """The readings of a channel, which may be read more rarely than others, and the moments that nobody watched."""
    whole = zip(curve.times, one.values, strict=True)
    return [(time_s, value) for place, (time_s, value) in enumerate(whole) if value is not None or place in curve.gaps]


def _strip(curve: Curve, width: int) -> Text:
    """The verdict over time: its words where there is room for them, its colours everywhere."""
    start, length = curve.times[0], curve.times[-1] - curve.times[0]
    text = Text()
    for span in curve.spans:
        columns = round((span.until_s - start) / length * width) - cells(text.plain) if length > 0 else 0
        if columns <= 0:
            continue
        word = STATE_WORDS[span.state]
        body = f"{word} " if len(word) + 2 <= columns else ""
        text.append(padded(body, columns).replace(" ", "─") if not body else body + "─" * (columns - len(body) - 1) + "┤")
        text.stylize(STATE_TERMINAL[span.state], len(text) - columns)
    return text


def _times(curve: Curve, width: int, *, indent: int) -> str:
    first, last = clock(curve.times[0]), clock(curve.times[-1])
    if day(curve.times[0]) != day(curve.times[-1]):
        first, last = f"{day(curve.times[0])} {first}", f"{day(curve.times[-1])} {last}"
    middle = format_duration(curve.times[-1] - curve.times[0])
    room = width - cells(first) - cells(last)
    if room < cells(middle) + 4:
        return " " * indent + (first + " " * room + last if room >= 2 else last)
    left = (room - cells(middle)) // 2
    return " " * indent + first + " " * left + middle + " " * (room - left - cells(middle)) + last


# -- the pages -----------------------------------------------------------------------------------------------------------------


def page(name: str, report: Report, width: int) -> Text:
    """What one of `PAGES` says, in lines of *width* cells."""
    match name:
        case "Evidence":
            lines = _evidence(report, width)
        case "Caches":
            lines = sections(report, width)["caches"] or wrapped(
                "no caches: caches made with memwatch.caches in this process would stand here", width, first="  "
            )
        case "Events":
            lines = list(_events(report, width))
        case "Channels":
            lines = sections(report, width)["channels"] or ["  nothing was read yet"]
        case _:
            lines = list(_process(report, width))
    if len(lines) > LINES_MOST:
        lines = [*lines[:LINES_MOST], f"  … and {len(lines) - LINES_MOST:,} more lines: memwatch report has them"]
    text = Text("\n".join(lines), no_wrap=True)
    text.highlight_regex(HEADING, style="bold")
    for state, colour in STATE_TERMINAL.items():
        text.highlight_regex(re.compile(rf"(?<=  )({state})(?=$|  |: )", re.MULTILINE), style=colour)
    return text


def _evidence(report: Report, width: int) -> list[str]:
    lines = []
    reason = shown(report.verdict.reason)
    if reason and reason not in headline(report):
        lines += [*wrapped(_clipped(reason, FACT_MOST), width, first="  "), ""]
    found = sections(report, width)["evidence"]
    if found:
        return lines + found
    why = "e lets the process look at itself now" if report.process.fate == "running" else "and the process has ended"
    return lines + wrapped(f"no evidence was taken; {why}", width, first="  ")


def _events(report: Report, width: int) -> Iterator[str]:
    relief = [event for event in report.events if event.what in RELIEF]
    others = [event for event in report.events if event.what not in RELIEF]
    yield from _list(relief, "relief log, the newest first:", width) if relief else ["  relief log: no pressure so far"]
    yield ""
    yield from _list(others, "what else happened, the newest first:", width) if others else ["  nothing else happened"]


def _list(events: Sequence[Event], name: str, width: int) -> Iterator[str]:
    yield f"  {name}"
    before = ""
    for event in reversed(events[-EVENTS_MOST:]):
        date = day(event.time_s)
        if date != before:
            before = date
            yield f"  {date or 'at an unknown time'}"
        what = _clipped(shown(event.what), 12)
        told = _clipped(happened(event), FACT_MOST)
        yield from wrapped(told, width, first=f"    {clock(event.time_s)}  {what}  ", rest=" " * 8)
    if len(events) > EVENTS_MOST:
        yield f"    … and {len(events) - EVENTS_MOST:,} older ones: memwatch report --json has them"


def _process(report: Report, width: int) -> Iterator[str]:
    process = report.process
    mine: Mapping[str, str] = {
        name: f"{day(time_s)} {clock(time_s)}"
        for name, time_s in (("started", process.started), (fate_word(process), process.ended))
        if time_s is not None
    }
    for name, text in facts(report):
        said = mine.get(name, text)
        if name == fate_word(process) and name in mine and process.end:
            said += f": {shown(process.end)}"
        yield from wrapped(_clipped(said, FACT_MOST), width, first=f"  {padded(name, 10)}")
    for setting, value in process.settings.items():
        yield from wrapped(_clipped(f"{shown(setting)} = {shown(value)}", FACT_MOST), width, first=f"  {padded('setting', 10)}")


def grows_in_count(report: Report) -> bool:
    """Whether what grows is counted, not measured in bytes: then that curve comes first."""
    return report.verdict.state in ("leaking", "growing") and not is_bytes(report.verdict.channel)


def shortened_who(report: Report) -> str:
    """`name[pid]` for a line among others."""
    name = shown(report.process.name[:200])
    return f"{name if len(name) <= 40 else name[:40] + '…'}[{report.process.pid}]"
