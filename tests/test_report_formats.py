"""Reports for programs and for issues: JSON and Markdown."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Report

GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize("name", cases.CASES)
def test_json_is_the_report_of_schema_1(name: str) -> None:
    report = cases.CASES[name]()
    read = json.loads(reports.render(report, "json"))
    assert read == report.to_dict()
    assert Report.from_dict(read) == report


def test_json_holds_no_infinity_and_no_nan() -> None:
    report = cases.leak()
    report = replace(report, verdict=replace(report.verdict, exhausted_in_s=float("inf"), rate_low=float("nan")))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(reports.render(report, "json"), parse_constant=refuse)
    assert read["verdict"]["exhausted_in_s"] is None and read["verdict"]["rate_low"] is None


def test_a_verdict_change_in_json_has_its_state_beside_its_time() -> None:
    events = json.loads(reports.render(cases.leak(), "json"))["events"]
    assert [event["state"] for event in events if event["what"] == "verdict"] == ["stable", "growing", "leaking"]


@pytest.mark.parametrize("name", cases.CASES)
def test_markdown_reads_as_its_golden_file(name: str) -> None:
    assert reports.render(cases.CASES[name](), "markdown") == (GOLDEN / f"report-{name}.md").read_text("utf-8")


def test_markdown_lets_nothing_from_the_process_out_of_its_code_spans() -> None:
    text = reports.render(cases.hostile(), "markdown")
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert "@" not in outside and "<script" not in outside and "evil" not in outside


def test_every_row_of_a_markdown_table_has_as_many_cells() -> None:
    for block in reports.render(cases.hostile(), "markdown").split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("| ")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, rows
