from __future__ import annotations

import pytest

from memwatch import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20), ("512Mi", 512 * 2**20), ("512M", 512 * 2**20), ("512MB", 512 * 10**6),
        ("1.5G", 1.5 * 2**30), ("1.5 GB", 1.5e9), ("300kB", 300_000), ("4096B", 4096), (".5k", 512), ("2TiB", 2 * 2**40),
    ],
)  # fmt: skip
def test_sizes_are_read_in_the_units_people_write(text: str, size: float) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("5m", 300), ("1h30m", 5400), ("2 days", 172800), ("1h 5 min", 3900), ("1.5h", 5400)],
)
def test_durations_are_read_and_m_is_minutes(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10MiB/min", 10 * 2**20 / 60), ("300kB/s", 300_000), ("1GiB/h", 2**30 / 3600), ("5MiB/10s", 5 * 2**20 / 10)],
)
def test_rates_are_read_as_bytes_per_second(text: str, rate: float) -> None:
    assert units.parse_rate(text) == pytest.approx(rate)


def test_a_percentage_rate_is_taken_of_the_limit_and_refused_without_one() -> None:
    assert units.parse_rate("5%/h", of=2**30) == pytest.approx(0.05 * 2**30 / 3600)
    with pytest.raises(units.UnitError, match="no memory limit"):
        units.parse_rate("5%/h")


@pytest.mark.parametrize("parse", [units.parse_size, units.parse_duration, units.parse_rate, units.parse_fraction])
@pytest.mark.parametrize("text", ["10", "", "ten", "10 parsecs", "-5MB", "1e3MB", "10MB/", "/min", "nan", 10, None, "5%%"])
def test_what_has_no_unit_or_no_meaning_is_refused_naming_the_text_and_what_is_accepted(parse, text) -> None:
    with pytest.raises(units.UnitError) as refused:
        parse(text)
    assert repr(text) in str(refused.value)
    assert "such as" in str(refused.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1023.9 * 1024, "1.00 MiB"), (13002342, "12.4 MiB"), (2**31, "2.00 GiB")],
)
def test_sizes_are_printed_in_iec_units_with_three_digits(size: float, text: str) -> None:
    assert units.format_size(size) == text


def test_absent_is_printed_as_a_question_mark_and_never_as_zero() -> None:
    assert (units.format_size(None), units.format_duration(None), units.format_count(None)) == ("?", "?", "?")


def test_a_rate_is_told_in_the_unit_of_time_that_reads_best() -> None:
    assert units.format_rate(216_800) == "+12.4 MiB/min"
    assert units.format_rate(900) == "+3.09 MiB/h"
    assert units.format_rate(-20) == "-1.65 MiB/day"
    assert units.format_count_rate(25 / 60) == "+25/min"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.05, "50 ms"), (0.25, "0.25 s"), (0.5, "0.5 s"), (0.995, "1.0 s"), (3.21, "3.2 s"), (61, "61 s"), (840, "14 min"),
     (3840, "64 min"), (7500, "2 h 5 min"), (90000, "25 h"),
     (300000, "3.5 days"), (float("inf"), "never")],
)  # fmt: skip
def test_durations_are_printed_as_people_say_them(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


def test_what_is_printed_can_be_read_again() -> None:
    for size in (1, 1000, 2**20, 3 * 2**30 + 5):
        assert units.parse_size(units.format_size(size)) == pytest.approx(size, rel=0.005)
