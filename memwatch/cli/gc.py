"""`memwatch gc`: let a running process collect garbage, and tell what that freed."""

from __future__ import annotations

import json

import click

from memwatch import live
from memwatch.cli import OK
from memwatch.cli.screen import NotThere, put
from memwatch.model import Freed
from memwatch.units import format_count, format_duration, format_size


@click.command("gc", short_help="Let a process collect its garbage.")
@click.argument("pid", type=int)
@click.option("--json", "as_json", is_flag=True, help="What it freed, as JSON.")
def command(pid: int, as_json: bool) -> int:
    """Let the process PID collect garbage and give free memory back to the system; tell what that freed.

    It is a pause: about 0.24 s per million containers.  The process must have been started with MEMWATCH_SOCKET=control.
    """
    try:
        status, body = live.ask(pid, "POST", "/gc")
    except live.NoAnswer as error:
        raise NotThere(str(error)) from None
    if status != 200:
        raise click.ClickException(live.error_of(body))
    freed = Freed.from_dict(json.loads(body))
    put(body.decode() if as_json else f"{told(freed)}\n")
    return OK


def told(freed: Freed) -> str:
    """What a collection freed, in one line."""
    parts = [f"collected {format_count(freed.collected)} objects in {format_duration(freed.took_s)}"]
    if freed.heap_bytes is not None:
        parts.append(f"heap {format_size(-freed.heap_bytes, sign=True)}")
    if freed.rss_bytes is not None:
        parts.append(f"resident {format_size(-freed.rss_bytes, sign=True)}")
    if not freed.trimmed:
        parts.append("malloc was not asked to give pages back")
    return "; ".join(parts)
