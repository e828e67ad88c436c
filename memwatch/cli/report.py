"""`memwatch report`: the verdict, then the proof."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from memwatch import report as reports
from memwatch.cli import FOUND, OK, options, records
from memwatch.cli.screen import NotThere, is_coloured, put, say, width
from memwatch.model import SEVERITY_ORDER, Report
from memwatch.record import RecordError
from memwatch.report.palette import STATE_TERMINAL
from memwatch.report.words import status


@click.command("report", short_help="The verdict on one process, then the proof.")
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json (schema 1).")
@click.option("--format", "format_", metavar="FORMAT", help=f"One of {', '.join(reports.FORMATS)} [text].")
@click.option("--now", is_flag=True, help="Let the running process look at itself first: what grows, else what is alive.")
@click.option("--fail-on", type=click.Choice(["growing", "leaking"]), help="Exit 1 if the state is this or worse.")
@options.settings("directory")
def command(target: str | None, as_json: bool, format_: str | None, now: bool, fail_on: str | None, directory: str | None) -> int:
    """The verdict on one process, then the proof.

    TARGET is a pid, a name, a record file or a directory of records; by default the newest record.  Of several, the one with the
    worst verdict is shown.
    """
    if as_json and format_ not in (None, "json"):
        raise click.UsageError(f"--json and --format {format_} contradict each other")
    format_ = "json" if as_json else format_ or "text"
    if format_ not in reports.FORMATS:
        raise click.UsageError(f"--format: {format_!r} is not one of {', '.join(reports.FORMATS)}")
    path = records.find(target, options.record_directory(options.load(directory=directory)))
    if now:
        _look(path)
    try:
        report = records.read(path, history=True).report
    except RecordError as error:
        raise NotThere(str(error)) from None
    try:
        text = reports.render(report, format_, width=width())
    except reports.NoStacks as error:
        raise click.UsageError(f"--format {format_}: {error}") from None
    put(coloured(text, report) if format_ == "text" and is_coloured(sys.stdout) else text)
    if fail_on is None:
        return OK
    return FOUND if SEVERITY_ORDER.index(report.verdict.state) <= SEVERITY_ORDER.index(fail_on) else OK


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
