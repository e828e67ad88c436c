"""Current, average and peak of every channel since the watch began, in constant memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memwatch.model import ChannelSummary, Sample, Statistics, Verdict


@dataclass(slots=True)
class _Running:
    total: float = 0.0
    readings: int = 0
    peak: float = float("-inf")
    current: float = 0.0
    taken_s: float = 0.0


class Tally:
    """Adds samples up."""

    def __init__(self) -> None:
        self.samples = 0
        self._running: dict[str, _Running] = {}

    def add(self, sample: Sample) -> None:
        """Take one sample.  Channels it does not hold keep their last reading and its time."""
        self.samples += 1
        for name, value in sample.values.items():
            running = self._running.get(name)
            if running is None:
                running = self._running[name] = _Running()
            running.total += value
            running.readings += 1
            running.peak = max(running.peak, value)
            running.current = value
            running.taken_s = sample.time_s

    def current(self, channel: str) -> float | None:
        """The last reading of a channel; None if there never was one."""
        running = self._running.get(channel)
        return None if running is None else running.current

    def latest(self) -> dict[str, float]:
        """The last reading of every channel."""
        return {name: running.current for name, running in self._running.items()}

    def statistics(self, uptime_s: float, verdicts: Mapping[str, Verdict]) -> Statistics:
        """What was measured, each channel with what the trend says of it."""
        channels = {}
        for name, running in self._running.items():
            verdict = verdicts.get(name)
            channels[name] = ChannelSummary(
                current=running.current,
                average=running.total / running.readings,
                peak=running.peak,
                taken=running.taken_s,
                state=None if verdict is None else verdict.state,
                direction=None if verdict is None else verdict.direction,
                rate=None if verdict is None else verdict.rate,
                reason=None if verdict is None else verdict.reason,
            )
        return Statistics(self.samples, uptime_s, channels)
