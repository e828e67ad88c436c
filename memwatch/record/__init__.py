"""The record: one SQLite file per watched process, written from inside it and read by any other process.

Law: the writer never raises anything but `RecordError`; a sample is committed in the tick that took it, so that a kill loses
at most the sample being taken; the file stays within its limit; the reader never writes to a record.
"""

from memwatch.record.directory import default_directory, find_records, prune_records, record_name
from memwatch.record.reader import NoSuchRecord, Record, read_report
from memwatch.record.schema import RecordError, RecordLost
from memwatch.record.writer import RecordWriter, append_end

__all__ = [
    "NoSuchRecord",
    "Record",
    "RecordError",
    "RecordLost",
    "RecordWriter",
    "append_end",
    "default_directory",
    "find_records",
    "prune_records",
    "read_report",
    "record_name",
]
