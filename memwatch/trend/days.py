"""Growth from day to day, under a daily cycle that may be far larger than the growth itself.

Law: every reading is compared with the one 24 hours before it, so that whatever repeats daily drops out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from memwatch.trend.statistics import lower_quartile

DAY_S = 86400.0

MIN_SPAN_S = 2.6 * DAY_S
"""More than a day and a half of differences, so that every hour of the day is compared once and most of them twice."""

LONGEST_BUCKET_S = 4 * 3600.0
"""Six phases a day at least."""

EVEN = 0.5
"""The lower quartile of the differences is at least this part of their median: the growth is in (nearly) every hour."""

LASTING = 0.5
"""The later half of the differences is at least this part of the earlier half, and not more than its inverse squared."""


RECENT = 0.65
"""The last half day's differences are at least this part of the median: it still grows."""


class Daily(NamedTuple):
    """What the differences over 24 hours say."""

    rate: float
    """Per second."""
    rate_error: float
    recent: float
    """The last 12 hours' differences, per second."""
    even: float
    lasting: float

    @property
    def steady(self) -> bool:
        lasting = LASTING <= self.lasting <= 1 / LASTING**2
        return self.rate > 0.0 and self.even >= EVEN and lasting and self.recent >= RECENT * self.rate


def compare_days(times: Sequence[float], values: Sequence[float]) -> Daily | None:
    """Compare each reading with that of 24 hours before; None where there are too few.

    Args:
        times: seconds, increasing, about equally spaced.
    """
    count = len(times)
    if count < 16 or times[-1] - times[0] < MIN_SPAN_S:
        return None
    width = (times[-1] - times[0]) / (count - 1)
    shift = round(DAY_S / width)
    if width > LONGEST_BUCKET_S or count - shift < 8:
        return None
    from statistics import median  # 0.5 MiB of modules, which a process needs after its first day

    differences = [(values[i] - values[i - shift]) / (times[i] - times[i - shift]) for i in range(shift, count)]
    half = len(differences) // 2
    early, late = median(differences[:half]), median(differences[half:])
    rate = median(differences)
    spread = median([abs(difference - rate) for difference in differences]) * 1.48
    recent = differences[-max(1, shift // 2) :]
    return Daily(
        rate=rate,
        rate_error=spread / sqrt(max(1.0, len(differences) / 4)),
        recent=median(recent),
        even=lower_quartile(differences) / rate if rate > 0.0 else 0.0,
        lasting=late / early if early > 0.0 else 0.0,
    )
