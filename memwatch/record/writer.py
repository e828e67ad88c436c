"""The writing side of a record.  Runs inside the watched process, on the watcher's thread.

Law: only `RecordError` leaves this module; each `write` is one transaction; a failed write changes nothing and may be tried again
later.  WAL with synchronous=NORMAL: what is committed survives the death of the process, not a loss of power.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from memwatch import descriptors
from memwatch.model import CHANNELS, Census, Event, Evidence, Process, Report, Sample, iso
from memwatch.record.directory import delete_record, record_name
from memwatch.record.schema import (
    CENSUSES_KEPT,
    COARSE_S,
    COARSE_STEP_S,
    CREATE,
    CREATE_CENSUSES,
    EVENTS_KEPT,
    EVIDENCE_KEPT,
    FINE_S,
    SUFFIX,
    RecordError,
    RecordLost,
    check_schema,
)

_COLUMNS = tuple(channel.name for channel in CHANNELS)
_QUOTED = ", ".join(f'"{name}"' for name in _COLUMNS)
_INSERT_SAMPLE = f"INSERT INTO samples (time_s, uptime_s, {_QUOTED}, extra) VALUES ({', '.join('?' * (len(_COLUMNS) + 3))})"
SHRINK_EVERY = 64
SHRINK_AT = 0.75
"""Share of the limit above which old rows go.  `max_page_count` holds the file under 0.9 of it; the log takes up to 1/16 more."""

FINDING_SHARE = 1 / 64
"""Share of the limit that one evidence or census may take; of a larger one the first suspects are kept, and its note says so."""
FINDINGS_SHARE = 1 / 8
"""Share of the limit that all evidence may take, and as much all censuses: about, for the size of the newest stands for all."""

LOG_SHARE = 0.25
"""Share of the limit that the log may reach: a reader that holds a transaction keeps it from being emptied.  Beyond, no samples are
taken until the reader is gone."""

# Paths this process is writing, so that a second watcher in it takes another file; and the files it has made: a file that somebody
# else put there, or another container with the same pids, is never written.
_open_paths: set[str] = set()
_made: set[tuple[int, int]] = set()


class RecordWriter:
    """Writes one process's record.

    Args:
        directory: made (mode 0700) if it is missing.
        process: whose record; `record_name(process)` is the file's name.
        limit_bytes: the file and its log stay within this.
        resume: go on in a record of this process that another process of this user has written (`memwatch watch` called again).

    Raises:
        RecordError: the directory or file cannot be made or written.

    Threads: one at a time; the caller holds a lock.
    """

    def __init__(self, directory: Path, process: Process, *, limit_bytes: int = 32 * 1024**2, resume: bool = False) -> None:
        self.process = process
        self.limit_bytes = limit_bytes
        self._coarse: _CoarseBucket | None = None
        self._writes = 0
        self._pid = os.getpid()
        self._connection, self.path = _open(directory, process, limit_bytes, resume=resume)
        self._descriptors = _descriptors_of(self.path)
        _open_paths.add(str(self.path))
        with self._guarded("begin"):
            self._connection.execute("BEGIN IMMEDIATE")
            self._put("process", _json(process.to_dict()))
            self._commit()
        self._descriptors = _descriptors_of(self.path)

    def write(
        self,
        sample: Sample | None = None,
        report: Report | None = None,
        events: Iterable[Event] = (),
        *,
        evidence: Iterable[Evidence] | None = None,
        census: Census | None = None,
    ) -> None:
        """Commit one tick: the sample, what is known now, what happened, and what was found.

        Args:
            evidence: what the collectors found at this tick; goes with *sample* and *report*, which give its time and fingerprint.
            census: what is alive now.

        Raises:
            RecordLost: the program has closed our descriptors; this writer is of no more use.
            RecordError: nothing of this tick was written.

        Cost: about 0.2 ms with a sample of 20 channels (bench/record.py); no fsync but at a checkpoint, once in about 250 pages.
        """
        self._writes += 1
        with self._guarded("write"):
            latest = None if report is None else _json(_without_history(report))
            rows = [(event.time_s, event.what, _json(dict(event.details))) for event in events]
            found = None
            if evidence is not None:
                if sample is None or report is None:
                    raise ValueError("evidence goes with the sample and the report of its tick")
                evidence = tuple(evidence)
                found = (sample.time_s, replace(report, evidence=evidence).fingerprint, evidence)
            if self._writes % SHRINK_EVERY == 0 or self._writes == 1:
                self._check_log()
            self._connection.execute("BEGIN IMMEDIATE")
            if report is not None and report.process.labels != self.process.labels:
                self.process = replace(self.process, labels=report.process.labels)
                self._put("process", _json(self.process.to_dict()))
            if self._writes % SHRINK_EVERY == 0:
                self._shrink()
            if sample is not None:
                self._connection.execute(_INSERT_SAMPLE, _row(sample))
                self._downsample(sample)
            if latest is not None:
                self._put("latest", latest)
            self._connection.executemany("INSERT INTO events (time_s, what, details) VALUES (?, ?, ?)", rows)
            if found is not None:
                self._insert_evidence(*found)
            if census is not None:
                self._insert_census(census)
            self._commit()

    def write_evidence(self, time_s: float, fingerprint: str, evidence: Iterable[Evidence]) -> None:
        """Store what the collectors found at one moment.

        Raises:
            RecordError: it was not written.
        """
        with self._guarded("write"):
            self._connection.execute("BEGIN IMMEDIATE")
            self._insert_evidence(time_s, fingerprint, evidence)
            self._commit()

    def write_census(self, census: Census) -> None:
        """Store what is alive at one moment; of the censuses the newest are kept, `CENSUSES_KEPT` at most.

        Raises:
            RecordError: it was not written.
        """
        with self._guarded("write"):
            self._connection.execute("BEGIN IMMEDIATE")
            self._insert_census(census)
            self._commit()

    def _insert_evidence(self, time_s: float, fingerprint: str, evidence: Iterable[Evidence]) -> None:
        body = _fitted(evidence, int(FINDING_SHARE * self.limit_bytes))
        self._connection.execute("INSERT INTO evidence (time_s, fingerprint, body) VALUES (?, ?, ?)", (time_s, fingerprint, body))
        self._keep_newest("evidence", min(EVIDENCE_KEPT, int(FINDINGS_SHARE * self.limit_bytes) // len(body)))

    def _insert_census(self, census: Census) -> None:
        body = _fitted(census.evidence, int(FINDING_SHARE * self.limit_bytes))
        self._connection.execute("INSERT INTO censuses (time_s, body) VALUES (?, ?)", (census.time_s, body))
        self._keep_newest("censuses", min(CENSUSES_KEPT, int(FINDINGS_SHARE * self.limit_bytes) // len(body)))

    def _keep_newest(self, table: str, count: int) -> None:
        self._connection.execute(f"DELETE FROM {table} WHERE rowid <= (SELECT max(rowid) FROM {table}) - ?", (count,))

    def end(self, time_s: float, how: str) -> None:
        """Write the goodbye that tells an exit from a kill.

        Raises:
            RecordError: it was not written.
        """
        self.process = replace(self.process, ended=time_s, fate="exited", end=how)
        with self._guarded("write"):
            self._connection.execute("BEGIN IMMEDIATE")
            self._put("process", _json(self.process.to_dict()))
            self._connection.execute(
                "INSERT INTO events (time_s, what, details) VALUES (?, 'end', ?)", (time_s, _json({"how": how}))
            )
            self._commit()

    def still_there(self) -> bool:
        """Whether the file on disk is still the one being written (somebody may have deleted it)."""
        return self.path.exists()

    def close(self) -> None:
        """Close the file.  Never raises; may be called again."""
        if os.getpid() != self._pid:
            return
        if not self._holds_its_descriptors():
            _immortalise(self._connection)
            return  # the path stays taken: SQLite still counts this file as open
        _open_paths.discard(str(self.path))
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def discard(self) -> None:
        """Close and delete the record: it held nothing anybody would read."""
        self.close()
        if os.getpid() == self._pid:
            delete_record(self.path)

    def abandon(self) -> None:
        """In a forked child: drop the parent's record without touching it.

        SQLite forbids using or closing a connection that was carried over a fork, so it is made immortal; its descriptors are
        closed, where they are still the record's.
        """
        _immortalise(self._connection)
        for descriptor, identity in self._descriptors.items():
            if descriptors.identity(descriptor) == identity:
                os.close(descriptor)
        _open_paths.discard(str(self.path))

    def _commit(self) -> None:
        """Write the transaction to the file: only here, so this is where our numbers must still be ours.

        What is left is a program that closes them and opens files of its own while this one call runs (some 50 µs of an interval).
        """
        if not self._holds_its_descriptors():
            raise RecordLost(self._lost())
        self._connection.execute("COMMIT")

    def _lost(self) -> str:
        _immortalise(self._connection)
        return f"the program has closed the descriptors of the record {self.path}"

    def _holds_its_descriptors(self) -> bool:
        return all(descriptors.identity(descriptor) == identity for descriptor, identity in self._descriptors.items())

    def _check_log(self) -> None:
        log = Path(f"{self.path}-wal")
        most = max(LOG_SHARE * self.limit_bytes, 2**20)
        if log.stat().st_size > most:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if log.stat().st_size > most:
                self._writes -= 1  # look again at the next write
                raise sqlite3.OperationalError("another program keeps reading it, so that its log cannot be emptied")

    def _put(self, key: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def _downsample(self, sample: Sample) -> None:
        start = sample.time_s - sample.time_s % COARSE_STEP_S
        if self._coarse is None:
            self._coarse = _CoarseBucket(start)
        elif start != self._coarse.start_s:
            self._connection.execute(
                "INSERT INTO coarse (time_s, count, low, mean, high) VALUES (?, ?, ?, ?, ?)", self._coarse.row()
            )
            self._coarse = _CoarseBucket(start)
            self._prune(sample.time_s)
        self._coarse.add(sample)

    def _prune(self, now_s: float) -> None:
        execute = self._connection.execute
        execute("DELETE FROM samples WHERE time_s < ?", (now_s - FINE_S,))
        execute("DELETE FROM coarse WHERE time_s < ?", (now_s - COARSE_S,))
        self._keep_newest("events", EVENTS_KEPT)

    def _shrink(self) -> None:
        """Let the oldest eighth of everything go where the file nears its limit; an eighth, so that this runs rarely.

        The newest of each stays: a leak that was found once, days ago, is why somebody reads this.
        """
        execute = self._connection.execute
        page, pages, free = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count"))
        if (pages - free) * page <= SHRINK_AT * self.limit_bytes:
            return
        for table in ("samples", "coarse", "events", "evidence", "censuses"):
            oldest = f"SELECT min(rowid) + (max(rowid) - min(rowid)) / 8 FROM {table}"
            execute(f"DELETE FROM {table} WHERE rowid <= ({oldest}) AND rowid < (SELECT max(rowid) FROM {table})")

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Let nothing but a RecordError out, and no transaction open.

        Before SQLite touches its descriptors they are looked at: a program that closes all of its own, as daemons do, closes these
        too, and the next file it opens gets their numbers.
        """
        if not self._holds_its_descriptors():
            raise RecordLost(self._lost())
        try:
            yield
        except RecordLost:
            raise  # without a rollback: SQLite is not to touch the numbers again
        except Exception as error:  # whatever a value was that cannot be stored
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            raise RecordError(f"cannot {doing} the record {self.path}: {error}") from None


