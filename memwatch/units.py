"""Quantities with units, to numbers and back.  Input is what people write; output is IEC.

Law: a bare number where a unit matters is refused, and every refusal names the text and shows what is accepted.
"""

from __future__ import annotations

import math
import re

_SIZE_FACTORS = {
    "b": 1,
    "k": 1024, "ki": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mi": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gi": 1024**3, "gib": 1024**3, "gb": 1000**3,
    "t": 1024**4, "ti": 1024**4, "tib": 1024**4, "tb": 1000**4,
}  # fmt: skip
_TIME_FACTORS = {
    "ms": 0.001,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0,
}  # fmt: skip
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_SIZE = re.compile(_NUMBER + r"\s*([a-z]+)", re.IGNORECASE)
_DURATION_PART = re.compile(_NUMBER + r"\s*([a-z]+)\s*", re.IGNORECASE)
_FRACTION = re.compile(_NUMBER + r"\s*%")

SIZES_ACCEPTED = "a number with a unit of bytes, such as 512MiB, 1.5GB, 300kB or 4096B"
DURATIONS_ACCEPTED = "a number with a unit of time, such as 10s, 500ms, 5m or 1h30m"
RATES_ACCEPTED = "bytes or percent per time, such as 10MiB/min, 300kB/s or 5%/h"


class UnitError(ValueError):
    """A quantity that cannot be read.  The message names the text and what is accepted."""

    def __init__(self, text: object, accepted: str) -> None:
        super().__init__(f"{text!r} is not {accepted}")
        self.text = text
        self.accepted = accepted


def parse_size(text: str) -> int:
    """Read a number of bytes: `512MiB`, `512Mi`, `512M` (all 1024-based), `512MB` (1000-based), `10B`.

    Raises:
        UnitError: no unit, an unknown unit, or not a number.
    """
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    factor = _SIZE_FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or math.isinf(float(match[1]) * factor):
        raise UnitError(text, SIZES_ACCEPTED)
    return round(float(match[1]) * factor)


def parse_duration(text: str) -> float:
    """Read a duration in seconds: `10s`, `500ms`, `5m`, `1h30m`.  `m` is minutes.

    Raises:
        UnitError: no unit, an unknown unit, or not a number.
    """
    if not isinstance(text, str) or not text.strip():
        raise UnitError(text, DURATIONS_ACCEPTED)
    total, position, stripped = 0.0, 0, text.strip()
    while position < len(stripped):
        match = _DURATION_PART.match(stripped, position)
        factor = _TIME_FACTORS.get(match[2].lower()) if match else None
        if match is None or factor is None:
            raise UnitError(text, DURATIONS_ACCEPTED)
        total += float(match[1]) * factor
        position = match.end()
    if math.isinf(total):
        raise UnitError(text, DURATIONS_ACCEPTED)
    return total


def parse_fraction(text: str) -> float:
    """Read a percentage as a fraction: `85%` is 0.85.

    Raises:
        UnitError: no percent sign, or not a number.
    """
    match = _FRACTION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise UnitError(text, "a percentage, such as 85%")
    return float(match[1]) / 100


def parse_rate(text: str, *, of: float | None = None) -> float:
    """Read bytes per second: `10MiB/min`, `5%/h` (of *of*, in bytes).

    Raises:
        UnitError: malformed, or a percentage where there is nothing to take it of.
    """
    if not isinstance(text, str) or text.count("/") != 1:
        raise UnitError(text, RATES_ACCEPTED)
    amount, _, per = text.partition("/")
    try:
        seconds = parse_duration(per if re.match(r"\s*[\d.]", per) else "1" + per.strip())
        if amount.strip().endswith("%"):
            if of is None:
                raise UnitError(text, "bytes per time (no memory limit is known that a percentage could be taken of)")
            size = parse_fraction(amount) * of
        else:
            size = parse_size(amount)
    except UnitError as error:
        if "no memory limit" in error.accepted:
            raise
        raise UnitError(text, RATES_ACCEPTED) from None
    if seconds <= 0:
        raise UnitError(text, RATES_ACCEPTED)
    return size / seconds


SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
"""What sizes are told in, each 1,024 of the one before."""


def format_size(size: float | None, *, sign: bool = False) -> str:
    """Render bytes in IEC units with three significant digits: `12.4 MiB`; None is `?`."""
    if size is None or math.isnan(size):
        return "?"
    prefix = "-" if size < 0 else "+" if sign else ""
    value, unit = abs(size), "B"
    for unit in SIZE_UNITS:
        if value < 1023.5 or unit == "TiB":
            break
        value /= 1024
    return f"{prefix}{_digits(value, whole=unit == 'B')} {unit}"


def format_sizes(size: float | None, of: float) -> str:
    """Render two sizes in the unit of the second: `1.21 of 2.00 GiB`."""
    whole = format_size(of)
    if size is None:
        return f"? of {whole}"
    unit = whole.rsplit(" ", 1)[1]
    factor = 1024 ** SIZE_UNITS.index(unit)
    return f"{_digits(size / factor, whole=unit == 'B')} of {whole}"


def format_count(count: float | None, *, sign: bool = False) -> str:
    """Render a count with thousands separators: `1,204,332`; None is `?`."""
    if count is None or math.isnan(count):
        return "?"
    return f"{count:+,.0f}" if sign else f"{count:,.0f}"


def format_duration(seconds: float | None) -> str:
    """Render a duration as people say it: `14 min`, `2 h 5 min`, `3.2 days`; None is `?`."""
    if seconds is None or math.isnan(seconds):
        return "?"
    if math.isinf(seconds):
        return "never"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 0.995:
        return f"{seconds:.2g} s"  # an interval of 0.25 s is not 0.2 s
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest and hours < 10 else f"{round(minutes / 60)} h"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 10 else f"{days:,.0f} days"


def format_left(seconds: float) -> str:
    """Render the time until something runs out, for a sentence: `in about 14 min`, or `any moment`."""
    return f"in about {format_duration(seconds)}" if seconds >= 1.0 else "any moment"


def format_left_short(seconds: float) -> str:
    """The same for a table: `14 min`, or `now`."""
    return format_duration(seconds) if seconds >= 1.0 else "now"


def rate_scale(rate_per_s: float) -> tuple[float, str]:
    """The unit of time a rate is best told in: the factor from per-second and its name (`min`, `h`, `day`)."""
    if abs(rate_per_s) * 60 >= 0.1 * 1024**2:
        return 60.0, "min"
    if abs(rate_per_s) * 3600 >= 0.1 * 1024**2:
        return 3600.0, "h"
    return 86400.0, "day"


def format_rate(rate_per_s: float, *, sign: bool = True) -> str:
    """Render bytes per second in the unit of time that reads best: `+12.4 MiB/min`, `+3.1 MiB/h`."""
    factor, per = rate_scale(rate_per_s)
    return f"{format_size(rate_per_s * factor, sign=sign)}/{per}"


def count_rate_scale(rate_per_s: float) -> tuple[float, str]:
    """As `rate_scale`, for counts (descriptors, threads, tasks)."""
    if abs(rate_per_s) * 60 >= 1:
        return 60.0, "min"
    if abs(rate_per_s) * 3600 >= 1:
        return 3600.0, "h"
    return 86400.0, "day"


def format_count_rate(rate_per_s: float, *, sign: bool = True) -> str:
    """Render a count per second in the unit of time that reads best: `+25/min`."""
    factor, per = count_rate_scale(rate_per_s)
    value = rate_per_s * factor
    digits = f"{abs(value):,.1f}" if abs(value) < 10 else f"{abs(value):,.0f}"
    return f"{'-' if value < 0 else '+' if sign else ''}{digits}/{per}"


def _digits(value: float, *, whole: bool) -> str:
    if whole:
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
