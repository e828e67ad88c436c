"""The report as a page, as a picture and in a notebook.  What a browser does with it is in test_report_browser.py."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Event, Evidence, Sample, Suspect
from memwatch.report.curve import memory_curve, resource_curve
from memwatch.report.drawing import curve_data
from memwatch.report.svg import picture

GIB = cases.GIB


class Page(HTMLParser):
    """Elements of a page, and the text of some of them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    @property
    def visible(self) -> str:
        hidden = ("script", "style")
        return " ".join(text for tag, texts in self.texts.items() if tag not in hidden for text in texts)


def page_of(report: object) -> tuple[str, Page]:
    text = reports.render(report, "html")  # type: ignore[arg-type]
    return text, Page(text)


@pytest.mark.parametrize("name", [*cases.CASES, "hostile"])
def test_a_page_tells_whatever_the_text_report_tells(name: str) -> None:
    report = (cases.CASES | {"hostile": cases.hostile})[name]()
    _, page = page_of(report)

    def words(text: str) -> set[str]:
        return set(re.findall(r"\d[\d,]*\.?\d*(?![\d,])|[A-Za-z]{4,}", text.replace(", ", " ")))

    text = reports.render(report, width=4000).rpartition("\nnext: ")[0]
    told = words(text) - {"rate", "state", "more", "characters", "read", "before", "note"}
    seen = words(page.visible)
    known = {word.lower() for word in seen}
    # What is long is folded, and begins where it was cut.
    assert {word for word in told if len(word) < 100 and word.lower() not in known} == set()