def _descriptors_of(path: Path) -> dict[int, tuple[int, int]]:
    """The descriptors that SQLite holds of a record, its log and the log's index, with what they lead to."""
    ours = set()
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            status = Path(f"{path}{suffix}").stat()
            ours.add((status.st_dev, status.st_ino))
    found = {}
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for entry in Path(folder).iterdir():
                identity = descriptors.identity(int(entry.name))
                if identity in ours and identity is not None:
                    found[int(entry.name)] = identity
            break
    return found


def _immortalise(connection: sqlite3.Connection) -> None:
    """Never let Python close this connection."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _json(value: Any) -> str:
    return json.dumps(value, default=str, skipkeys=True)


def _fitted(evidence: Iterable[Evidence], most: int) -> str:
    """Evidence as JSON of at most about *most* bytes: every collector keeps as many of its first suspects as fit."""
    evidence = tuple(evidence)
    body = _json([item.to_dict() for item in evidence])
    kept = max((len(item.suspects) for item in evidence), default=0)
    while len(body) > most and kept > 0:
        kept = min(kept - 1, int(0.95 * kept * most / len(body)))
        body = _json([_first(item, kept).to_dict() for item in evidence])
    return body


def _first(evidence: Evidence, kept: int) -> Evidence:
    if len(evidence.suspects) <= kept:
        return evidence
    said = f"only the first {kept} of {len(evidence.suspects)} were recorded: the record's limit leaves no room for more"
    note = said if evidence.note is None else f"{evidence.note}; {said}"
    return replace(evidence, suspects=evidence.suspects[:kept], note=note)


class _CoarseBucket:
    """Minimum, mean and maximum per channel over one coarse step."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.count = 0
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, sample: Sample) -> None:
        self.count += 1
        for name, value in sample.values.items():
            total, readings = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, readings + 1)
            if value < self.low.get(name, float("inf")):
                self.low[name] = value
            if value > self.high.get(name, float("-inf")):
                self.high[name] = value

    def row(self) -> tuple[float, int, str, str, str]:
        mean = {name: round(total / readings, 3) for name, (total, readings) in self.sums.items()}
        return self.start_s, self.count, json.dumps(self.low), json.dumps(mean), json.dumps(self.high)


