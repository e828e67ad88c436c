"""The reading side of a record: in another process than the one it speaks of, while that one runs or after its death.

Law: reading never writes to the record.  Whatever is in the file, a record that cannot be read is a `RecordError` that says why,
and what has been read can be rendered.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memwatch.model import CHANNELS, NO_GOODBYE, SCHEMA, Census, Event, Evidence, Process, Report, Sample, Verdict
from memwatch.record.schema import COARSE_STEP_S, RecordError, cause, check_schema

# What a damaged file makes of reading it: pages that SQLite refuses, text that is no JSON, JSON that is no report.
# UnicodeDecodeError is a ValueError: SQLite's own messages may quote the damage.
_DAMAGE = (sqlite3.Error, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)

_CHANNELS = frozenset(channel.name for channel in CHANNELS)

STEPS_PER_BYTE = 4
"""SQLite takes at most this many steps for each byte of the file, ten times what reading all of it takes: pages that refer to each
other in a circle would keep it busy for ever."""
STEPS_AT_LEAST = 1_000_000

HISTORY_POINTS = 400
"""A report's history is thinned to about this many moments: more than a screen or a page can show."""

RECENT_AT_LEAST = 8
"""Points of an outline that are fine samples, however short their time is beside the whole."""

CENSUSES_SHOWN = 3
"""A report carries the newest few censuses; the record has the others."""

