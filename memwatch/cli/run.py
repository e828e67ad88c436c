"""`memwatch run`: a command under watch, without touching its code.

Law: the command runs as it would without us: same terminal, process group, environment (but for ours), signals and exit status.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from memwatch import config
from memwatch.cli import options
from memwatch.cli.screen import say

BOOT = Path(__file__).resolve().parent.parent / "boot"
NOTES = "MEMWATCH_RUN_NOTES"

PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGWINCH", "SIGTSTP", "SIGCONT")
STOPPED_BY_TERMINAL = ("SIGTSTP", "SIGTTIN", "SIGTTOU")
SI_KERNEL = 0x80  # Linux: a signal from the terminal or the kernel, not from another process (sigaction(2))


@click.command(
    "run",
    short_help="Start a command and watch it.",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@options.settings()
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD...")
def command(words: tuple[str, ...], **given: Any) -> int:
    """Start a command and watch it and every Python process it starts.

    Signals are passed on, and the exit status is that of the command.  Nothing is printed unless there is a finding.
    """
    loaded = options.load(**given)
    notes = _make_notes()
    started_s = time.time()
    try:
        with _Blocked() as blocked:
            child = _start(words, _environment(loaded, notes), blocked.before)
            oom_before = _oom_kills()  # now that nobody waits for us
            status = _wait(child, blocked.signals)
        ended_s = time.time()
        try:
            _conclude(words, child.pid, status, loaded, notes, started_s=started_s, ended_s=ended_s, oom_before=oom_before)
        except KeyboardInterrupt:
            pass  # the command is gone: what is left takes no time
        except Exception as error:  # whatever it is: the exit status is the command's
            with contextlib.suppress(Exception):
                say(f"what was found cannot be told: {type(error).__name__}: {error}")
    finally:
        if notes is not None:
            shutil.rmtree(notes, ignore_errors=True)
    if os.WIFSIGNALED(status):
        _die_of(os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


# -- starting ------------------------------------------------------------------------------------------------------------------


def _environment(loaded: config.Config, notes: Path | None) -> dict[str, str]:
    environment = dict(os.environ) | as_environment(loaded)
    theirs = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{BOOT}{os.pathsep}{theirs}" if theirs else str(BOOT)
    if notes is not None:
        environment[NOTES] = str(notes)
    return environment


def as_environment(loaded: config.Config) -> dict[str, str]:
    """The settings that are not defaults, as the variables that mean the same in another process and directory."""

    def level(value: float) -> str:
        return f"{value!r}" if value <= 1 else f"{value:.0f}B"

    share = loaded.growth_limit_of_limit_per_s
    values = {
        "interval": f"{loaded.interval_s!r}s",
        "growth_limit": f"{share * 100:.12f}%/s" if share is not None else f"{loaded.growth_limit_bytes_per_s:.6f}B/s",
        "memory_limit": "auto" if loaded.memory_limit_bytes is None else f"{loaded.memory_limit_bytes}B",
        "warning": level(loaded.warning),
        "critical": level(loaded.critical),
        "evidence": loaded.evidence,
        "sample_every": f"{loaded.sample_bytes or 0}B",
        "directory": "off" if loaded.directory is False else str(loaded.directory or ""),
        "name": loaded.name or "",
        "labels": ",".join(f"{key}={value}" for key, value in loaded.labels.items()),
        "cleanup_interval": f"{loaded.cleanup_interval_s!r}s" if loaded.cleanup_interval_s else "off",
        "record_limit": f"{loaded.record_limit_bytes}B",
        "request_growth": f"{loaded.request_growth_bytes}B" if loaded.request_growth_bytes else "off",
        "sinks": ",".join(loaded.sinks),
        "socket": loaded.socket,
    }
    return {setting.environment: values[setting.name] for setting in config.SETTINGS if setting.name in loaded.origins}


def _make_notes() -> Path | None:
    """A folder in which every watched process says that it is one; None where none can be made: then nothing is said about that."""
    try:
        return Path(tempfile.mkdtemp(prefix="memwatch-run-"))
    except OSError:
        return None


def _start(words: tuple[str, ...], environment: dict[str, str], mask: Iterable[int]) -> subprocess.Popen[bytes]:
    def as_we_found_them() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        # In our process group: the terminal's own signals reach it as if we were not there.
        return subprocess.Popen(words, env=environment, close_fds=False, preexec_fn=as_we_found_them)
    except FileNotFoundError as error:
        # The file is there but what runs it is not (the first line of a script).
        what = "its interpreter was not found" if shutil.which(words[0]) else "command not found"
        raise _NotFound(f"{words[0]}: {what}") from error
    except OSError as error:
        raise _NotExecutable(f"{words[0]}: {error.strerror or error}") from error


class _NotFound(click.ClickException):
    exit_code = 127  # as a shell says it

    def show(self, file: Any = None) -> None:
        say(self.message)


class _NotExecutable(_NotFound):
    exit_code = 126


# -- while it runs -------------------------------------------------------------------------------------------------------------


class _Blocked:
    """Signals are waited for, not handled: none is lost between two of them, and each says who sent it."""

    def __enter__(self) -> _Blocked:
        self.signals = {getattr(signal, name) for name in (*PASSED_ON, "SIGCHLD")}
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if we were started with it ignored, we would never hear of the end
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def _wait(child: subprocess.Popen[bytes], signals: set[int]) -> int:
    """Pass signals on until the command ends; returns its wait status."""
    while True:
        number, from_terminal, sender = _next_signal(signals)
        if number != signal.SIGCHLD:
            _pass_on(child.pid, number, from_terminal=from_terminal, sender=sender)
            continue
        for pid, status in _changes():
            if pid != child.pid:
                continue
            if os.WIFSTOPPED(status):
                if os.WSTOPSIG(status) in [getattr(signal, name) for name in STOPPED_BY_TERMINAL]:
                    os.kill(os.getpid(), signal.SIGSTOP)  # the shell sees us stop too, and continues us both
                continue
            child.returncode = os.waitstatus_to_exitcode(status)
            return status


def _next_signal(signals: set[int]) -> tuple[int, bool, int | None]:
    """The next signal, whether the terminal sent it to the whole group, and the pid of its sender if that is known."""
    if sys.platform == "linux":
        info = signal.sigwaitinfo(signals)
        return info.si_signo, info.si_code == SI_KERNEL, info.si_pid
    # Nobody tells who sent it: these come from the terminal where there is one.
    number = signal.sigwait(signals)
    usual = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)
    return number, number in usual and sys.stdin.isatty(), None


def _pass_on(pid: int, number: int, *, from_terminal: bool, sender: int | None) -> None:
    """Hand a signal to the command, unless it has it already or sent it itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sender == pid or (from_terminal and os.getpgid(pid) == os.getpgrp()):
            return
        os.kill(pid, number)


