"""Two moments side by side, and `compare`'s text of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_cases as cases

from memwatch.model import Census, Evidence, Suspect
from memwatch.report.compare import Moment, compare, render_comparison
from memwatch.report.layout import cells

HOUR = 3600.0
MIB = cases.MIB


def census(time_s: float, *, sessions: float, line: int = 48, extra: tuple[Suspect, ...] = ()) -> Census:
    types = (
        Suspect("app.sessions.Session", sessions * 130, sessions, None, (f"app/sessions.py:{line} SessionStore.add",)),
        Suspect("dict", 40 * MIB, 90_000),
        *extra,
    )
    sites = (
        Suspect(f"app/sessions.py:{line} SessionStore.add", sessions * 120, sessions, None, ("app/web.py:12 handle",)),
        Suspect(f"app/sessions.py:{line} SessionStore.add", sessions * 10, sessions, None, ("app/admin.py:3 restore",)),
    )
    files = (Suspect("socket to 10.0.0.7:5432 (ESTABLISHED)", None, sessions / 1e5),)
    return Census(time_s, (Evidence("types", types), Evidence("sites", sites), Evidence("resources", files)))


EARLY = Moment(
    cases.process(started=cases.NOW_S - 3 * HOUR),
    cases.NOW_S - 2 * HOUR,
    {"rss": 200 * MIB, "heap": 90 * MIB, "threads": 9.0, "fds": 41.0},
    census(cases.NOW_S - 2 * HOUR, sessions=1e5),
)
LATE = Moment(
    cases.process(started=cases.NOW_S - 3 * HOUR),
    cases.NOW_S,
    {"rss": 357 * MIB, "heap": 247 * MIB, "threads": 9.0, "uss": 300 * MIB},
    census(cases.NOW_S + 5, sessions=1.3e6, extra=(Suspect("app.audit.Entry", 3 * MIB, 40_112),)),
)
NEXT_RELEASE = replace(
    LATE,
    time_s=cases.NOW_S + HOUR,
    process=cases.process(pid=99, labels={"version": "1.5.0"}),
    census=census(cases.NOW_S + HOUR, sessions=2e6, line=52),
)


def test_growth_of_channels_and_its_rate_per_hour() -> None:
    found = compare(EARLY, LATE).channels
    assert list(found) == ["rss", "uss", "heap", "fds", "threads"]
    assert (found["rss"].before, found["rss"].after, found["rss"].per_hour) == (200 * MIB, 357 * MIB, pytest.approx(78.5 * MIB))
    assert (found["fds"].after, found["fds"].per_hour) == (None, None)


def test_rows_are_ranked_by_growth_and_equal_sites_are_one() -> None:
    tables = compare(EARLY, LATE).tables
    assert [row.label for row in tables["types"]] == ["app.sessions.Session", "app.audit.Entry", "dict"]
    (site,) = tables["sites"]
    assert site.bytes is not None and site.count is not None
    assert (site.bytes.before, site.bytes.after, site.count.grown) == (13e6, 169e6, 2.4e6)
    assert site.bytes.per_hour == pytest.approx(78e6, rel=0.01)
    assert tables["resources"][0].bytes is None


def test_between_two_processes_lines_may_have_moved_and_there_is_no_rate() -> None:
    comparison = compare(LATE, NEXT_RELEASE)
    (site,) = comparison.tables["sites"]
    assert site.label == "app/sessions.py:52 SessionStore.add" and site.bytes is not None
    assert (site.bytes.before, site.bytes.after, site.bytes.per_hour) == (169e6, 260e6, None)
    assert comparison.channels["rss"].per_hour is None
    text = render_comparison(comparison, width=100)
    assert "per hour  " not in text and "version=1.4.2" in text and "version=1.5.0" in text


def test_in_one_process_two_lines_of_a_function_are_two_sites() -> None:
    moved = replace(LATE, census=census(cases.NOW_S, sessions=1e6, line=52))
    assert len(compare(EARLY, moved).tables["sites"]) == 2


def test_without_a_census_channels_are_compared_and_that_is_said() -> None:
    comparison = compare(replace(EARLY, census=None), LATE)
    assert comparison.tables == {} and comparison.channels
    assert "no census of A was recorded, so only channels are compared" in comparison.notes[0]
    assert "no census of A and B" in compare(replace(EARLY, census=None), replace(LATE, census=None)).notes[0]


def test_one_census_for_both_moments_is_not_compared_with_itself() -> None:
    comparison = compare(replace(EARLY, census=LATE.census), LATE)
    assert comparison.tables == {} and "is the nearest to both moments" in comparison.notes[0]


def test_a_census_that_lacks_a_collector_and_one_with_gaps_are_said() -> None:
    partial = Census(cases.NOW_S, (Evidence("types", (Suspect("dict", 1.0, 1),), note="only the first 3 of 9 were recorded"),))
    notes = compare(EARLY, replace(LATE, census=partial)).notes
    assert "the census of B has no sites: they are not compared" in notes
    assert "types in B: only the first 3 of 9 were recorded" in notes


def test_moments_in_the_wrong_order_are_said_to_be() -> None:
    comparison = compare(LATE, EARLY)
    assert "A is later than B" in comparison.notes[0] and comparison.channels["rss"].per_hour is None


@pytest.mark.parametrize("pair", [(EARLY, LATE), (LATE, NEXT_RELEASE), (LATE, EARLY), (Moment(cases.process(), None), LATE)])
@pytest.mark.parametrize("width", range(40, 141, 10))
def test_no_line_is_wider_than_asked_for(pair: tuple[Moment, Moment], width: int) -> None:
    text = render_comparison(compare(*pair), width=width)
    assert [line for line in text.splitlines() if cells(line) > width] == []


@pytest.mark.parametrize("width", [60, 100])
def test_rows_beyond_the_limit_and_rows_that_shrank_are_counted(width: int) -> None:
    grown = tuple(Suspect(f"app.T{index}", 1e6 * (index + 1), 10) for index in range(30))
    shrunk = Moment(EARLY.process, cases.NOW_S - HOUR, {}, census(0, sessions=1, extra=(Suspect("app.Gone", 2e6, 5),)))
    text = render_comparison(compare(shrunk, replace(LATE, census=census(HOUR, sessions=1, extra=grown))), width=width, limit=5)
    assert "and 25 more that grew, +310 MiB" in text and "and 1 that shrank, -1.91 MiB" in text
    assert "app.T25" in text and "app.T24" not in text


def test_rows_that_grew_by_next_to_nothing_are_counted_unless_a_number_of_rows_was_asked_for() -> None:
    small = replace(LATE, census=census(cases.NOW_S, sessions=1.3e6, extra=(Suspect("app.Small", 1e5, 3),)))
    assert "app.Small" not in render_comparison(compare(EARLY, small), width=100)
    assert "and 1 more that grew, +97.7 KiB" in render_comparison(compare(EARLY, small), width=100)
    assert "app.Small" in render_comparison(compare(EARLY, small), width=100, limit=20)


def test_when_the_censuses_were_taken_is_said_where_that_is_not_when_the_samples_were() -> None:
    late = replace(LATE, census=census(cases.NOW_S - 600, sessions=1e6))
    text = " ".join(render_comparison(compare(EARLY, late), width=100).split())
    assert "by type (censuses of 2026-11-22 06:00:00 and 2026-11-22 07:50:00 UTC):" in text
    assert "censuses of" not in render_comparison(compare(EARLY, LATE), width=100)


def test_a_name_cannot_reach_the_terminal_as_control() -> None:
    odd = Moment(
        cases.process(pid=9, name="a\x1b", labels={"v\x1b": "\x1b"}, host="h\x1b"), 9.0, {"x\x1b": 3.0},
        Census(9.0, (Evidence("ty\x1bpes", (Suspect("l\x1b", 1, 1),)), Evidence("types", (Suspect("l\x1b", 1, 1),), note="\x1b"))),
    )  # fmt: skip
    for pair in ((odd, LATE), (EARLY, odd), (odd, replace(odd, time_s=60.0))):
        text = render_comparison(compare(*pair), width=80)
        assert [char for char in text if not char.isprintable() and char != "\n"] == []