@pytest.mark.parametrize("name", [*cases.CASES, "hostile"])
def test_a_page_allows_its_own_style_and_script_and_nothing_else(name: str) -> None:
    report = (cases.CASES | {"hostile": cases.hostile})[name]()
    text, page = page_of(cases.a_day(report) if report.statistics.channels else report)
    policy = next(
        attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy and "http" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        sources = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        hashes = {"'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'" for source in sources}
        assert len(sources) == 1 and set(policy.partition(directive)[2].partition(";")[0].split()) == hashes
    for tag, attributes in page.elements:
        assert "style" not in attributes and not any(key.startswith("on") for key in attributes), (tag, attributes)
        assert tag not in ("link", "img", "iframe", "form", "object", "base"), tag
        assert "src" not in attributes


def test_what_a_process_says_of_itself_is_shown_as_text() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e"
    report = cases.a_day(cases.leak())
    report = replace(
        report,
        process=replace(report.process, name=evil, command=(evil,), labels={evil: evil}, settings={evil: evil}),
        verdict=replace(report.verdict, reason=evil),
        events=(*report.events, Event(cases.NOW_S - 5, "note", {"note": evil}), Event(cases.NOW_S - 4, evil, {evil: evil})),
        evidence=tuple(
            Evidence(name, (Suspect(evil, 5.0, 1, 0.5, (evil, evil)),), 0.5, evil)
            for name in ("sites", "types", "holders", "resources", "native", "caches", evil)
        ),
        caches=({"name": evil, "bytes": 3, "removals": {evil: 4}},),
        routes=({"route": evil, "requests": 3},),
        routes_note=evil,
    )
    plain = Page(reports.render(cases.a_day(cases.leak()), "html"))
    for text in (reports.render(report, "html"), report._repr_html_()):
        page = Page(text)
        assert [tag for tag, _ in page.elements if tag in ("img", "b-evil")] == []
        assert "\x1b" not in text and "\u202e" not in text
    page = Page(reports.render(report, "html"))
    assert sum(tag == "script" for tag, _ in page.elements) == sum(tag == "script" for tag, _ in plain.elements)
    embedded = re.search(r'id="memwatch-data">(.*?)</script>', reports.render(report, "html"), re.DOTALL)
    assert embedded is not None and not set("<>&") & set(embedded[1])
    assert "<script>alert(1)</script>" in page.visible and "\\x1b[2J\\u202e" in page.visible


def test_a_label_of_100_000_characters_is_there_and_folded() -> None:
    long = "x" * 100_000
    report = replace(cases.leak(), evidence=(Evidence("types", (Suspect(long, 5.0, 1, 0.9, ()),), 0.9),))
    _, page = page_of(report)
    longest = max((text for texts in page.texts.values() for text in texts), key=len)
    assert len(longest) > 99_000
    assert any("more characters" in text for text in page.texts["small"])
    assert all(len(text) <= 400 for tag in ("code", "summary", "p", "h1") for text in page.texts.get(tag, ()))


def test_a_day_at_10_s_is_less_than_400_kb() -> None:
    text = reports.render(cases.a_day(cases.leak()), "html")
    assert len(text.encode()) < 400_000
    data = json.loads(re.search(r'id="memwatch-data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert len(positions(data["curves"]["memory"]["times"])) == 8640


def positions(steps: object) -> list[int]:
    each = [step for one in steps for step in ([one[0]] * one[1] if isinstance(one, list) else [one])]  # type: ignore[attr-defined]
    return list(itertools.accumulate(each))


def unpacked(curve: dict[str, object], channel: str) -> list[tuple[float, float]]:
    """A series as the page's script reads it."""
    times = [curve["start"] + at * curve["tick_s"] for at in positions(curve["times"])]  # type: ignore[operator]
    series = next(one for one in curve["series"] if one["channel"] == channel)  # type: ignore[attr-defined]
    values = [value * series["quantum"] for value in positions(series["values"])]
    places = positions(series["places"]) if "places" in series else range(len(values))
    return [(times[place], value) for place, value in zip(places, values, strict=True)]


def test_packed_curves_are_within_a_pixel_of_what_was_read() -> None:
    report = cases.a_day(cases.leak())
    rarely = [
        sample if place % 7 == 3 else replace(sample, values={name: v for name, v in sample.values.items() if name != "heap"})
        for place, sample in enumerate(report.history)
    ]
    report = replace(report, history=tuple(rarely))
    curve = memory_curve(report)
    assert curve is not None
    packed = curve_data(curve)
    for channel in ("rss", "heap", "native"):
        read = [(sample.time_s, sample.values[channel]) for sample in report.history if channel in sample.values]
        drawn = unpacked(packed, channel)
        assert len(drawn) == len(read)
        assert max(abs(a[0] - b[0]) for a, b in zip(drawn, read, strict=True)) <= 0.06
        assert max(abs(a[1] - b[1]) for a, b in zip(drawn, read, strict=True)) <= 1.22 * GIB / 20_000


def test_a_time_nobody_watched_is_a_gap_and_thinned_history_is_none() -> None:
    report = cases.a_day(cases.leak())
    history = report.history
    gone = replace(report, history=history[:3000] + history[4000:])
    curve = memory_curve(gone)
    assert curve is not None and len(curve.gaps) == 1
    assert curve.times[curve.gaps[0] - 1] == history[2999].time_s and curve.times[curve.gaps[0] + 1] == history[4000].time_s
    coarse = [replace(sample, time_s=sample.time_s - 86_400) for sample in history[::30]]
    curve = memory_curve(replace(report, history=(*coarse, *history)))
    assert curve is not None and curve.gaps == ()


def test_the_picture_shows_the_fitted_line_through_the_readings_and_where_it_leads() -> None:
    curve = memory_curve(cases.a_day(cases.leak()))
    assert curve is not None and curve.trend is not None and curve.projection is not None
    heap = next(one for one in curve.series if one.channel == "heap")
    last = next(value for value in reversed(heap.values) if value is not None)
    assert abs(curve.trend.at(curve.trend.until_s) - last) < 0.02 * last
    assert curve.trend.at(curve.trend.until_s, curve.trend.rate_low) < curve.trend.at(curve.trend.until_s, curve.trend.rate_high)
    assert curve.projection.until_s == curve.times[-1] + 30_000
    assert curve.until_s == curve.projection.until_s  # all of it is shown: it is nearer than half of what was measured
    assert curve.draws_limit
    ended = cases.a_day(cases.killed())
    curve = memory_curve(ended)
    assert curve is not None and curve.projection is None  # who is dead runs out of nothing


def test_the_ground_of_a_curve_is_the_verdict_over_time() -> None:
    curve = memory_curve(cases.a_day(cases.leak()))
    assert curve is not None
    states = [span.state for span in curve.spans]
    assert states[:4] == ["warming-up", "stable", "growing", "leaking"]
    assert all(before != after for before, after in itertools.pairwise(states))
    again = Event(cases.NOW_S - 20_000, "verdict", {"state": "leaking", "reason": "told again, with other figures"})
    report = cases.a_day(cases.leak())
    told_again = memory_curve(replace(report, events=tuple(sorted((*report.events, again), key=lambda event: event.time_s))))
    assert told_again is not None and told_again.spans == curve.spans
    assert curve.spans[0].from_s == curve.times[0] and curve.spans[-1].until_s == curve.times[-1]
    assert {"pressure", "relief"} <= {mark.kind for mark in curve.marks}


def test_a_watch_that_was_started_again_is_marked_where_it_was() -> None:
    report = cases.a_day(cases.leak())
    history = [
        replace(one, uptime_s=one.uptime_s - (40_000.0 if place >= 4000 else 0.0)) for place, one in enumerate(report.history)
    ]
    curve = memory_curve(replace(report, history=tuple(history)))
    assert curve is not None
    assert [mark.time_s for mark in curve.marks if mark.text == "the watch was started again"] == [report.history[4000].time_s]
    plain = memory_curve(report)
    assert plain is not None and "the watch was started again" not in {mark.text for mark in plain.marks}


def test_a_limit_far_above_is_told_and_not_drawn() -> None:
    report = cases.a_day(cases.lookalike())
    report = replace(
        report,
        history=tuple(Sample(s.time_s, s.uptime_s, s.values | {"rss": 50e6}) for s in report.history),
        statistics=replace(report.statistics, channels=report.statistics.channels | {"limit": cases.channel(64 * GIB)}),
    )
    curve = memory_curve(report)
    assert curve is not None and not curve.draws_limit
    assert "↑ limit 64.0 GiB" in reports.render(report, "svg")


@pytest.mark.parametrize("name", ["leak", "look-alike", "killed", "tasks", "native"])
def test_an_svg_is_well_formed_and_says_its_sentence(name: str) -> None:
    report = cases.a_day(cases.CASES[name]())
    text = reports.render(report, "svg")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    said = " ".join(element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text"))
    assert report.process.name in said and str(report.process.pid) in said
    assert len(text) < 120_000
    for element in root.iter("{http://www.w3.org/2000/svg}path"):
        assert "nan" not in element.attrib["d"] and "inf" not in element.attrib["d"]


def test_the_picture_of_a_leak_of_tasks_is_of_tasks() -> None:
    report = cases.a_day(cases.tasks())
    report = replace(report, history=tuple(replace(s, values=s.values | {"tasks": float(i)}) for i, s in enumerate(report.history)))
    assert "asyncio tasks" in reports.render(report, "svg")
    curve = resource_curve(report)
    assert curve is not None and curve.trend is not None and curve.trend.channel == "tasks"


def test_a_picture_of_nothing_is_an_error_that_says_so() -> None:
    with pytest.raises(reports.NothingToDraw, match="fewer than two readings"):
        reports.render(cases.leak(), "svg")


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [1e300, 1e300], [float(2**62), 1.0], [1e-9, 2e-9]])
def test_odd_readings_are_drawn_all_the_same(values: list[float]) -> None:
    history = tuple(Sample(1000.0 + index, float(index), {"rss": value}) for index, value in enumerate(values))
    report = replace(cases.leak(), history=history)
    ElementTree.fromstring(reports.render(report, "svg"))
    text, _ = page_of(report)
    assert '"rss"' in text


def test_a_clock_that_was_set_back_does_not_turn_a_curve_back() -> None:
    history = tuple(Sample(time_s, 0.0, {"rss": 1e6 + time_s}) for time_s in (10.0, 20.0, 30.0, 25.0, 30.0, 40.0))
    curve = memory_curve(replace(cases.leak(), history=history))
    assert curve is not None and curve.times == (10.0, 20.0, 30.0, 40.0)


def test_odd_times_are_drawn_all_the_same() -> None:
    for times in ([5.0, 5.0, 4.0], [0.0, 1e-6], [-62e9, 1.0], [1e12, 3e15]):
        history = tuple(Sample(time_s, 0.0, {"rss": 1e6 + index}) for index, time_s in enumerate(times))
        report = replace(cases.leak(), history=history)
        page_of(report)
        if times[0] != 5.0:
            ElementTree.fromstring(reports.render(report, "svg"))


def test_a_notebook_shows_sentence_curve_and_evidence_without_a_script() -> None:
    text = cases.a_day(cases.leak())._repr_html_()
    page = Page(text)
    assert "svg" in {tag for tag, _ in page.elements} and "script" not in {tag for tag, _ in page.elements}
    assert "Python heap" in page.visible and "app.sessions.Session" in page.visible and "_STORE" in page.visible
    rules = re.findall(r"^\S.*?(?= \{)", page.texts["style"][0], re.MULTILINE)
    assert rules and all(rule.startswith(".memwatch-report") for rule in rules)


def test_a_headline_of_two_lines_is_one_sentence_to_the_eye() -> None:
    curve = memory_curve(replace(cases.leak(), history=tuple(Sample(float(n), float(n), {"rss": 1e6 * n}) for n in range(1, 9))))
    assert curve is not None
    drawn = picture(curve, ["out of memory in", "about 13 min"])
    assert [line for line in drawn.splitlines() if ">about 13 min<" in line and 'font-weight="600"' in line]
