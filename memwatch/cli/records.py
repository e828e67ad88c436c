"""Finding the record somebody means: by pid, name, file or directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memwatch import fleet
from memwatch.cli.screen import NotThere, say
from memwatch.fleet import Found, rank, read
from memwatch.record import RecordError, find_records
from memwatch.report import shown

__all__ = ["Found", "find", "rank", "read", "read_all"]


def read_all(directory: Path) -> list[Found]:
    """Every record in a directory, the most recently written first; those that cannot be read are named on stderr."""
    return fleet.read_all(directory, on_error=lambda error: say(str(error)))


def find(target: str | None, directory: Path) -> Path:
    """The record that *target* means: a pid, a name, a record file, a directory of them, or (None) the newest.

    Of several with that name, or in that directory, the one with the worst verdict; how many others there are goes to stderr.

    Raises:
        NotThere: there is none.
    """
    if target is None:
        for newest in find_records(directory):
            try:
                return read(newest).path
            except RecordError as error:
                say(str(error))
        raise NotThere(f"no records in {directory}; start one with 'memwatch run -- CMD', or name a directory with --directory")
    place = Path(target)
    if place.is_dir():
        return _worst(read_all(place), f"no records in {place}", f"in {place}")
    if place.is_file():
        return place
    everything = read_all(directory)
    if target.isdigit():
        # A pid that was used again: the later process; of two programs that one ran, the one it runs now.
        ours = [found for found in everything if found.report.process.pid == int(target)]
        if ours:
            return max(ours, key=lambda found: (found.report.process.started or 0.0, found.report.process.fate == "running")).path
    named = [found for found in everything if found.report.process.name == target]
    known = ", ".join(sorted({shown(found.report.process.name) for found in everything})[:8])
    hint = f"; there are records of {known}" if known else ""
    return _worst(named, f"no record of {target!r} in {directory}{hint}", f"named {target}")


def _worst(found: Iterable[Found], otherwise: str, among: str) -> Path:
    ranked = sorted(found, key=rank)
    if not ranked:
        raise NotThere(otherwise)
    if len(ranked) > 1:
        others = len(ranked) - 1
        say(f"the worst of {len(ranked)} records {among}; {others} other{'s' * (others > 1)}: memwatch ps")
    return ranked[0].path
