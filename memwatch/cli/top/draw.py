"""Curves in characters: a line of blocks for a row of a table, a picture of braille dots for a process.

Law: pure; as wide as asked for, never wider.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLOCKS = "▁▂▃▄▅▆▇█"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of the dots of a braille character, from above, left and right (Unicode 16.0, chapter 21)."""
BRAILLE = 0x2800
FLAT = 0.02
"""A curve that moves by less than this part of its level is drawn as if it moved by so much: noise is no mountain."""


def spark(values: Sequence[float], width: int) -> str:
    """A line of *width* blocks, or fewer where there are fewer values; of several values in a block the highest counts."""
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    edges = [place * len(values) // columns for place in range(columns + 1)]
    heights = [max(values[start:end]) for start, end in itertools.pairwise(edges)]
    low, high = stretched(min(heights), max(heights))
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int((height - low) / (high - low) * len(BLOCKS)))] for height in heights)


def stretched(low: float, high: float) -> tuple[float, float]:
    """A range to draw in: at least `FLAT` of the level, and never empty."""
    least = max(abs(high) * FLAT, 1e-9)
    return (low, high) if high - low >= least else (low, low + least)


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a picture, as (time, value); None is a moment at which nothing was read."""

    points: Sequence[tuple[float, float | None]]
    dash: tuple[int, int] | None = None
    """Columns of dots that are drawn and left out; None is a solid line."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One character of a picture, and which of the lines it is of; None where it is empty."""

    char: str
    line: int | None


def picture(
    lines: Sequence[Line], width: int, height: int, *, times: tuple[float, float], levels: tuple[float, float]
) -> list[list[Cell]]:
    """The lines in *height* rows of *width* characters; where two meet, the first is on top."""
    bits = [[0] * width for _ in range(height)]
    owner: list[list[int | None]] = [[None] * width for _ in range(height)]
    for number in reversed(range(len(lines))):
        for x, y in _dots(lines[number], width * 2, height * 4, times, levels):
            column, row = x // 2, y // 4
            bits[row][column] |= DOTS[y % 4][x % 2]
            owner[row][column] = number
    return [
        [Cell(chr(BRAILLE + bit) if bit else " ", who) for bit, who in zip(row, owners, strict=True)]
        for row, owners in zip(bits, owner, strict=True)
    ]


def _dots(line: Line, across: int, down: int, times: tuple[float, float], levels: tuple[float, float]) -> Iterator[tuple[int, int]]:
    (start, end), (low, high) = times, levels
    if end <= start or high <= low:
        return

    def place(time_s: float, value: float) -> tuple[int, int]:
        x = round((time_s - start) / (end - start) * (across - 1))
        y = round((high - value) / (high - low) * (down - 1))
        return min(max(x, 0), across - 1), min(max(y, 0), down - 1)

    def shown(x: int) -> bool:
        return line.dash is None or x % sum(line.dash) < line.dash[0]

    before: tuple[int, int] | None = None
    for time_s, value in line.points:
        if value is None:
            before = None
            continue
        here = place(time_s, value)
        for x, y in _between(before or here, here):
            if shown(x):
                yield x, y
        before = here


def _between(first: tuple[int, int], last: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of a straight line."""
    (x, y), (to_x, to_y) = first, last
    steps = max(abs(to_x - x), abs(to_y - y))
    for step in range(steps + 1):
        part = step / steps if steps else 0.0
        yield round(x + (to_x - x) * part), round(y + (to_y - y) * part)
