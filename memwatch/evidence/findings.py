"""What an inquiry is given at a tick, and its findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from memwatch.model import Evidence, Kind, Verdict


class Bounded(NamedTuple):
    """Why growth is not a leak."""

    reason: str
    room: float | None
    """Units of the channel that it may still grow by."""
    channel: str | None


class Moment(NamedTuple):
    """What the watcher knows at a tick."""

    now_s: float
    """Monotonic seconds."""
    verdict: Verdict
    since_s: float | None
    """When the growth judged began, monotonic."""
    readings: Mapping[str, float]
    """Every channel as it was last read."""


class Conclusion(NamedTuple):
    """What an inquiry found."""

    evidence: tuple[Evidence, ...]
    levels: tuple[Evidence, ...]
    """What is alive now, for the record."""
    bounded: Bounded | None
    cycles_share: float
    """Part of the growth that is garbage which the collector has not reached."""
    kind: Kind | None = None
    """What kind of growth it is, where the evidence knows better than the trend of the channels."""
