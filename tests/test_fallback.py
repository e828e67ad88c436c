"""Native growth as suspects: what lines are charged with is never more than what has grown."""

from __future__ import annotations

from memwatch.evidence.fallback import native_suspects

MIB = 2**20


def frames(line: int) -> tuple[tuple[str, str, int], ...]:
    return ((f"/srv/app/views{line}.py", "handle", line), ("/srv/app/main.py", "main", 3))


def test_a_buffer_that_comes_and_goes_is_not_told_as_growth_that_is_many_times_what_there_was() -> None:
    """Each time it is charged to the line that takes it, and credited to one that runs when it has gone."""
    rows = [(frames(1), 735.0 * MIB), (frames(2), -690.0 * MIB), (frames(3), -38.0 * MIB)]
    (only,) = native_suspects(rows, 6.5 * MIB)
    assert only.bytes == round(6.5 * MIB)
    assert native_suspects(rows, 0.0) == () == native_suspects(rows, -3.0 * MIB)


def test_lines_that_are_charged_with_less_than_has_grown_are_told_as_they_are() -> None:
    first, second = native_suspects([(frames(1), 6.0 * MIB), (frames(2), 3.0 * MIB)], 10.0 * MIB)
    assert (first.bytes, second.bytes) == (6 * MIB, 3 * MIB)
    assert (first.share, second.share) == (0.6, 0.3)
