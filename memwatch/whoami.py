"""Who the watched process is, for its record; and whether the process of a record is still there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from memwatch.config import Config
from memwatch.model import Process
from memwatch.record import RecordError, read_report
from memwatch.vitals import identity, is_running, oom_kills


def describe_process(config: Config) -> Process:
    """This process, as its record and reports name it."""
    me = identity()
    return Process(
        pid=os.getpid(),
        name=config.name or process_name(me.command),
        command=tuple(me.command),
        python=".".join(map(str, sys.version_info[:3])),
        host=os.uname().nodename if hasattr(os, "uname") else "",
        labels=dict(config.labels),
        started=me.started_s,
        ppid=me.ppid,
        start_ticks=me.start_ticks,
        boot=me.boot,
        interval_s=config.interval_s,
        oom_kills=oom_kills(),
    )


def process_name(command: Sequence[str]) -> str:
    """A name a person would give: the script or module, not the interpreter."""
    for index, word in enumerate(command[1:], start=1):
        if word == "-m" and index + 1 < len(command):
            return command[index + 1]
        if word == "-c":
            return "python -c"
        if not word.startswith("-"):
            stem = Path(word).name
            return stem.removesuffix(".py") or stem
    return Path(command[0]).name if command else "python"


def process_is_running(process: Process) -> bool:
    """Whether the process of a record is still there, and not another one with its pid."""
    return process.ended is None and is_running(process.pid, process.start_ticks, process.boot)


def is_dead(path: Path) -> bool:
    """Whether a record's process has ended.  A file that cannot be read is not ours to judge: False."""
    try:
        return not process_is_running(read_report(path, history=False).process)
    except RecordError:
        return False


def refusal() -> str | None:
    """Why this interpreter is not to be watched; None if it is."""
    for module_name in ("_interpreters", "_xxsubinterpreters"):
        try:
            module = __import__(module_name)
            current, main = module.get_current(), module.get_main()
        except (ImportError, AttributeError):
            continue
        if current != main:
            return "this is a sub-interpreter; start memwatch in the main one, it sees the whole process"
        break
    return None
