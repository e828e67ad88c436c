"""`memwatch ps`: the watched processes of this machine, dead ones too, the worst first."""

from __future__ import annotations

import sys
from typing import Any

import click

from memwatch.cli import OK, options, records
from memwatch.cli.screen import console, put, put_json, say
from memwatch.fleet import worst_first
from memwatch.model import Report
from memwatch.report import headline, shown
from memwatch.report.layout import wrapped
from memwatch.report.palette import STATE_TERMINAL
from memwatch.report.words import (
    as_of,
    fate_word,
    grows,
    memory_limit,
    of_limit,
    pace,
    resident_bytes,
    status,
    time_left_s,
    what_grows,
    who,
)
from memwatch.units import format_duration, format_left_short


@click.command("ps", short_help="List watched processes, dead ones too.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects: process, verdict, samples, uptime, record.")
@options.settings("directory")
def command(as_json: bool, directory: str | None) -> int:
    """The watched processes of this machine, dead ones too: state, rate, memory, time left."""
    place = options.record_directory(options.load(directory=directory))
    found = worst_first(records.read_all(place))
    if as_json:
        put_json([_row_for_programs(item) for item in found])
        return OK
    if not found:
        say(f"no records in {place}; start one with 'memwatch run -- CMD'")
        return OK
    _print(found)
    return OK


def _row_for_programs(item: records.Found) -> dict[str, Any]:
    whole = item.report.to_dict()
    return {key: whole[key] for key in ("schema", "process", "verdict", "samples", "uptime_s", "fingerprint")} | {
        "rss": resident_bytes(item.report),
        "memory_limit": memory_limit(item.report),
        "record": str(item.path),
    }


def _print(found: list[records.Found]) -> None:
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("STATE", "PROCESS", "KIND"):
        table.add_column(title, no_wrap=True)
    for title in ("RATE", "RSS", "TIME LEFT"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("WATCHED", no_wrap=True)
    for item in found:
        report = item.report
        style = STATE_TERMINAL[report.verdict.state]
        table.add_row(
            Text(status(report.verdict), style="dim " + style if report.process.fate != "running" else "bold " + style),
            *(Text(cell) for cell in _cells(report)),
        )
    screen = console(sys.stdout)
    with screen.capture() as drawn:  # rich has its own ideas of what to do when nobody reads on
        if Measurement.get(screen, screen.options.update(max_width=100_000), table).maximum <= screen.width:
            screen.print(table)
        else:  # too narrow for columns: a sentence each
            for item in found:
                word = status(item.report.verdict)
                sentence = headline(item.report).removeprefix(word).lstrip(" ")
                first, *rest = wrapped(sentence, screen.width, first=f"{word}  ", rest="  ")
                screen.print(Text(word, style=STATE_TERMINAL[item.report.verdict.state]), Text(first.removeprefix(word)), sep="")
                for line in rest:
                    screen.print(Text(line))
    put(drawn.get())


def _cells(report: Report) -> tuple[str, ...]:
    verdict, moving = report.verdict, grows(report)
    rss, left_s = resident_bytes(report), time_left_s(report)
    return (
        who(report),
        what_grows(verdict) if moving else "",
        pace(verdict.channel, verdict.rate) if moving else "",
        "" if rss is None else of_limit(rss, memory_limit(report)),
        "" if left_s is None else format_left_short(left_s),
        _watched(report),
    )


def _watched(report: Report) -> str:
    process = report.process
    text = f"for {format_duration(report.statistics.uptime_s)}" if as_of(report) is not None else "no sample yet"
    if process.fate == "running":
        return text
    return f"{text}, {fate_word(process)}" + (f" ({shown(process.end)})" if process.end else "")
