"""The layout of a record and how a file is recognised as one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from memwatch.model import CHANNELS

APPLICATION_ID = 0x6D656D77  # "memw": tells a record from any other SQLite file
SCHEMA_VERSION = 1
SUFFIX = ".memwatch"

FINE_S = 24 * 3600.0
"""Every sample is kept this long."""
COARSE_STEP_S = 300.0
COARSE_S = 30 * 24 * 3600.0
"""Five-minute minima, means and maxima are kept this long."""
EVENTS_KEPT = 5000
EVIDENCE_KEPT = 50
CENSUSES_KEPT = 200

# Records made before memwatch took censuses have no such table: the reader does without, the writer adds it.
CREATE_CENSUSES = "CREATE TABLE IF NOT EXISTS censuses (time_s REAL NOT NULL, body TEXT NOT NULL);"

CREATE = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE samples (
    time_s REAL NOT NULL,
    uptime_s REAL NOT NULL,
    {", ".join(f'"{channel.name}"' for channel in CHANNELS)},
    extra TEXT
);
CREATE INDEX samples_time ON samples (time_s);
CREATE TABLE coarse (time_s REAL NOT NULL, count INTEGER NOT NULL, low TEXT NOT NULL, mean TEXT NOT NULL, high TEXT NOT NULL);
CREATE TABLE events (time_s REAL NOT NULL, what TEXT NOT NULL, details TEXT NOT NULL);
CREATE TABLE evidence (time_s REAL NOT NULL, fingerprint TEXT NOT NULL, body TEXT NOT NULL);
{CREATE_CENSUSES}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class RecordError(Exception):
    """A record cannot be opened, written or read.  The message names the file, the cause and what to do."""


class RecordLost(RecordError):
    """The program has closed the record's descriptors, and may have others of the same numbers by now: begin a new record."""


def cause(error: BaseException) -> str:
    """What an exception says, in one short line that may be printed: SQLite quotes what it found in the file."""
    text = " ".join(str(error).split())
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 120 else f"{text[:120]}…"


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not a record, or is newer than we can read.

    Raises:
        RecordError: corrupt, foreign, or of a newer schema.
    """
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except UnicodeDecodeError:  # of SQLite's own message, where that quotes the damage
        raise RecordError(f"{path} is not a memwatch record, or is corrupt; it was left as it is") from None
    except sqlite3.DatabaseError as error:
        if "unable to open" in str(error) or "locked" in str(error) or "readonly" in str(error):
            raise
        raise RecordError(f"{path} is not a memwatch record, or is corrupt ({cause(error)}); it was left as it is") from None
    if application != APPLICATION_ID:
        raise RecordError(f"{path} is not a memwatch record (another program's SQLite file); it was left as it is")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{path} was written by a newer memwatch (schema {version}; this one reads up to {SCHEMA_VERSION}): "
            "upgrade memwatch to read it"
        )
    if not {"meta", "samples", "coarse", "events"} <= tables:
        raise RecordError(f"{path} is a memwatch record without its tables: it was cut off while being created")
