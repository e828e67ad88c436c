"""`memwatch watch`: other processes, from outside, into the same kind of record."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memwatch.cli import OK, options
from memwatch.cli.screen import NotThere, console, is_coloured, put, put_json, say
from memwatch.config import Config
from memwatch.model import Event, Process, Report, Sample, Verdict
from memwatch.record import Record, RecordError, RecordWriter, record_name
from memwatch.report import headline
from memwatch.report.palette import STATE_TERMINAL
from memwatch.tally import Tally
from memwatch.trend import LeakDetector
from memwatch.units import UnitError, parse_duration
from memwatch.vitals import OutsideVitals, ProcessGone
from memwatch.whoami import printable, process_name

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

LABEL = {"watched": "from outside"}


@click.command("watch", short_help="Watch other processes from outside.")
@click.argument("pids", nargs=-1, required=True, type=click.IntRange(min=1), metavar="PID...")
@click.option("--duration", metavar="DURATION", help="Stop after this long.")
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Stop after this many samples.")
@click.option("--json", "as_json", is_flag=True, help="At the end, the reports (schema 1) as a list.")
@options.settings("interval", "growth_limit", "memory_limit", "directory", "name", "labels", "record_limit")
def command(pids: tuple[int, ...], duration: str | None, samples: int | None, as_json: bool, **given: Any) -> int:
    """Sample other processes from outside: memory, descriptors, threads, children and their trend, but no evidence.

    Ends when all of them have ended, or on Ctrl-C; prints the verdicts.
    """
    loaded = options.load(**given)
    try:
        lasting_s = parse_duration(duration) if duration is not None else float("inf")
    except UnitError as error:
        raise click.UsageError(f"--duration: {error}") from None
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(_Interrupted())
        watches = [stack.enter_context(_Watch(pid, loaded)) for pid in dict.fromkeys(pids)]
        show = stack.enter_context(_Progress(watches))
        began_s = due_s = time.monotonic()
        taken = 0
        while True:
            for watch in watches:
                if watch.ended is None:
                    watch.tick()
            taken += 1
            show.update()
            due_s = max(due_s + loaded.interval_s, time.monotonic() - loaded.interval_s)
            over = all(watch.ended is not None for watch in watches) or taken == samples
            if over or time.monotonic() - began_s >= lasting_s or interrupted.within(due_s - time.monotonic()):
                break
    if as_json:
        put_json([watch.report().to_dict() for watch in watches])
    else:
        for watch in watches:
            put(headline(watch.report()) + "\n")
    return OK


class _Interrupted:
    """Ctrl-C and SIGTERM as something to wait for: none of them lands in the middle of a write."""

    def __enter__(self) -> _Interrupted:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b".")

    def within(self, seconds: float) -> bool:
        """Wait; whether a signal came."""
        return bool(select.select([self._read], [], [], max(0.0, seconds))[0])

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)


class _Watch:
    """One process under watch, with its detector and its record."""

    def __init__(self, pid: int, loaded: Config) -> None:
        self.ended: str | None = None
        self._loaded = loaded
        try:
            self._vitals = OutsideVitals(pid)
            first = self._vitals.read(self._failed)
        except ProcessGone as gone:
            raise NotThere(str(gone)) from None
        except PermissionError as error:
            raise NotThere(str(error)) from None
        me = self._vitals.identity
        self.process = Process(
            pid=pid,
            name=loaded.name or printable(process_name(me.command) if me.command else me.name),
            command=tuple(map(printable, me.command)),
            python=me.python,
            host=socket.gethostname(),
            labels=LABEL | dict(loaded.labels),
            started=me.started_s,
            ppid=me.ppid,
            start_ticks=me.start_ticks,
            boot=me.boot,
            interval_s=loaded.interval_s,
        )
        if "rss" not in first:
            raise NotThere(f"the memory of process {pid} cannot be read: run as its user, or as root")
        limit = loaded.memory_limit_bytes or first.get("limit")
        self._detector = LeakDetector(loaded.interval_s, limit, growth_limit=loaded.growth_limit(limit))
        self._tally = Tally()
        self._verdict = Verdict("rss", "warming-up", reason="no sample was taken yet")
        self._events: list[Event] = []
        self._began_s: float | None = None
        self._uptime_s = 0.0
        self._writer = self._open() if loaded.directory is not False else None

    def _open(self) -> RecordWriter | None:
        directory = options.record_directory(self._loaded)
        _refuse_if_written_to(directory / record_name(self.process), self.process, self._loaded.interval_s)
        try:
            return RecordWriter(directory, self.process, limit_bytes=self._loaded.record_limit_bytes, resume=True)
        except RecordError as error:
            say(f"watching goes on without a record: {error}")
            return None

    def __enter__(self) -> _Watch:
        return self

    def tick(self) -> None:
        """Take one sample, judge it, write it down."""
        try:
            values = self._vitals.read(self._failed)
        except ProcessGone as gone:
            self.ended = gone.why
            return
        if self._loaded.memory_limit_bytes is not None:
            values["limit"] = float(self._loaded.memory_limit_bytes)
        now_s = time.time()
        if self._began_s is None:
            self._began_s = time.monotonic()
        self._uptime_s = time.monotonic() - self._began_s
        sample = Sample(now_s, self._uptime_s, values)
        self._tally.add(sample)
        before, self._verdict = self._verdict, self._detector.update(now_s, values)
        events = [Event(now_s, "verdict", self._verdict.to_dict())] if self._verdict.state != before.state else []
        self._events += events
        self._write(sample, events)

    def _failed(self, name: str, error: Exception) -> None:
        say(str(error))

    def _write(self, sample: Sample, events: list[Event]) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(sample, self.report(), events)
        except RecordError as error:
            say(f"watching goes on without a record: {error}")
            self._writer.close()
            self._writer = None

    def report(self) -> Report:
        """What is known now."""
        statistics = self._tally.statistics(self._uptime_s, self._detector.verdicts())
        return Report(self.process, self._verdict, statistics, events=tuple(self._events))

    def __exit__(self, *exception: object) -> None:
        self._vitals.close()
        how = f"{self.ended}; how was not seen from outside" if self.ended else "the watch from outside was stopped"
        if self._writer is not None:
            try:
                self._writer.end(time.time(), how)
            except RecordError as error:
                say(str(error))
            self.process = self._writer.process
            self._writer.close()


def _refuse_if_written_to(path: Path, process: Process, interval_s: float) -> None:
    """Two writers in one record would mix two views of the process: the other one is there already."""
    try:
        with Record(path) as record:
            other, last = record.process(), record.last_written()
    except RecordError:
        return
    if other.ended is None and last is not None and time.time() - last < 5 * max(other.interval_s or interval_s, 1.0):
        raise click.UsageError(f"process {process.pid} is being watched already: memwatch report {process.pid}")


class _Progress:
    """A status line per process on a terminal; changes of state alone where there is none."""

    def __init__(self, watches: list[_Watch]) -> None:
        self._watches = watches
        self._live: Live | None = None
        self._told: dict[int, str] = {}

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=console(sys.stderr), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def update(self) -> None:
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text("\n").join(self._lines()), refresh=True)
            return
        for watch in self._watches:
            report = watch.report()
            if self._told.get(watch.process.pid) != report.verdict.state:
                self._told[watch.process.pid] = report.verdict.state
                say(headline(report))

    def _lines(self) -> Iterator[Text]:
        from rich.text import Text

        for watch in self._watches:
            report = watch.report()
            style = STATE_TERMINAL[report.verdict.state] if is_coloured(sys.stderr) else ""
            yield Text(headline(report) + (f"; it {watch.ended}" if watch.ended else ""), style=style)

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
