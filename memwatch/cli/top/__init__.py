"""`memwatch top`: every watched process of this machine, live, and one of them from near.

Law: it reads records and nothing else, so that the processes need not be alive; only the keys that say so ask a process for
something.  Records are read on another thread than the one that draws.  What a record says is text, never markup.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import click

from memwatch.cli import OK, USAGE, options, records
from memwatch.cli.screen import say
from memwatch.units import UnitError, parse_duration

LEAST_EVERY_S = 0.2
"""Reading more often than this shows nothing that a person could follow."""


@click.command("top", short_help="All watched processes, live.")
@click.argument("target", required=False)
@click.option("--every", default="2s", metavar="DURATION", help="Time between two looks at the records [2s].")
@options.settings("directory")
def command(target: str | None, every: str, directory: str | None) -> int:
    """The watched processes of this machine, live: states, rates, curves; enter opens one, ? tells the keys.

    TARGET is a pid, a name or a record file, which is opened at once, or a directory of records to look at.
    """
    try:
        every_s = parse_duration(every)
    except UnitError as error:
        raise click.UsageError(f"--every: {error}") from None
    if every_s < LEAST_EVERY_S:
        raise click.UsageError(f"--every: {every!r} is too often; at least {LEAST_EVERY_S * 1000:.0f}ms")
    place = options.record_directory(options.load(directory=directory))
    if importlib.util.find_spec("textual") is None:
        say("memwatch top needs textual: pip install 'memwatch[tui]'")
        return USAGE
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.__stderr__ or sys.stderr)):
        say("memwatch top draws on a terminal, and this is none: memwatch ps lists the same processes")
        return USAGE
    if os.environ.get("TERM") in (None, "", "dumb", "unknown"):
        say("memwatch top cannot draw on this terminal (TERM says nothing that it knows): memwatch ps lists the same processes")
        return USAGE
    opened: Path | None = None
    if target is not None and Path(target).is_dir():
        place = Path(target)
    elif target is not None:
        opened = records.find(target, place)
        place = opened.parent
    from memwatch.cli.top.app import Top

    Top(place, opened=opened, every_s=every_s).run()
    return OK
