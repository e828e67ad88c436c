"""Which part of the process carries the growth."""

from __future__ import annotations

import pytest

from memwatch.trend.kinds import Growths, kept_by_allocators, memory_kind

MIB = 2.0**20


@pytest.mark.parametrize(
    ("growths", "kind"),
    [
        (Growths(rss=20 * MIB, heap=15 * MIB, native=1 * MIB), "python-heap"),
        (Growths(rss=20 * MIB, heap=1 * MIB, native=18 * MIB, large_blocks=9000), "python-heap"),
        (Growths(rss=20 * MIB, heap=1 * MIB, native=18 * MIB, large_blocks=0), "native"),
        (Growths(rss=200 * MIB, heap=0, native=190 * MIB, large_blocks=3), "native"),
        (Growths(rss=20 * MIB, heap=0, native=0, retained=0), "native"),
        (Growths(rss=20 * MIB, heap=0, native=0, retained=19 * MIB), "fragmentation"),
        (Growths(rss=20 * MIB, blocks=200_000), "python-heap"),
        (Growths(rss=20 * MIB, heap=0), "native"),
        (Growths(rss=20 * MIB), "none"),
        (Growths(), "none"),
    ],
)
def test_the_part_that_grew_names_the_kind(growths, kind):
    assert memory_kind(growths) == kind


def test_what_was_not_read_proves_no_fragmentation():
    assert not kept_by_allocators(Growths(rss=20 * MIB, heap=0, retained=19 * MIB))
    assert kept_by_allocators(Growths(rss=20 * MIB, heap=0, native=0, retained=19 * MIB))
