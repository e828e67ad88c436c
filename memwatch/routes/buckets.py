"""How long requests took: counted on a logarithmic scale, so that percentiles have one relative error whatever the times are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import log

BUCKETS_PER_OCTAVE = 8
RELATIVE_ERROR = 2 ** (0.5 / BUCKETS_PER_OCTAVE) - 1
"""Of a percentile: 4.4 %, half a bucket."""
FIRST_S = 1e-5
"""What takes less is in the first bucket."""
BUCKETS = 272
"""Up to 43 hours; what takes longer is in the last."""
PER_E = BUCKETS_PER_OCTAVE / math.log(2)
LOG_FIRST = math.log(FIRST_S)
SCALE = FIRST_S, LOG_FIRST, PER_E, BUCKETS
"""For the extension, which counts as `bucket_of` does."""


def bucket_of(took_s: float) -> int:
    """The bucket of a duration, which is not negative."""
    if took_s <= FIRST_S:
        return 0
    bucket = int((log(took_s) - LOG_FIRST) * PER_E)
    return bucket if bucket < BUCKETS else BUCKETS - 1


def percentiles(counts: Sequence[int]) -> tuple[float | None, float | None, float | None]:
    """The 50th, 95th and 99th percentile in seconds of *counts* per bucket; None where nothing was counted."""
    total = sum(counts)
    if not total:
        return None, None, None
    wanted = [math.ceil(part * total) for part in (0.50, 0.95, 0.99)]
    found: list[float] = []
    sofar = 0
    for bucket, count in enumerate(counts):
        if not count:
            continue
        sofar += count
        while len(found) < 3 and sofar >= wanted[len(found)]:
            # The middle of the bucket, on the scale it is cut on.
            found.append(FIRST_S * 2 ** ((bucket + 0.5) / BUCKETS_PER_OCTAVE))
    return found[0], found[1], found[2]