def append_end(path: Path, *, time_s: float, fate: str, how: str) -> None:
    """Write how a process ended into its record, from outside, unless the process has said goodbye itself.

    Raises:
        RecordError: the file is not a record, or cannot be written.
    """
    try:
        connection = sqlite3.connect(path, timeout=2.0, isolation_level=None)
    except sqlite3.Error as error:
        raise RecordError(f"cannot write how the process ended to {path}: {error}") from None
    try:
        check_schema(connection, path)
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute("SELECT value FROM meta WHERE key = 'process'").fetchone()
        process = json.loads(row[0]) if row else {}
        if process.get("ended") is None:
            process |= {"ended": iso(time_s), "fate": fate}
            connection.execute(
                "INSERT INTO events (time_s, what, details) VALUES (?, 'end', ?)", (time_s, json.dumps({"how": how}))
            )
        process["end"] = how
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('process', ?)", (json.dumps(process),))
        connection.execute("COMMIT")
    except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:  # the latter: damaged JSON
        raise RecordError(f"cannot write how the process ended to {path}: {error}") from None
    finally:
        connection.close()


def _row(sample: Sample) -> list[Any]:
    values = sample.values
    row: list[Any] = [sample.time_s, sample.uptime_s]
    for name in _COLUMNS:
        value = values.get(name)
        if value is not None and not math.isfinite(value):
            value = None
        # Integers take fewer bytes in SQLite than floats, up to its 64 bits.
        row.append(int(value) if value is not None and abs(value) < 2**62 and value == int(value) else value)
    extra = {name: value for name, value in values.items() if name not in _COLUMNS}
    row.append(_json(extra) if extra else None)
    return row


