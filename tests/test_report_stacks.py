"""Flame graphs: speedscope and collapsed stacks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Census, Evidence, Report, Suspect

STACK = ("app/web.py:12 handle", "app/web.py:31 Router.dispatch", "app/main.py:112 login", "app/sessions.py:48 SessionStore.add")
ALIVE = (
    Suspect("app/sessions.py:48 SessionStore.add", 9e8, 9, None, tuple(reversed(STACK[:-1]))),
    Suspect("app/boot.py:3 load", 5e7, 9, None, ("app/main.py:1 <module>",)),
)


def with_census() -> Report:
    newest = Census(cases.NOW_S, (Evidence("types", (Suspect("dict", 1.0, 1),)), Evidence("sites", ALIVE)))
    older = Census(cases.NOW_S - 60, (Evidence("sites", ALIVE[:1]),))
    return replace(cases.leak(), censuses=(older, newest, Census(cases.NOW_S + 9, (Evidence("types"),))))


def read(report: Report) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(reports.render(report, "speedscope"))
    check(whole)
    return whole


def check(whole: dict[str, Any]) -> None:
    """What https://www.speedscope.app/file-format-schema.json asks of a file with sampled profiles."""
    assert set(whole) <= {"$schema", "name", "exporter", "activeProfileIndex", "shared", "profiles"}
    assert whole["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert isinstance(whole["name"], str) and isinstance(whole["exporter"], str)
    assert 0 <= whole["activeProfileIndex"] < len(whole["profiles"])
    frames = whole["shared"]["frames"]
    for frame in frames:
        assert set(frame) <= {"name", "file", "line", "col"}
        assert isinstance(frame["name"], str) and isinstance(frame.get("file", ""), str) and isinstance(frame.get("line", 0), int)
    for profile in whole["profiles"]:
        assert set(profile) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert (profile["type"], profile["unit"], profile["startValue"]) == ("sampled", "bytes", 0)
        assert len(profile["samples"]) == len(profile["weights"])
        assert profile["endValue"] == sum(profile["weights"])
        assert all(0 <= index < len(frames) for stack in profile["samples"] for index in stack)


def names(whole: dict[str, Any], profile: int) -> list[list[str]]:
    frames = whole["shared"]["frames"]
    return [[frames[index]["name"] for index in stack] for stack in whole["profiles"][profile]["samples"]]


def test_speedscope_has_a_profile_of_the_growth_with_the_outermost_frame_first() -> None:
    whole = read(cases.leak())
    (profile,) = whole["profiles"]
    assert profile["name"] == "growth of api-worker[4242]"
    assert names(whole, 0) == [["handle", "Router.dispatch", "login", "SessionStore.add"], ["record"]]
    assert profile["weights"] == [148 * 2**20, int(3.6 * 2**20)]
    assert {"name": "SessionStore.add", "file": "app/sessions.py", "line": 48} in whole["shared"]["frames"]


def test_speedscope_has_a_profile_of_what_is_alive_where_a_census_knows_it() -> None:
    whole = read(with_census())
    assert [profile["name"] for profile in whole["profiles"]] == [
        "growth of api-worker[4242]",
        "alive in api-worker[4242], 2026-11-22 08:00:00 UTC",
    ]
    assert names(whole, 1) == [["handle", "Router.dispatch", "login", "SessionStore.add"], ["<module>", "load"]]
    assert len({json.dumps(frame) for frame in whole["shared"]["frames"]}) == len(whole["shared"]["frames"])


def test_growth_in_c_is_drawn_by_what_ran() -> None:
    whole = read(cases.native())
    assert whole["profiles"][0]["name"] == "growth in C while these lines ran of thumbs[31]"
    assert names(whole, 0)[0] == ["f", "run", "Scaler.fit"]


def test_collapsed_stacks_are_the_growth_one_a_line() -> None:
    lines = reports.render(with_census(), "collapsed").splitlines()
    assert lines[0] == (
        "handle (app/web.py:12);Router.dispatch (app/web.py:31);login (app/main.py:112);"
        "SessionStore.add (app/sessions.py:48) 155189248"
    )
    assert len(lines) == 2 and all(re.fullmatch(r"\S.* \d+", line) for line in lines)


def test_collapsed_stacks_are_what_is_alive_where_nothing_grew_and_equal_ones_are_one_line() -> None:
    report = replace(with_census(), evidence=(), censuses=(Census(1.0, (Evidence("sites", ALIVE * 2),)),))
    assert [line.rsplit(" ", 1)[1] for line in reports.render(report, "collapsed").splitlines()] == ["1800000000", "100000000"]


def test_what_shrank_or_has_no_bytes_is_not_drawn() -> None:
    suspects = (Suspect("a.py:1 f", -5.0), Suspect("a.py:2 g"), Suspect("a.py:3 h", 0.5), Suspect("a.py:4 i", 7.0))
    assert reports.render(replace(cases.leak(), evidence=(Evidence("sites", suspects),)), "collapsed") == "i (a.py:4) 7\n"


@pytest.mark.parametrize("format", ["speedscope", "collapsed"])
def test_without_stacks_there_is_an_error_that_says_why(format: str) -> None:
    with pytest.raises(reports.NoStacks, match=r"no allocation stacks of api-worker\[4242\] to draw: they are taken when"):
        reports.render(replace(cases.leak(), evidence=()), format)
    with pytest.raises(ValueError, match="to draw: the sampler was not built; --format text"):
        reports.render(replace(cases.leak(), evidence=(Evidence("sites", note="the sampler was not built"),)), format)


def test_no_label_can_make_another_frame_or_line() -> None:
    odd = Suspect("a;b.py:1 f 99\ng;h 5", 7.0, 1, 1.0, ("no place\x1b", "C:\\app\\x.py:3 k", ":5 nothing"))
    report = replace(cases.leak(), evidence=(Evidence("sites", (odd,)),))
    assert reports.render(report, "collapsed") == r":5 nothing;k (C:\app\x.py:3);no place\x1b;f 99\ng,h 5 (a,b.py:1) 7" + "\n"
    assert [frame["name"] for frame in read(report)["shared"]["frames"]] == [":5 nothing", "k", "no place\\x1b", "f 99\\ng;h 5"]
