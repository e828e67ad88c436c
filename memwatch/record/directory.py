"""Where records are: the directory, the names in it, and which old ones go."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from memwatch.model import Process, iso
from memwatch.record.schema import SUFFIX, RecordError

DEAD_KEPT_S = 30 * 24 * 3600.0
"""Records of dead processes are kept this long: as long as the coarse history within one."""
DEAD_KEPT = 500
"""And no more than this many of them (a prefork server that recycles its workers makes thousands a day)."""


def default_directory(environ: Mapping[str, str] | None = None) -> Path:
    """The state directory of the user: `$XDG_STATE_HOME/memwatch`, else `~/.local/state/memwatch`.

    Raises:
        RecordError: the user has no home directory.
    """
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_STATE_HOME", "")
    if base and Path(base).is_absolute():
        return Path(base) / "memwatch"
    try:
        home = Path("~/.local/state/memwatch").expanduser()
    except RuntimeError:  # no HOME, and no entry in the user database: a container with a uid of its own
        home = None
    if home is None or not home.is_absolute():
        raise RecordError(
            "no record can be kept: this user has no home directory; "
            "give a writable directory with MEMWATCH_DIR, or MEMWATCH_DIR=off"
        )
    return home


def record_name(process: Process) -> str:
    """File name of a process's record: `<name>-<pid>-<start>.memwatch`; the start tells a reused pid from this one."""
    name = re.sub(r"[^A-Za-z0-9_.+@]+", "-", process.name).strip("-.")[:60] or "python"
    started = re.sub("[-:]", "", iso(process.started) or iso(0.0) or "")[:15]
    return f"{name}-{process.pid}-{started}{SUFFIX}"


def find_records(directory: Path) -> list[Path]:
    """The records in a directory, the most recently written first.  A missing directory has none.

    Only files count: whoever opened a pipe or a device of that name would wait for ever.
    """
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        found.extend((_last_written(path), path) for path in directory.iterdir() if path.suffix == SUFFIX and path.is_file())
    return [path for _, path in sorted(found, key=lambda pair: (-pair[0], pair[1].name))]


def prune_records(directory: Path, is_dead: Callable[[Path], bool], *, now_s: float) -> list[Path]:
    """Delete old records of dead processes: by age, then by number.

    Args:
        is_dead: whether the process of a record has ended; asked only about candidates, never about all.
        now_s: Unix time.

    Returns:
        What was deleted.
    """
    deleted = []
    for index, path in enumerate(find_records(directory)):
        if index < DEAD_KEPT and now_s - _last_written(path) < DEAD_KEPT_S:
            continue
        if is_dead(path):
            delete_record(path)
            deleted.append(path)
    return deleted


def delete_record(path: Path) -> None:
    """Delete a record with its write-ahead log."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            Path(f"{path}{suffix}").unlink()


def _last_written(path: Path) -> float:
    latest = 0.0
    for suffix in ("", "-wal"):
        with contextlib.suppress(OSError):
            latest = max(latest, Path(f"{path}{suffix}").stat().st_mtime)
    return latest
