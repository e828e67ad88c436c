"""Reports as text.  `python tests/test_report_text.py` writes the golden files anew: read the difference before committing it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Event, Evidence, Report, Suspect
from memwatch.report.layout import cells, shown, wrapped

GOLDEN = Path(__file__).with_name("golden")
WIDTHS = (60, 80, 100)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", cases.CASES)
def test_a_report_reads_as_its_golden_file(name: str, width: int) -> None:
    assert reports.render(cases.CASES[name](), width=width) == (GOLDEN / f"report-{name}-{width}.txt").read_text("utf-8")


@pytest.mark.parametrize("width", range(40, 141, 7))
@pytest.mark.parametrize("name", [*cases.CASES, "hostile"])
def test_no_line_is_wider_than_asked_for(name: str, width: int) -> None:
    text = reports.render((cases.CASES | {"hostile": cases.hostile})[name](), width=width)
    assert [line for line in text.splitlines() if cells(line) > width] == []


@pytest.mark.parametrize("width", (60, 80, 100, 200))
def test_every_width_tells_the_same_words(width: int) -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"\d[\d,]*\.?\d*(?![\d,])|[A-Za-z]{4,}", text.replace(", ", " ")))

    told = words(reports.render(cases.leak(), width=100)) - {"rate", "state"}  # headers
    assert told - words(reports.render(cases.leak(), width=width)) == set()


def test_the_verdict_is_the_first_line_and_one_sentence() -> None:
    assert reports.headline(cases.leak()) == (
        "LEAK  api-worker[4242]  Python heap  +12.4 MiB/min (95 %: 11.8–13.0) for 14 min, 1.21 of 2.00 GiB, "
        "out of memory in about 64 min"
    )
    assert reports.render(cases.leak(), width=200).startswith(reports.headline(cases.leak()) + "\n")


def test_at_the_limit_there_is_no_time_left_to_count() -> None:
    report = cases.leak()
    full = replace(report, verdict=replace(report.verdict, exhausted_in_s=0.0))
    assert reports.headline(full).endswith("1.21 of 2.00 GiB, out of memory any moment")


def test_time_left_that_follows_faster_resident_memory_says_so() -> None:
    report = cases.leak()
    channels = {**report.statistics.channels, "rss": replace(report.statistics.channels["rss"], rate=2 * report.verdict.rate)}
    faster = replace(report, statistics=replace(report.statistics, channels=channels))
    assert reports.headline(faster).endswith("out of memory in about 64 min (resident memory +24.8 MiB/min)")


def test_a_name_without_end_is_cut_in_the_sentence() -> None:
    report = cases.leak()
    first = reports.headline(replace(report, process=replace(report.process, name="n" * 100_000)))
    assert "n…[4242]  Python heap" in first and len(first) < 300


def test_a_look_alike_is_said_not_to_be_a_leak_and_why() -> None:
    first = reports.headline(cases.lookalike())
    assert first.startswith("NOT A LEAK  search[77]  ") and "a cache that has filled" in first


def test_counted_things_are_told_in_counts() -> None:
    assert reports.headline(cases.tasks()) == "LEAK  sse[900]  asyncio tasks  +25/min (95 %: 24–26) for 10 min, 267"


def test_a_dead_process_has_no_time_left() -> None:
    first = reports.headline(cases.killed())
    assert "out of memory in" not in first and "; gone: no goodbye" in first


@pytest.mark.parametrize("format", reports.FORMATS)
def test_nothing_a_process_chose_reaches_the_terminal_as_control(format: str) -> None:
    odd = cases.a_day(cases.hostile())
    text = reports.render(replace(odd, evidence=(*odd.evidence, replace(odd.evidence[0], collector="sites"))), format)
    assert [char for char in text if not char.isprintable() and char != "\n"] == []
    assert reports.headline(cases.hostile()).isprintable()


def test_events_left_out_are_counted() -> None:
    many = tuple(Event(cases.NOW_S + i, "note", {"note": f"note {i}"}) for i in range(30))
    text = reports.render(replace(cases.leak(), events=many))
    assert "the last 12 of 30 events" in text and "note 29" in text and "note 17" not in text


def test_a_long_command_is_cut_and_the_rest_is_counted() -> None:
    assert "more characters" in reports.render(cases.hostile())


def test_asking_for_a_format_that_is_not_there_says_which_are() -> None:
    with pytest.raises(ValueError, match="'pdf' is not a format of a report here; formats are text, json, html, markdown"):
        reports.render(cases.leak(), "pdf")


def test_wrapping_loses_nothing_and_keeps_a_number_with_its_unit() -> None:
    text = "resident memory grew 1.21 GiB in 64 min and " + "w" * 90
    lines = wrapped(text, 30, first="* ")
    assert "".join(lines).replace("* ", "").replace(" ", "") == text.replace(" ", "")
    assert not any(re.search(r"\d$", line) for line in lines)


def test_wide_characters_count_as_the_terminal_counts_them() -> None:
    assert (cells("名前"), cells("e\u0301"), cells("abc")) == (4, 1, 3)


def test_text_that_cannot_be_encoded_is_shown_escaped() -> None:
    assert shown("a\udcffb\x00\x9b") == r"a\udcffb\x00\x9b"


def test_a_report_without_any_history_of_a_newer_writer_still_renders() -> None:
    # Details an older reader does not know: nothing is lost, nothing raises.
    odd = (Event(cases.NOW_S, "pressure", {"colour": "red"}), Event(cases.NOW_S, "teleport", {"rss": 1048576, "took_s": 2.0}))
    text = reports.render(replace(cases.empty(), events=odd))
    assert "colour red" in text and "rss 1.00 MiB, took_s 2.0 s" in text


def test_a_death_that_nobody_saw_is_not_told_as_a_crash() -> None:
    text = reports.render(cases.killed())
    assert "gone: no goodbye: killed by a signal, or left by os._exit" in text and "crash" not in text


@pytest.mark.parametrize("format", ["text", "markdown"])
def test_a_channel_read_too_rarely_has_neither_rate_nor_state_and_clears_nothing(format: str) -> None:
    whole = cases.leak()
    rare = replace(cases.channel(96 * cases.MIB), reason="malloc memory in use was not read often enough yet")
    channels = dict(whole.statistics.channels) | {"native": rare}
    text = reports.render(replace(whole, statistics=replace(whole.statistics, channels=channels)), format)
    (row,) = [line for line in text.splitlines() if "malloc in use" in line]
    assert "too few readings" in row and "stable" not in row and " 0 " not in row
    assert "native heap (stable)" not in text


@pytest.mark.parametrize("format", ["text", "markdown"])
def test_a_stable_channel_has_no_rate_beside_its_state(format: str) -> None:
    whole = cases.leak()
    channels = dict(whole.statistics.channels) | {"fds": cases.channel(6, rate=3.5 / 60)}
    text = reports.render(replace(whole, statistics=replace(whole.statistics, channels=channels)), format)
    (row,) = [line for line in text.splitlines() if "open descriptors" in line and "not the cause" not in line.lower()]
    assert "stable" in row and "/min" not in row


@pytest.mark.parametrize("time_s", [1e300, -1e300, float("nan"), float("inf"), 253402300800.0])
@pytest.mark.parametrize("format", ["text", "json", "markdown"])
def test_a_moment_outside_the_calendar_is_told_as_unknown(format: str, time_s: float) -> None:
    whole = cases.killed()
    odd = replace(
        whole, process=replace(whole.process, started=time_s, ended=time_s), events=(Event(time_s, "note", {"note": "x"}),)
    )
    assert reports.render(odd, format)


def test_a_kind_of_event_as_long_as_a_line_is_broken_as_any_text_is() -> None:
    odd = replace(cases.empty(), events=(Event(cases.NOW_S, "x" * 300, {"note": "y"}),))
    lines = reports.render(odd, width=60).splitlines()
    assert max(map(cells, lines)) <= 60 and "".join(lines).replace(" ", "").count("x") >= 300


def test_a_line_below_which_the_whole_server_runs_is_no_suspect_before_what_has_a_name() -> None:
    loop = Evidence("native", (Suspect("uvicorn/_compat.py:30 asyncio_run", 37e6, share=1.0),), explains=0.18)
    types = Evidence("types", (Suspect("httpx.AsyncClient", 2e6, 2254, share=0.05),), explains=0.05)
    told = reports.brief(replace(cases.leak(), evidence=(loop, types)))
    assert told.index("2,254 × httpx.AsyncClient") < told.find("asyncio_run") or "asyncio_run" not in told
    alone = reports.brief(replace(cases.leak(), evidence=(loop,)))
    assert "asyncio_run" in alone  # where there is nothing better


def _write_golden_files() -> None:
    for name, make in cases.CASES.items():
        report: Report = make()
        for width in WIDTHS:
            (GOLDEN / f"report-{name}-{width}.txt").write_text(reports.render(report, width=width), "utf-8")
        (GOLDEN / f"report-{name}.md").write_text(reports.render(report, "markdown"), "utf-8")


if __name__ == "__main__":
    _write_golden_files()
