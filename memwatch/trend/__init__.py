"""The leak detector: pure, online, one `update` a sample."""

from memwatch.trend.detector import LeakDetector

__all__ = ["LeakDetector"]
