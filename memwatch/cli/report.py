"""`memwatch report`: the verdict, then the proof."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

import click

from memwatch import report as reports
from memwatch.cli import FOUND, OK, options, records
from memwatch.cli.screen import CannotWrite, NotThere, is_coloured, put, say, width
from memwatch.model import SEVERITY_ORDER, Report
from memwatch.record import RecordError
from memwatch.report.palette import STATE_TERMINAL
from memwatch.report.words import status

FORMATS = (*reports.FORMATS, "png")
PICTURES = ("html", "svg", "png")
PICTURED = 8640
"""Moments of a curve that is drawn: a day, one every 10 s."""


@click.command("report", short_help="The verdict on one process, then the proof.")
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json (schema 1).")
@click.option("--format", "format_", metavar="FORMAT", help=f"One of {', '.join(FORMATS)} [text].")
@click.option("--html", "page", type=click.Path(dir_okay=False), help="Write the report to FILE as a page that needs nothing else.")
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="Write to FILE, not to standard output.")
@click.option("--now", is_flag=True, help="Let the running process look at itself first: what grows, else what is alive.")
@click.option("--fail-on", type=click.Choice(["growing", "leaking"]), help="Exit 1 if the state is this or worse.")
@options.settings("directory")
def command(
    target: str | None,
    as_json: bool,
    format_: str | None,
    page: str | None,
    output: str | None,
    now: bool,
    fail_on: str | None,
    directory: str | None,
) -> int:
    """The verdict on one process, then the proof.

    TARGET is a pid, a name, a record file or a directory of records; by default the newest record.  Of several, the one with the
    worst verdict is shown.
    """
    format_, output = _wanted(as_json, format_, page, output)
    path = records.find(target, options.record_directory(options.load(directory=directory)))
    if now:
        _look(path)
    try:
        report = records.read(path, history=True, points=PICTURED if format_ in PICTURES else None).report
    except RecordError as error:
        raise NotThere(str(error)) from None
    data = _rendered(report, format_, to_file=output is not None)
    if output is None:
        put(data)
    else:
        _write(output, data)
    if fail_on is None:
        return OK
    return FOUND if SEVERITY_ORDER.index(report.verdict.state) <= SEVERITY_ORDER.index(fail_on) else OK


def _wanted(as_json: bool, format_: str | None, page: str | None, output: str | None) -> tuple[str, str | None]:
    """Which format, and which file it goes to; None is standard output.

    Raises:
        click.UsageError: the options contradict each other, or there is no such format.
    """
    asked = {"--json": "json" if as_json else None, "--html": "html" if page is not None else None, "--format": format_}
    chosen = {option: value for option, value in asked.items() if value is not None}
    if len(set(chosen.values())) > 1:
        (first, _), (second, value), *_ = chosen.items()
        raise click.UsageError(f"{first} and {second}{f' {value}' if second == '--format' else ''} contradict each other")
    if page is not None and output is not None:
        raise click.UsageError("--html and --output both name a file; give one")
    if "" in (page, output):
        raise click.UsageError(f"{'--output' if page is None else '--html'}: the name of the file is empty")
    format_ = next(iter(chosen.values()), "text")
    if format_ not in FORMATS:
        raise click.UsageError(f"--format: {format_!r} is not one of {', '.join(FORMATS)}")
    file = page if page is not None else output
    return format_, None if file == "-" else file


def _rendered(report: Report, format_: str, *, to_file: bool) -> str | bytes:
    try:
        if format_ == "png":
            if not to_file and sys.stdout.isatty():
                raise click.UsageError("--format png: a picture is no text for a terminal; give --output FILE")
            return picture(reports.render(report, "svg"))
        text = reports.render(report, format_, width=reports.WIDTH if to_file else width())
    except (reports.NoStacks, reports.NothingToDraw) as error:
        raise click.UsageError(f"--format {format_}: {error}") from None
    return coloured(text, report) if format_ == "text" and not to_file and is_coloured(sys.stdout) else text


def picture(svg: str) -> bytes:
    """An SVG as PNG, at twice its size for screens with fine pixels.

    Raises:
        click.UsageError: the library for it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise click.UsageError("--format png needs resvg_py: pip install 'memwatch[png]'; --format svg needs nothing") from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))


def _write(name: str, data: str | bytes) -> None:
    """Write a file, whole or not at all: who had one of that name keeps it where the disk is full."""
    place = Path(name)
    beside = place.with_name(f".{place.name[:200]}.{os.getpid()}")
    try:
        if place.is_symlink() or (
            place.exists() and not place.is_file()
        ):  # /dev/stdout, a pipe: there is nothing to put in its place
            place.write_bytes(data.encode() if isinstance(data, str) else data)
        else:
            beside.write_bytes(data.encode() if isinstance(data, str) else data)
            beside.replace(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise CannotWrite(f"cannot write {name}: {error.strerror or error}") from None
    say(f"written: {name}")


def _look(path: Path) -> None:
    """Let the process of a record take evidence, and wait until it is in the record.

    Raises:
        NotThere: it does not run, or cannot be asked.
    """
    from memwatch import live

    try:
        process = records.read(path).report.process
    except RecordError as error:
        raise NotThere(str(error)) from None
    if process.fate != "running":
        raise NotThere(f"process {process.pid} does not run any more; leave out --now")
    try:
        status, body = live.ask(process.pid, "POST", "/evidence")
    except live.NoAnswer as error:
        raise NotThere(str(error)) from None
    if status != 200:
        say(f"no evidence was taken: {live.error_of(body)}")


def coloured(text: str, report: Report) -> str:
    """A text report with its verdict and the states of its channels in colour; the words stay what they are."""
    word = status(report.verdict)
    first = click.style(word, fg=STATE_TERMINAL[report.verdict.state], bold=True)
    states = re.compile(r"(?<=  )(leaking|growing|recovering|warming-up|stable)(?=$|  |: )", re.MULTILINE)
    body = states.sub(lambda match: click.style(match[0], fg=STATE_TERMINAL[match[0]]), text[len(word) :])  # type: ignore[index]
    return first + body
