"""The command line: one module per command, loaded when it is called.

Law: data on stdout, chatter on stderr; exit 0 fine, 1 a finding with `--fail-on`, 2 usage, 3 no such process or record; an expected
error is one line, never a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from memwatch import __version__
from memwatch.config import SettingError

OK, FOUND, USAGE, NOT_THERE = 0, 1, 2, 3
INTERRUPTED = 130  # 128 + SIGINT, as a shell says it

COMMANDS = ("run", "ps", "top", "report", "diff", "watch", "gc", "serve", "soak", "doctor", "demo")


class Commands(click.Group):
    """Loads the module of a command when it is asked for: `memwatch run` must not wait for a table it never draws."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"memwatch.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 a finding with --fail-on, 2 usage, 3 no such process or record.",
)
@click.version_option(__version__, prog_name="memwatch")
def commands() -> None:
    """Says whether a Python service leaks memory, how fast, and when it will run out.

    \b
    memwatch demo                   see it find a leak
    memwatch run -- python app.py   watch a command without touching its code
    memwatch ps                     what is watched on this machine
    memwatch top                    the same, live
    memwatch report app             the verdict, then the proof
    memwatch diff app@-1h app       what grew in the last hour
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets its number, not an exception
            stream.reconfigure(errors="backslashreplace")
    try:
        status = commands.main(list(arguments) if arguments is not None else None, prog_name="memwatch", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Abort:
        return INTERRUPTED
    except SettingError as error:
        click.echo(f"memwatch: {error}", err=True)
        return USAGE
    except OSError as error:
        from memwatch.cli.screen import NotWritten, drop_stdout

        drop_stdout()
        NotWritten(error.strerror or str(error)).show()  # the help, which click writes itself
        return NotWritten.exit_code
    return status if isinstance(status, int) else OK


def _open_what_is_closed() -> None:
    """Where the shell closed a stream (`>&-`) Python has none: what is told is dropped, and data meets an error on writing."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