WITHOUT_GOODBYE = "killed by a signal, or left by os._exit"
"""All that can be said of it: servers end their workers like that in an orderly shutdown, too."""


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
        with self._guarded():
            self._connection = self._open(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise RecordError(f"cannot read the record {path}: it is not a file")
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchRecord(f"there is no record {path}") from None
        try:
            return self._connect(path)
        except sqlite3.OperationalError:
            # A log without its index in a directory we may not write: read a private copy instead.
            return self._connect(self._copied(path))

    def _connect(self, path: Path) -> sqlite3.Connection:
        # Without a log nobody is writing: read the file alone, and leave no log of our own beside it.
        options = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, timeout=2.0, isolation_level=None)
        steps = STEPS_AT_LEAST + STEPS_PER_BYTE * path.stat().st_size
        # No line of Python may run in there: a Ctrl-C that came just then would be raised in it, and SQLite drops what is raised.
        left = itertools.chain(itertools.repeat(None, steps // 1000), itertools.repeat(1))
        connection.set_progress_handler(left.__next__, 1000)
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

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Around everything that reads: whatever is wrong with the file is said in one sentence."""
        try:
            yield
        except RecordError:
            self._close_unopened()
            raise
        except (*_DAMAGE, OSError) as error:
            self._close_unopened()
            what = cause(error)
            if not isinstance(error, sqlite3.Error | OSError):
                what = f"it is damaged ({type(error).__name__}: {what})"
            raise RecordError(f"cannot read the record {self.path}: {what}") from None

    def _close_unopened(self) -> None:
        if not hasattr(self, "_connection"):
            self.close()

    def close(self) -> None:
        """Close the file; may be called again."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def process(self) -> Process:
        """Whose record this is.  `fate` is what the record knows: `running` also for one that was killed."""
        with self._guarded():
            return Process.from_dict(self._meta("process") or {"pid": 0, "name": self.path.stem})

    def last_written(self) -> float | None:
        """Unix time of the last sample; None before the first."""
        with self._guarded():
            latest = self._connection.execute("SELECT max(time_s) FROM samples").fetchone()[0]
            return None if latest is None else Sample.from_dict({"time_s": latest, "uptime_s": 0, "values": {}}).time_s

    def samples(self, *, since_s: float = 0.0) -> Iterator[Sample]:
        """Every fine sample from *since_s* (Unix time) on, oldest first."""
        with self._guarded():
            cursor = self._connection.execute("SELECT * FROM samples WHERE time_s >= ? ORDER BY time_s", (since_s,))
            names = [column[0] for column in cursor.description]
            for row in _in_order(cursor):
                found = {name: value for name, value in zip(names, row, strict=True) if value is not None}
                time_s, uptime_s = found.pop("time_s"), found.pop("uptime_s")
                extra = json.loads(found.pop("extra", "{}"))
                yield Sample.from_dict({"time_s": time_s, "uptime_s": uptime_s, "values": found | extra})

    def coarse(
        self, *, until_s: float = float("inf")
    ) -> Iterator[tuple[float, dict[str, float], dict[str, float], dict[str, float]]]:
        """The coarse history: time, minima, means and maxima per channel, oldest first."""
        with self._guarded():
            rows = self._connection.execute(
                "SELECT rowid, time_s, low, mean, high FROM coarse WHERE time_s < ? ORDER BY rowid", (min(until_s, 1e18),)
            )
            for _, time_s, *columns in _in_order(rows):
                low, mean, high = (
                    Sample.from_dict({"time_s": time_s, "uptime_s": 0, "values": json.loads(column)}).values for column in columns
                )
                yield time_s, dict(low), dict(mean), dict(high)

    def events(self) -> tuple[Event, ...]:
        """Everything that happened, oldest first."""
        with self._guarded():
            rows = self._connection.execute("SELECT rowid, time_s, what, details FROM events ORDER BY rowid")
            return tuple(Event.checked(time_s, what, json.loads(details)) for _, time_s, what, details in _in_order(rows))

    def evidence(self) -> tuple[Evidence, ...]:
        """The newest evidence taken."""
        return self._newest_evidence().evidence

    def _newest_evidence(self) -> Census:
        with self._guarded():
            row = self._connection.execute("SELECT rowid, time_s, body FROM evidence ORDER BY rowid DESC LIMIT 1").fetchone()
            return Census(0.0) if row is None else _census(row)

    def all_evidence(self) -> tuple[tuple[float, tuple[Evidence, ...]], ...]:
        """Every evidence that is kept, with its Unix time, oldest first."""
        with self._guarded():
            rows = self._connection.execute("SELECT rowid, time_s, body FROM evidence ORDER BY rowid")
            return tuple((census.time_s, census.evidence) for census in map(_census, _in_order(rows)))

    def censuses(self, *, newest: int | None = None) -> tuple[Census, ...]:
        """What was alive at each moment that was looked at, oldest first; none in a record made before there were censuses.

        Args:
            newest: only so many, the last ones.
        """
        with self._guarded():
            if self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'censuses'").fetchone() is None:
                return ()
            rows = self._connection.execute(
                "SELECT -rowid, time_s, body FROM censuses ORDER BY rowid DESC LIMIT ?", (-1 if newest is None else newest,)
            )
            return tuple(reversed([_census(row) for row in _in_order(rows)]))

    def history(self, points: int = HISTORY_POINTS) -> tuple[Sample, ...]:
        """Coarse means before the fine samples begin, then the fine ones, thinned evenly to about *points*.

        Where several samples become two, those are the lowest and the highest of `rss`: a peak that was thinned away would be the
        one that somebody is looking for.
        """
        with self._guarded():
            start, count = self._connection.execute("SELECT min(time_s), count(time_s) FROM samples").fetchone()
            # A step of the coarse history that the fine samples reach into would tell their beginning twice, and too early.
            until_s = min(start - COARSE_STEP_S, 1e18) if start is not None else 1e18
            # Means alone: minima and maxima are as much again to read, each.
            rows = self._connection.execute("SELECT rowid, time_s, mean FROM coarse WHERE time_s < ? ORDER BY rowid", (until_s,))
            old = [
                Sample.from_dict({"time_s": time_s, "uptime_s": 0, "values": json.loads(mean)})
                for _, time_s, mean in _in_order(rows)
            ]
            of_two = max(1, round(2 * (len(old) + count) / points)) if len(old) + count > points else 1
            return tuple(_thinned(itertools.chain(old, self.samples()), of_two))

    def outline(self, channel: str, points: int) -> tuple[tuple[float, float], ...]:
        """The shape of one channel over the whole record: about *points* times and values, oldest first.

        Read at places that are evenly spread, without what lies between: a peak may be missed.

        Cost: some 25 µs a point, however long the record is (bench/web.py).
        """
        if channel not in _CHANNELS:
            return ()
        with self._guarded():
            execute = self._connection.execute
            # Each extreme in a query of its own: SQLite finds one by its tree, and several by reading the table.
            first_s, last_s = (execute(f"SELECT {which}(time_s) FROM samples").fetchone()[0] for which in ("min", "max"))
            (began_s,) = execute("SELECT time_s FROM coarse ORDER BY rowid LIMIT 1").fetchone() or (None,)
            # A step that the fine samples reach into would tell their beginning twice, and too early.
            until_s = 1e18 if first_s is None else first_s - COARSE_STEP_S
            old_s = 0.0 if began_s is None else max(0.0, until_s - began_s)
            fine_s = 0.0 if first_s is None else last_s - first_s
            of_old = min(round(points * old_s / ((old_s + fine_s) or 1.0)), points - RECENT_AT_LEAST)
            old = _spread(execute, "coarse", "mean", of_old)
            read = [
                *((time_s, level) for time_s, level in old if time_s < until_s),
                *_spread(execute, "samples", channel, points - of_old),
            ]
            levels = [(time_s, json.loads(level).get(channel) if isinstance(level, str) else level) for time_s, level in read]
            return tuple(sorted((float(time_s), float(level)) for time_s, level in levels if level is not None))

    def report(
        self,
        *,
        is_running: Callable[[Process], bool] | None = None,
        history: bool = True,
        findings: bool = True,
        points: int | None = None,
    ) -> Report:
        """Everything the record knows, as the report the watcher would give.

        Args:
            is_running: tells whether the process is still there; without it a process without goodbye counts as running.
            history: whether to read the curve and the censuses too.
            findings: whether to read events and evidence too; without them the report has no fingerprint worth the name.
            points: about how many moments of the curve; `HISTORY_POINTS` by default.

        Cost: of a month at an interval of 10 s, without history and findings 1 ms, with findings (5000 events) 50 ms, with both
        400 ms; measured over the records of bench/web.py.
        """
        process = self.process()
        if process.ended is None and is_running is not None and not is_running(process):
            process = replace(process, fate="killed", ended=self.last_written(), end=f"{NO_GOODBYE}: {WITHOUT_GOODBYE}")
        with self._guarded():
            latest = self._meta("latest") or {
                "schema": SCHEMA,
                "verdict": Verdict("rss", "warming-up", reason="no sample was taken yet").to_dict(),
                "channels": {},
                "samples": 0,
                "uptime_s": 0.0,
            }
            report = Report.from_dict(latest | {"process": process.to_dict()})
        found = self._newest_evidence() if findings else Census(0.0)
        return replace(
            report,
            process=process,
            events=self.events() if findings else (),
            evidence=found.evidence,
            evidence_taken=found.time_s if found.evidence else None,
            history=self.history(points or HISTORY_POINTS) if history else (),
            censuses=self.censuses(newest=CENSUSES_SHOWN) if history else (),
        )

    def _meta(self, key: str) -> Any:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])


