"""Limits as people write them, to numbers.  Pure.

Law: a malformed limit is refused with the text and what is accepted, before anything is measured.
"""

from __future__ import annotations

import re

from memwatch import units

RESOURCES = ("fds", "threads", "children", "tasks")
"""What is counted, with identity (`memwatch.evidence.resources`)."""
ENGINES = ("auto", "memray", "tracemalloc", "rss")
"""What can measure a peak (`memwatch.gate.peaks`)."""


class LimitError(ValueError):
    """A limit that cannot be read; the message names it and says what is accepted."""


def size_of(name: str, value: object) -> int | None:
    """A limit in bytes: `"1MiB"`, `"24 MB"`; a whole number is bytes; None is no limit.

    Raises:
        LimitError: malformed or negative.
    """
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise LimitError(f"{name}={value!r}: a limit is not negative")
        return value
    if isinstance(value, str):
        text = value.strip()
        if text == "0":
            return 0
        if text.lower() in ("none", "off", "no"):
            return None
        try:
            return units.parse_size(text)
        except units.UnitError as error:
            raise LimitError(f"{name}={value!r} is not {error.accepted}") from None
    raise LimitError(f"{name}={value!r} is not {units.SIZES_ACCEPTED}")


def count_of(name: str, value: object) -> int | None:
    """A limit in things: 0, `"2"`; None is no limit.

    Raises:
        LimitError: malformed or negative.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "off", "no")):
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise LimitError(f"{name}={value!r:.60} is not a whole number, 0 or more, or None for no limit")
