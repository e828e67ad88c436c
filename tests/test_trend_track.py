"""One channel through the lives of a process."""

from __future__ import annotations

import pytest

from memwatch.trend.history import History
from memwatch.trend.judge import MIB
from memwatch.trend.track import Track
from memwatch.trend.windows import Setting


def lived(grown_mib: float) -> Track:
    """A track whose first life grew evenly by so much in 75 min and has just ended."""
    history, track = History(), Track("rss", "anonymous", countable=False)
    for number in range(300):
        elapsed = 15.0 * number
        bucket = {"elapsed": elapsed, "stamp": elapsed, "anonymous": (100 + grown_mib * number / 299) * MIB}
        track.update(history, history.append(bucket), Setting(elapsed, 1.0, 10 * MIB / 60, None, None))
    assert track.state == "stable"
    track.restart(history)
    return track


def test_the_level_of_a_life_that_had_settled_is_remembered():
    assert lived(0.0).series.floor == pytest.approx(100 * MIB)


def test_the_level_of_a_life_that_was_still_growing_is_not():
    assert lived(17.0).series.floor is None
