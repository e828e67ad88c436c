"""The reading side of a record: in another process than the one it speaks of, while that one runs or after its death.

Law: reading never writes to the record, and a record that cannot be read is a `RecordError` that says why.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memwatch.model import SCHEMA, Event, Evidence, Process, Report, Sample, Verdict
from memwatch.record.schema import RecordError, check_schema

HISTORY_POINTS = 400
"""A report's history is thinned to about this many moments: more than a screen or a page can show."""


class NoSuchRecord(RecordError):
    """There is no record of that name, pid or place."""


class Record:
    """One record, open for reading.

    Raises:
        NoSuchRecord: the file does not exist.
        RecordError: it is not a record, is corrupt, or was written by a newer memwatch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        if not path.exists():
            raise NoSuchRecord(f"there is no record {path}")
        try:
            self._connection = self._connect(path)
        except sqlite3.OperationalError:
            # A log without its index in a directory we may not write: read a private copy instead.
            try:
                self._connection = self._connect(self._copied(path))
            except (sqlite3.Error, OSError) as error:
                self.close()
                raise RecordError(f"cannot read the record {path}: {error}") from None

    def _connect(self, path: Path) -> sqlite3.Connection:
        # Without a log nobody is writing: read the file alone, and leave no log of our own beside it.
        options = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, timeout=2.0, isolation_level=None)
        try:
            check_schema(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _copied(self, path: Path) -> Path:
        self._copy = tempfile.TemporaryDirectory(prefix="memwatch-")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", Path(self._copy.name) / f"{path.name}{suffix}")
        return Path(self._copy.name) / path.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; may be called again."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def process(self) -> Process:
        """Whose record this is.  `fate` is what the record knows: `running` also for one that was killed."""
        return Process.from_dict(self._meta("process") or {"pid": 0, "name": self.path.stem})

    def last_written(self) -> float | None:
        """Unix time of the last sample; None before the first."""
        row = self._rows("SELECT max(time_s) FROM samples")
        latest = next(iter(row))[0]
        return None if latest is None else float(latest)

    def samples(self, *, since_s: float = 0.0) -> Iterator[Sample]:
        """Every fine sample from *since_s* (Unix time) on, oldest first."""
        cursor = self._rows("SELECT * FROM samples WHERE time_s >= ? ORDER BY time_s", (since_s,))
        names = [column[0] for column in cursor.description]
        for row in cursor:
            found = {name: value for name, value in zip(names, row, strict=True) if value is not None}
            extra = json.loads(found.pop("extra", "{}"))
            yield Sample(found.pop("time_s"), found.pop("uptime_s"), {**found, **extra})

    def coarse(
        self, *, until_s: float = float("inf")
    ) -> Iterator[tuple[float, dict[str, float], dict[str, float], dict[str, float]]]:
        """The coarse history: time, minima, means and maxima per channel, oldest first."""
        for time_s, low, mean, high in self._rows(
            "SELECT time_s, low, mean, high FROM coarse WHERE time_s < ? ORDER BY time_s", (min(until_s, 1e18),)
        ):
            yield time_s, json.loads(low), json.loads(mean), json.loads(high)

    def events(self) -> tuple[Event, ...]:
        """Everything that happened, oldest first."""
        rows = self._rows("SELECT time_s, what, details FROM events ORDER BY rowid")
        return tuple(Event(time_s, what, json.loads(details)) for time_s, what, details in rows)

    def evidence(self) -> tuple[Evidence, ...]:
        """The newest evidence taken."""
        row = self._rows("SELECT body FROM evidence ORDER BY rowid DESC LIMIT 1").fetchone()
        return () if row is None else tuple(Evidence.from_dict(item) for item in json.loads(row[0]))

    def history(self, points: int = HISTORY_POINTS) -> tuple[Sample, ...]:
        """Coarse means before the fine samples begin, then the fine ones, thinned evenly to about *points*."""
        first = self._rows("SELECT min(time_s), count(*) FROM samples").fetchone()
        start, count = first[0], first[1]
        old = [
            Sample(time_s, 0.0, mean) for time_s, _, mean, _ in self.coarse(until_s=start if start is not None else float("inf"))
        ]
        step = max(1, (len(old) + count) // points)
        thinned = old[::step]
        # Costly channels are read rarely: a thinned point carries the readings of the samples it stands for.
        pending: dict[str, float] = {}
        for index, sample in enumerate(self.samples()):
            pending.update(sample.values)
            if index % step == step - 1 or index == count - 1:
                thinned.append(replace(sample, values=pending))
                pending = {}
        return tuple(thinned)

    def report(self, *, is_running: Callable[[Process], bool] | None = None, history: bool = True) -> Report:
        """Everything the record knows, as the report the watcher would give.

        Args:
            is_running: tells whether the process is still there; without it a process without goodbye counts as running.
            history: whether to read the curve too.
        """
        process = self.process()
        if process.ended is None and is_running is not None and not is_running(process):
            process = replace(process, fate="killed", ended=self.last_written(), end="no goodbye: it was killed or crashed")
        latest = self._meta("latest") or {
            "schema": SCHEMA,
            "verdict": Verdict("rss", "warming-up", reason="no sample was taken yet").to_dict(),
            "channels": {},
            "samples": 0,
            "uptime_s": 0.0,
        }
        report = Report.from_dict(latest | {"process": process.to_dict()})
        return replace(
            report,
            events=self.events(),
            evidence=self.evidence(),
            history=self.history() if history else (),
        )

    def _meta(self, key: str) -> Any:
        row = self._rows("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _rows(self, sql: str, arguments: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(sql, arguments)
        except sqlite3.Error as error:
            raise RecordError(f"cannot read the record {self.path}: {error}") from None


def read_report(path: Path, *, is_running: Callable[[Process], bool] | None = None, history: bool = True) -> Report:
    """Read one record into a report.

    Raises:
        NoSuchRecord: the file does not exist.
        RecordError: it cannot be read.
    """
    with Record(path) as record:
        return record.report(is_running=is_running, history=history)
