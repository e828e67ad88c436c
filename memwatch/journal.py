"""Keeping the record while the program runs: opened late, given up on failure, tried again later.

Law: a record that cannot be written never stops the watch; that is said once, and once more when it is written again.  What
happened meanwhile is kept (bounded) and written then; samples taken meanwhile are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from memwatch.model import Census, Event, Evidence, Process, Report, Sample
from memwatch.record import RecordError, RecordLost, RecordWriter, default_directory, prune_records
from memwatch.whoami import is_dead

RETRY_S = 300.0
"""After a failed write (a full disk), and to see whether somebody deleted the file, look this often."""
WAITING_KEPT = 200
"""Events kept while the record cannot be written."""
FINDINGS_KEPT = 8
"""Evidence, and as many censuses, kept while the record cannot be written: each may be some hundred KiB."""


class Journal:
    """The record of one watch.

    Args:
        directory: where; None is the user's state directory, False no record.
        describe: whose record; called when it is opened.
        say: told once when the record fails, and when it recovers.

    Threads: one at a time; the watcher holds a lock.
    """

    def __init__(
        self, directory: Path | bool | None, describe: Callable[[], Process], say: Callable[[str], None], *, limit_bytes: int
    ) -> None:
        self._directory = directory
        self._describe = describe
        self._say = say
        self._limit_bytes = limit_bytes
        self._writer: RecordWriter | None = None
        self._waiting: list[Event] = []
        self._evidence: list[tuple[float, str, tuple[Evidence, ...]]] = []
        self._censuses: list[Census] = []
        self._failed = False
        self._closed = False
        self._due_s = float("-inf")

    @property
    def path(self) -> Path | None:
        """The file being written; None without one."""
        return None if self._writer is None else self._writer.path

    @property
    def descriptors(self) -> int:
        """How many descriptors it holds: the file, its log and the log's index."""
        return 0 if self._writer is None else 3

    def keep(self, event: Event) -> None:
        """Put an event aside until the next write."""
        self._waiting = [*self._waiting, event][-WAITING_KEPT:]

    def write(
        self,
        sample: Sample,
        report: Report,
        events: Iterable[Event],
        *,
        now_s: float,
        evidence: tuple[Evidence, ...] | None = None,
        census: Census | None = None,
    ) -> None:
        """Write one tick; never raises.

        Args:
            now_s: monotonic seconds.
            evidence, census: what was found at this tick.
        """
        if self._directory is False or self._closed or (self._failed and now_s < self._due_s):
            for event in events:
                self.keep(event)
            if self._failed and not self._closed:
                self._keep_found(sample, report, evidence, census)
            return
        waiting = [*self._waiting, *events]
        try:
            writer = self._current(sample.time_s, now_s)
            self._write_late(writer)
            writer.write(sample, report, waiting, evidence=evidence, census=census)
        except RecordLost:
            # The program has closed our descriptors, as daemons do with all of theirs.  Another file is begun at the next tick:
            # now the program may still be closing, and would be given the new file's numbers for files of its own.
            self._writer = None
            self._waiting = waiting[-WAITING_KEPT:]
            self._keep_found(sample, report, evidence, census)
            return
        except Exception as error:
            # Whatever it is (SQLite may be missing, the home directory unknown): the tick goes on without a record.
            self._waiting = waiting[-WAITING_KEPT:]
            self._keep_found(sample, report, evidence, census)
            self._due_s = now_s + RETRY_S
            if not self._failed:
                self._failed = True
                what = str(error) if isinstance(error, RecordError) else f"{type(error).__name__}: {error}"
                self._say(f"watching goes on without a record: {what}")
            return
        self._waiting = []
        if self._failed:
            self._failed = False
            self._say(f"the record is being written again: {writer.path}")

    def _keep_found(self, sample: Sample, report: Report, evidence: tuple[Evidence, ...] | None, census: Census | None) -> None:
        if evidence is not None:
            found = (sample.time_s, replace(report, evidence=evidence).fingerprint, evidence)
            self._evidence = [*self._evidence, found][-FINDINGS_KEPT:]
        if census is not None:
            self._censuses = [*self._censuses, census][-FINDINGS_KEPT:]

    def _write_late(self, writer: RecordWriter) -> None:
        """What was found while the record could not be written; what has been written is not kept any longer."""
        while self._evidence:
            writer.write_evidence(*self._evidence[0])
            del self._evidence[0]
        while self._censuses:
            writer.write_census(self._censuses[0])
            del self._censuses[0]

    def _current(self, time_s: float, now_s: float) -> RecordWriter:
        if self._writer is not None and now_s < self._due_s:
            return self._writer
        self._due_s = now_s + RETRY_S
        if self._writer is not None and self._writer.still_there():
            return self._writer
        if self._writer is not None:
            self._writer.close()
        return self._open(time_s)

    def close(self, time_s: float, how: str, *, worthless: bool = False) -> None:
        """Write the goodbye and close; never raises.  Nothing is written afterwards.

        Args:
            worthless: delete the record instead: it holds nothing anybody would read.
        """
        self._closed = True
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if worthless:
            writer.discard()
            return
        try:
            self._write_late(writer)
            if self._waiting:
                writer.write(events=self._waiting)
            writer.end(time_s, how)
        except RecordLost:
            pass  # the program closed our descriptors; without a goodbye it shows as killed
        except RecordError as error:
            if not self._failed:
                self._say(f"the end was not recorded: {error}")
        writer.close()

    def abandon(self) -> None:
        """In a forked child: let the parent's record alone."""
        self._closed = True
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()

    def _open(self, time_s: float) -> RecordWriter:
        directory = self._directory or default_directory()
        assert isinstance(directory, Path)
        self._writer = None
        self._writer = RecordWriter(directory, self._describe(), limit_bytes=self._limit_bytes)
        prune_records(directory, is_dead, now_s=time_s)
        return self._writer