def _changes() -> Iterator[tuple[int, int]]:
    """Every child that ended or stopped.  As process 1 of a container we are given orphans to bury, too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


# -- after its end -------------------------------------------------------------------------------------------------------------


def _conclude(
    words: tuple[str, ...],
    pid: int,
    status: int,
    loaded: config.Config,
    notes: Path | None,
    *,
    started_s: float,
    ended_s: float,
    oom_before: int | None,
) -> None:
    """Write how the command ended into its record, and say what was found, if anything."""
    outcomes = _outcomes(notes)
    if notes is not None and not config.is_disabled() and "watching" not in outcomes.values():
        say(f"nothing was watched: {_why_not(words, outcomes, status)}")
        return
    if loaded.directory is False or not outcomes:
        return
    from memwatch.cli import records  # the record and its database: not needed to start a command
    from memwatch.record import RecordError, append_end, find_records
    from memwatch.report import headline

    found = []
    for path in find_records(options.record_directory(loaded)):
        try:
            if max(path.stat().st_mtime, _log_time(path)) < started_s - 1:
                break  # sorted by it: older ones are not of this run
            item = records.read(path)
            if item.report.process.pid == pid:
                fate, how = _fate(status, oom_before)
                append_end(path, time_s=ended_s, fate=fate, how=how)
                item = records.read(path)
        except (RecordError, OSError):
            continue
        found.append(item)
    ours = _family(found, {pid, *outcomes}, started_s)
    leaks = [item for item in sorted(ours, key=records.rank) if item.report.verdict.state == "leaking"]
    if leaks:
        say(headline(leaks[0].report))
        more = f" ({len(leaks) - 1} more: memwatch ps)" if len(leaks) > 1 else ""
        say(f"next: memwatch report {shlex.quote(str(leaks[0].path))}{more}")


def _log_time(path: Path) -> float:
    try:
        return Path(f"{path}-wal").stat().st_mtime
    except OSError:
        return 0.0


def _family(found: list[Any], pids: set[int], started_s: float) -> list[Any]:
    """The records of the processes noted and of those they forked, however deep."""
    # A second of grace: the kernel's start times are rounded.
    recent = [item for item in found if (item.report.process.started or 0.0) >= started_s - 1]
    known = set(pids)
    while True:
        more = {item.report.process.pid for item in recent if item.report.process.ppid in known} - known
        if not more:
            return [item for item in recent if item.report.process.pid in known]
        known |= more


def _fate(status: int, oom_before: int | None) -> tuple[str, str]:
    if os.WIFEXITED(status):
        return "exited", f"exit status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    how = _signal_name(number)
    oom_now = _oom_kills()
    if number == signal.SIGKILL and oom_before is not None and oom_now is not None and oom_now > oom_before:
        how += ", by the OOM killer: it has struck in this control group meanwhile"
    return "killed", how


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"signal {number} ({signal.Signals(number).name})"
    return f"signal {number}"  # a real-time signal


def _oom_kills() -> int | None:
    from memwatch.vitals.limits import oom_kills

    return oom_kills()


def _outcomes(notes: Path | None) -> dict[int, str]:
    if notes is None:
        return {}
    found = {}
    with contextlib.suppress(OSError):
        for note in notes.iterdir():
            if note.name.isdigit():
                found[int(note.name)] = note.read_text("utf-8", "replace")
    return found


def _why_not(words: tuple[str, ...], outcomes: dict[int, str], status: int) -> str:
    name = Path(words[0]).name
    flags = [word for word in words[1:] if re.fullmatch(r"-[A-Za-z]*[IES][A-Za-z]*", word)]
    if outcomes:
        first = next(iter(outcomes.values()))
        if first.startswith("python "):
            return (
                f"{name} runs Python {first.removeprefix('python ')}, memwatch needs 3.11 (memwatch watch PID looks from outside)"
            )
        return first
    if name.startswith("python") and flags:
        return f"{name} {flags[0]} makes Python ignore PYTHONPATH; call memwatch.start() in the program instead"
    if os.WIFSIGNALED(status):
        return f"{name} was ended by {_signal_name(os.WTERMSIG(status))} before a watch began"
    return (
        f"{name} started no Python that reads PYTHONPATH (it is not Python, or runs with -I, -E or -S, or without its environment)"
    )


def _die_of(number: int) -> None:
    """End as the command ended, so that a shell sees the same; returns where that is not possible (process 1 of a container)."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # the core is the command's
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
