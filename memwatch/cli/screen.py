"""What goes to the terminal and how: data on stdout, chatter on stderr, colour only where somebody sees it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


class NotThere(click.ClickException):
    """No such process or record."""

    exit_code = 3

    def show(self, file: IO[Any] | None = None) -> None:
        say(self.message)


class NotWritten(click.ClickException):
    """The data could not be written: a full disk, or no standard output at all."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        say(f"cannot write to standard output: {self.message}")


class CannotWrite(click.ClickException):
    """A file that was asked for could not be written; the message names it."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        say(self.message)


class NobodyReads(NotWritten):
    """Whoever read us (`head`, a pager) has seen enough, and that is fine."""

    exit_code = 0

    def show(self, file: IO[Any] | None = None) -> None:
        pass


def say(text: str) -> None:
    """One line of chatter; broken where the terminal ends, whole in a log."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)  # names of files hold anything
    line = f"memwatch: {text}"
    if sys.stderr.isatty():
        from memwatch.report.layout import wrapped  # here and below: `memwatch run` starts its command first

        line = "\n".join(wrapped(text, shutil.get_terminal_size().columns, first="memwatch: ", rest="  "))
    click.echo(line, err=True)


def put(data: str | bytes) -> None:
    """Data.  A text ends with its own newline."""
    try:
        if isinstance(data, bytes):
            sys.stdout.buffer.write(data)
        else:
            sys.stdout.write(data)
        sys.stdout.flush()
    except OSError as error:
        drop_stdout()
        raise (NobodyReads if isinstance(error, BrokenPipeError) else NotWritten)(error.strerror or str(error)) from None


def drop_stdout() -> None:
    """Python flushes once more at exit, and would complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def put_json(value: Any) -> None:
    """Data for programs: ASCII, no infinities."""
    from memwatch.report import without_infinities

    put(json.dumps(without_infinities(value), indent=2, allow_nan=False) + "\n")


def is_coloured(stream: IO[str]) -> bool:
    """Whether *stream* takes colour: NO_COLOR (no-color.org) before FORCE_COLOR before whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Columns of a report: the terminal's; for a file or a pipe what COLUMNS says, else enough for a mail."""
    from memwatch.report import WIDTH

    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size((WIDTH, 24)).columns
    return WIDTH


def console(stream: IO[str]) -> Console:
    """A rich console: as wide as the terminal, and where there is none as wide as its content, so that a row stays a line."""
    from rich.console import Console

    forced = is_coloured(stream)
    return Console(
        file=stream,
        force_terminal=stream.isatty() or forced,
        no_color=not forced,
        width=None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else 10_000,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        legacy_windows=False,
    )
