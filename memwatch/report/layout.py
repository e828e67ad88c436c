"""Lines of a given width: what text occupies on a terminal, where it breaks, and what must never reach one.

Law: widths are cells of a terminal, not characters; breaking a text loses nothing but the space it breaks at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# A number and its unit are one word: "1.21 GiB", "64 min", "95 %".
_GLUED = re.compile(r"(?<=\d) (?=(?:B|KiB|MiB|GiB|TiB|ms|s|min|h|days?|%)(?:\W|$))")
_NO_BREAK = "\u00a0"


def shown(text: str) -> str:
    """Text from elsewhere as it may stand on a terminal: what is not printable (control characters, escape sequences, direction
    overrides, undecodable bytes) is written as Python would write it in a string."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def cells(text: str) -> int:
    """How many columns a terminal uses for *text* (East Asian wide characters take two, combining ones none)."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def glued(text: str) -> str:
    """*text* as one word for `wrapped`, which breaks it only where it is wider than a line."""
    return text.replace(" ", _NO_BREAK)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """*text* in a column of *width* cells."""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def wrapped(text: str, width: int, *, first: str = "", rest: str | None = None) -> list[str]:
    """Break *text* into lines of at most *width* cells.

    Args:
        first, rest: what the first line and the others begin with; *rest* defaults to as many spaces.

    Breaks at spaces; runs of spaces stay as they are within a line.  A word wider than a line is cut where the line ends.
    """
    if rest is None:
        rest = " " * cells(first)
    if cells(rest) >= width:
        rest = ""  # nothing would ever fit beside it
    lines: list[str] = []
    line, used, empty = first, cells(first), True
    for piece in re.findall(r" +|[^ ]+", _GLUED.sub(_NO_BREAK, text)):
        if piece[0] == " ":
            if not empty:
                line, used = line + piece, used + len(piece)
            continue
        word = piece
        if not empty and used + cells(word) > width:
            lines.append(line.rstrip(" "))
            line, used = rest, cells(rest)
        while word and used + cells(word) > width:
            fitting = _fitting(word, max(1, width - used))
            lines.append(line + word[:fitting])
            word, line, used = word[fitting:], rest, cells(rest)
        line, used, empty = line + word, used + cells(word), False
    lines.append(line.rstrip(" "))
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _fitting(word: str, width: int) -> int:
    """How many characters of *word* fit into *width* cells; at least one."""
    used = 0
    for position, char in enumerate(word):
        used += cells(char)
        if used > width:
            return max(1, position)
    return len(word)


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), gap: str = "  ") -> list[str]:
    """Aligned columns; *right* names those aligned to the right.  Every row has as many cells as the first."""
    aligned = set(right)
    widths = [max(cells(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (gap.join(padded(cell, widths[column], right=column in aligned) for column, cell in enumerate(row)) for row in rows)
    return [line.rstrip(" ") for line in lines]