def _spread(execute: Callable[..., Any], table: str, column: str, count: int) -> Iterator[tuple[Any, Any]]:
    """Time and *column* of about *count* rows of a table, evenly spread from its first to its last, found by their number."""
    first, last = (execute(f"SELECT {which}(rowid) FROM {table}").fetchone()[0] for which in ("min", "max"))
    if first is None or count < 1:
        return
    step = max(1.0, (last - first) / max(1, count - 1))
    for place in range(int((last - first) / step + 1e-9) + 1):
        found = execute(f'SELECT time_s, "{column}" FROM {table} WHERE rowid = ?', (round(first + place * step),)).fetchone()
        if found is not None:
            yield found


def _thinned(samples: Iterable[Sample], of_two: int) -> Iterator[Sample]:
    """Of each *of_two* samples in a row two: the lowest and the highest `rss`, in their order.  The last of all is always there.

    Costly channels are read rarely: a point carries the readings of the samples it stands for.
    """
    samples = iter(samples)
    following = list(itertools.islice(samples, of_two))
    while following:
        group, following = following, list(itertools.islice(samples, of_two))
        kept = {0} if of_two == 1 else {_extreme(group, min), _extreme(group, max)}
        if not following:
            kept.add(len(group) - 1)
        pending: dict[str, float] = {}
        first = 0
        for place, until in itertools.pairwise([*sorted(kept), len(group)]):
            # The last point stands for those behind it as well; its own readings come before theirs.
            last = place + 1 if until < len(group) else len(group)
            for sample in group[first:last]:
                pending.update(sample.values)
            yield replace(group[place], values={**pending, **group[place].values})
            first, pending = last, {}


def _extreme(group: list[Sample], which: Callable[..., int]) -> int:
    return which(range(len(group)), key=lambda place: group[place].values.get("rss", 0.0))


def _census(row: tuple[Any, ...]) -> Census:
    _, time_s, body = row
    return Census.from_dict({"time_s": time_s, "evidence": json.loads(body)})


def _in_order(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Rows sorted by their first column; where they are not, pages refer to each other in a circle, and would never end."""
    before = float("-inf")
    for row in rows:
        if row[0] < before:
            raise ValueError("rows are out of order")
        before = row[0]
        yield row


def read_report(path: Path, *, is_running: Callable[[Process], bool] | None = None, history: bool = True) -> Report:
    """Read one record into a report.

    Raises:
        NoSuchRecord: the file does not exist.
        RecordError: it cannot be read.
    """
    with Record(path) as record:
        return record.report(is_running=is_running, history=history)