def _without_history(report: Report) -> dict[str, Any]:
    """What changes every tick.  Events, evidence and the process have their own tables."""
    whole = report.to_dict()
    return {key: whole[key] for key in ("schema", "verdict", "channels", "samples", "uptime_s", "caches", "routes", "routes_note")}


def _open(directory: Path, process: Process, limit_bytes: int, *, resume: bool) -> tuple[sqlite3.Connection, Path]:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise RecordError(_unwritable(directory, error)) from None
    stem = record_name(process).removesuffix(SUFFIX)
    refused: Exception | None = None
    for number in range(1, 10):
        path = directory / (f"{stem}{SUFFIX}" if number == 1 else f"{stem}-{number}{SUFFIX}")
        if str(path) in _open_paths:
            continue
        try:
            return _open_file(path, process, limit_bytes, resume=resume), path
        except RecordError as error:
            refused = error  # a foreign or corrupt file of that name is left alone; the next name is tried
        except OSError as error:
            raise RecordError(_unwritable(directory, error)) from None
        except sqlite3.Error as error:
            raise RecordError(_unwritable(directory, error)) from None
    raise RecordError(f"cannot make a record in {directory}: {refused or 'too many watchers in this process'}")


def _unwritable(directory: Path, error: Exception) -> str:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot write a record in {directory}: {cause}; give a writable directory with MEMWATCH_DIR, or MEMWATCH_DIR=off"


def _open_file(path: Path, process: Process, limit_bytes: int, *, resume: bool) -> sqlite3.Connection:
    if not os.path.lexists(path):
        _create(path, process)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    ours = resume and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    made = ours or (status.st_dev, status.st_ino) in _made
    os.close(descriptor)
    if not made:
        raise RecordError(f"{path} was made by another process")
    connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        check_schema(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(CREATE_CENSUSES)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -256")
        page = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute(f"PRAGMA wal_autocheckpoint = {min(256, limit_bytes // 32 // page)}")
        connection.execute(f"PRAGMA journal_size_limit = {limit_bytes // 32}")
        connection.execute(f"PRAGMA max_page_count = {int(0.9 * limit_bytes) // page}")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, process: Process) -> None:
    """Make an empty record that appears under its name only when it is whole, so that a kill at any moment leaves no half one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    # Made by us first, so that nobody else can read it at any moment; SQLite gives its log the same mode.
    os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    try:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript("BEGIN IMMEDIATE;" + CREATE + "COMMIT;")
            connection.execute("INSERT INTO meta (key, value) VALUES ('process', ?)", (json.dumps(process.to_dict()),))
        finally:
            connection.close()
        status = temporary.stat()
        _made.add((status.st_dev, status.st_ino))
        try:
            os.link(temporary, path)  # never replaces what another process put there meanwhile
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.rename(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
