"""From the growths of a test's repetitions to a verdict.  Pure.

Law: only growth that repeats every time and does not fade is a leak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from memwatch.gate.readings import Growth

FADES = 0.8
"""Growth that shrinks to this or less, twice in a row, is on its way out.  Source: psleak's rule, its issue 9."""
MOST_RUNS = 9
"""Repetitions at most, while growth fades.  Source: psleak stops after 10 rounds."""

Course = Literal["fine", "more", "leak"]


class MemoryGrowth(AssertionError):
    """More memory or resources were kept than the limit allows.

    Attributes:
        finding: what was measured, as plain data; the message says the same in words.
    """

    def __init__(self, message: str, finding: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.finding: dict[str, Any] = dict(finding or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.finding)


MemoryGrowth.__module__ = "memwatch"  # where people import it from, and what a traceback calls it


class Decision(NamedTuple):
    """What the repetitions say."""

    course: Course
    metric: str = ""
    """`heap` or `rss`; the name of a resource."""
    growths: tuple[int, ...] = ()
    """Of each repetition, by that metric."""


def course_of(growths: Sequence[int], limit: int, *, runs: int, most: int = MOST_RUNS) -> Course:
    """What one metric says after some repetitions.

    Args:
        growths: of each repetition so far, in order.
        limit: what each may grow by.
        runs: repetitions that are needed before growth is a leak.
        most: repetitions after which fading growth is let go.

    Source: CPython's `regrtest -R` (a leak shows in every run), with psleak's fading.
    """
    if any(growth <= limit for growth in growths):
        return "fine"
    if len(growths) < runs:
        return "more"
    if is_fading(growths):
        return "more" if len(growths) < most else "fine"
    return "leak"


def is_fading(growths: Sequence[int]) -> bool:
    """Whether the last two steps each lost a fifth or more."""
    if len(growths) < 3:
        return False
    first, second, third = growths[-3:]
    return second <= FADES * first and third <= FADES * second


def decide_memory(growths: Sequence[Growth], limit: int, *, runs: int) -> Decision:
    """What memory says: by the live heap where it is known, and by RSS for what grows outside of it."""
    heap = [growth.heap for growth in growths]
    decisions: list[Decision] = []
    if all(value is not None for value in heap):
        exact = [value for value in heap if value is not None]
        decisions.append(Decision(course_of(exact, limit, runs=runs), "heap", tuple(exact)))
        outside = [(growth.rss or 0) - max(0, value) for growth, value in zip(growths, exact, strict=True)]
        decisions.append(Decision(course_of(outside, limit, runs=runs), "rss", tuple(growth.rss or 0 for growth in growths)))
    else:
        resident = [growth.rss or 0 for growth in growths]
        decisions.append(Decision(course_of(resident, limit, runs=runs), "rss", tuple(resident)))
        python = [growth.python or 0 for growth in growths]
        decisions.append(Decision(course_of(python, limit, runs=runs), "python", tuple(python)))
    return worst(decisions)


def worst(decisions: Sequence[Decision]) -> Decision:
    """The decision that matters: a leak before doubt before nothing."""
    order = ("leak", "more", "fine")
    return min(decisions, key=lambda decision: order.index(decision.course), default=Decision("fine"))
