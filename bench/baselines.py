"""What people use today, behind the same interface as ours, so that one command compares them.

Each is written as its users would: on RSS, with the constants they quote.  None has any other defence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import inf, sqrt

from scoring import Factory

from memwatch.model import Verdict
from memwatch.trend import LeakDetector

MIB = 2.0**20


class Windowed:
    """A rule on the last *window_s* seconds of RSS, thinned to at most 240 points."""

    window_s = 3600.0

    def __init__(self, interval_s: float, limit: float | None) -> None:
        self.limit = limit
        self.step = max(interval_s * 0.99, self.window_s / 240)
        self.points: deque[tuple[float, float]] = deque()
        self.state = "warming-up"
        self.rate = 0.0

    def update(self, time_s: float, values: Mapping[str, float]) -> Verdict:
        if self.points and time_s - self.points[-1][0] < self.step:
            return self.verdict()
        self.points.append((time_s, values["rss"]))
        while time_s - self.points[0][0] > self.window_s:
            self.points.popleft()
        if time_s - self.points[0][0] > 0.9 * self.window_s and len(self.points) >= 8:
            self.state = "leaking" if self.leaks() else "stable"
        return self.verdict()

    def verdict(self) -> Verdict:
        return Verdict("rss", self.state, rate=self.rate)  # type: ignore[arg-type]

    def leaks(self) -> bool:
        raise NotImplementedError

    def line(self) -> tuple[float, float, float]:
        """Slope, its standard error, and the value of the line at the end."""
        count = len(self.points)
        centre = sum(time for time, _ in self.points) / count
        level = sum(value for _, value in self.points) / count
        sxx = sum((time - centre) ** 2 for time, _ in self.points)
        sxy = sum((time - centre) * (value - level) for time, value in self.points)
        syy = sum((value - level) ** 2 for _, value in self.points)
        slope = sxy / sxx
        self.rate = slope
        return slope, sqrt(max(0.0, syy - slope * sxy) / (count - 2) / sxx), level + slope * (self.points[-1][0] - centre)


class Slope10(Windowed):
    """Last minus first over ten minutes above 10 MB/min: the rule of thumb."""

    window_s = 600.0
    threshold = 10 * MIB / 60

    def leaks(self) -> bool:
        (begin, low), (end, high) = self.points[0], self.points[-1]
        self.rate = (high - low) / (end - begin)
        return self.rate > self.threshold


class Slope1(Slope10):
    threshold = 1 * MIB / 60


class Line1h(Windowed):
    """Least squares over an hour above 10 MB/h, as `deriv(rss[1h])` in an alert rule."""

    def leaks(self) -> bool:
        return self.line()[0] > 10 * MIB / 3600


class PredictLinear(Windowed):
    """`predict_linear(rss[6h], 86400)` over the limit (2 GiB where none is known)."""

    window_s = 6 * 3600.0

    def leaks(self) -> bool:
        slope, _, now = self.line()
        return now + slope * 86400 > (self.limit or 2 * 1024 * MIB)


class LineTest6h(Windowed):
    """A t-test on the slope over six hours, and 2 MB/h."""

    window_s = 6 * 3600.0

    def leaks(self) -> bool:
        slope, error, _ = self.line()
        return slope > 2 * MIB / 3600 and slope > 3.3 * error


class MannKendall(Windowed):
    """Mann-Kendall (one-sided, 0.1 %) and the Theil-Sen slope above 2 MB/h, over six hours; looks every ten minutes.

    With *corrected*, the variance is that of Hamed and Rao (1998), for autocorrelated series.
    """

    window_s = 6 * 3600.0
    corrected = False

    def __init__(self, interval_s: float, limit: float | None) -> None:
        super().__init__(interval_s, limit)
        self.step = max(interval_s * 0.99, 360.0)

    def leaks(self) -> bool:
        points = list(self.points)
        count = len(points)
        slopes = []
        sign = 0
        for number, (time, value) in enumerate(points):
            for later, high in points[number + 1 :]:
                slopes.append((high - value) / (later - time))
                sign += (high > value) - (high < value)
        slopes.sort()
        self.rate = slopes[len(slopes) // 2]
        variance = count * (count - 1) * (2 * count + 5) / 18
        if self.corrected:
            variance *= self.inflation([value for _, value in points])
        return sign > 0 and (sign - 1) / sqrt(variance) > 3.09 and self.rate > 2 * MIB / 3600

    def inflation(self, values: list[float]) -> float:
        """How much autocorrelation of the detrended ranks inflates the variance."""
        count = len(values)
        step = (self.points[-1][0] - self.points[0][0]) / (count - 1)
        freed = [value - self.rate * step * number for number, value in enumerate(values)]
        order = sorted(range(count), key=freed.__getitem__)
        ranks = [0.0] * count
        for rank, number in enumerate(order):
            ranks[number] = rank - (count - 1) / 2
        total = sum(rank * rank for rank in ranks)
        extra = 0.0
        for lag in range(1, count - 1):
            rho = sum(ranks[i] * ranks[i + lag] for i in range(count - lag)) / total
            if abs(rho) > 1.96 / sqrt(count):
                extra += (count - lag) * (count - lag - 1) * (count - lag - 2) * rho
        return max(1.0, 1 + 2 / (count * (count - 1) * (count - 2)) * extra)


class MannKendallHamedRao(MannKendall):
    corrected = True


class FiveGrowingCollections:
    """Heap (else RSS) greater after each of five full collections in a row: node-memwatch's rule."""

    def __init__(self, interval_s: float, limit: float | None) -> None:
        self.collections: float | None = None
        self.low = self.previous = inf
        self.growing = 0
        self.state = "warming-up"

    def update(self, time_s: float, values: Mapping[str, float]) -> Verdict:
        level = values.get("heap", values["rss"])
        count = values.get("gc2")
        if count != self.collections:
            self.growing = self.growing + 1 if level > self.previous else 0
            self.previous = level
            self.collections = count
            self.state = "leaking" if self.growing >= 5 else "stable"
        return Verdict("heap", self.state)  # type: ignore[arg-type]


def memwatch(interval_s: float, limit: float | None) -> LeakDetector:
    return LeakDetector(interval_s, limit)


DETECTORS: dict[str, Factory] = {
    "memwatch": memwatch,
    "slope > 10 MB/min, 10 min": Slope10,
    "slope > 1 MB/min, 10 min": Slope1,
    "least squares > 10 MB/h, 1 h": Line1h,
    "predict_linear 6 h to 24 h": PredictLinear,
    "least squares t-test, 6 h": LineTest6h,
    "Mann-Kendall + Theil-Sen, 6 h": MannKendall,
    "Mann-Kendall (Hamed-Rao), 6 h": MannKendallHamedRao,
    "five growing collections": FiveGrowingCollections,
}
