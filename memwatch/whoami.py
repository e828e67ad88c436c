"""Who the watched process is, for its record; and whether the process of a record is still there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from memwatch.config import Config, described
from memwatch.model import Process
from memwatch.record import RecordError, read_report
from memwatch.vitals import identity, is_running, oom_kills

_INTERPRETER = re.compile(r"(python|pypy|graalpy)[\w.+-]*", re.IGNORECASE)
_OPTIONS_WITH_ARGUMENT = "cmWX"
# How `multiprocessing` starts its processes: `python -c "from multiprocessing.spawn import spawn_main; …"`.
_WORKER = "multiprocessing worker"
_FORK_SERVER = "multiprocessing fork server"
_MULTIPROCESSING = {
    "multiprocessing.spawn": _WORKER,
    "multiprocessing.resource_tracker": "multiprocessing resource tracker",
    "multiprocessing.forkserver": _FORK_SERVER,
}


def describe_process(config: Config) -> Process:
    """This process, as its record and reports name it."""
    me = identity()
    return Process(
        pid=os.getpid(),
        name=config.name or _own_name(me.command),
        command=tuple(map(printable, me.command)),
        python=".".join(map(str, sys.version_info[:3])),
        host=os.uname().nodename if hasattr(os, "uname") else "",
        labels=dict(config.labels),
        started=me.started_s,
        ppid=me.ppid,
        start_ticks=me.start_ticks,
        boot=me.boot,
        interval_s=config.interval_s,
        oom_kills=oom_kills(),
        settings={
            name: printable(value) if origin == "default" else printable(f"{value} ({origin})")
            for name, value, origin in described(config)
        },
    )


def _own_name(command: Sequence[str]) -> str:
    module = sys.modules.get("multiprocessing.process")
    name = process_name(command)
    # What a fork server forks has its command line.
    return _WORKER if name == _FORK_SERVER and module is not None and module.parent_process() is not None else name


def process_name(command: Sequence[str]) -> str:
    """A name a person would give: the script or module, not the interpreter.  Always printable as UTF-8.

    Args:
        command: the command line, program first.

    Source: CPython `Python/initconfig.c` and `Python/getopt.c` for what its options are, and which of them take an argument.
    """
    if not command:
        return "python"
    program = Path(command[0]).name
    if not _INTERPRETER.fullmatch(program):
        return printable(program) or "python"  # embedded, frozen, or a title that the program gave itself
    words = iter(command[1:])
    for word in words:
        if word == "--":
            return _name_of_script(next(words, "-"))
        if word == "--check-hash-based-pycs":
            next(words, None)
        elif word == "-" or not word.startswith("-"):
            return _name_of_script(word)
        elif not word.startswith("--"):
            for position, option in enumerate(word[1:], start=2):
                if option not in _OPTIONS_WITH_ARGUMENT:
                    continue
                argument = word[position:] or next(words, "")
                if option == "c":
                    return _name_of_code(argument)
                if option == "m":
                    return _MULTIPROCESSING.get(argument) or printable(argument) or "python"
                break
    return "python"


def _name_of_script(word: str) -> str:
    stem = Path(word).name
    return "python" if word == "-" or not stem else printable(stem.removesuffix(".py") or stem)


def _name_of_code(code: str) -> str:
    words = code.split(None, 2)
    return _MULTIPROCESSING.get(words[1] if len(words) > 1 and words[0] == "from" else "", "python -c")


def printable(text: str) -> str:
    """*text* from the operating system, with what is not UTF-8 in it written out as `\\xff`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which only Windows lets through
        return text.encode("utf-8", "backslashreplace").decode()


def process_is_running(process: Process) -> bool:
    """Whether the process of a record is still there, and not another one with its pid."""
    return process.ended is None and is_running(process.pid, process.start_ticks, process.boot)


def is_dead(path: Path) -> bool:
    """Whether a record's process has ended.  A file that cannot be read is not ours to judge: False."""
    try:
        return not process_is_running(read_report(path, history=False).process)
    except RecordError:
        return False
