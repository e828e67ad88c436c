"""The report as a page, in a real browser: that it draws, answers, and asks nobody for anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browsing
import pytest
import report_cases as cases

from memwatch import report as reports
from memwatch.model import Report
from memwatch.report.curve import curves
from memwatch.report.html import page_data
from memwatch.units import format_size

pytest_plugins = ["pytester"]
pytestmark = browsing.needs_chromium
CASES = {name: make for name, make in cases.CASES.items() if name != "empty"} | {"hostile": cases.hostile}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing.browser() as started:
        yield started


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pages")

    def write(name: str, report: Report) -> str:
        place: Path = folder / f"{name}.html"
        if not place.exists():
            place.write_text(reports.render(report, "html"), encoding="utf-8")
        return place.as_uri()

    return write


@pytest.fixture
def leak(browser: Any, written: Any) -> Iterator[browsing.Seen]:
    with browsing.opened(browser, written("leak", cases.a_day(cases.leak()))) as seen:
        yield seen
        assert seen.complaints == []


def scale(page: Any) -> tuple[float, float]:
    found = page.evaluate("(({min, max}) => [min, max])(memwatch.curves.get('memory').chart.scales.x)")
    return found[0], found[1]


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("name", [*CASES, "empty"])
def test_a_page_draws_without_a_complaint_or_a_request_and_axe_finds_nothing(
    browser: Any, written: Any, name: str, look: str
) -> None:
    report = cases.empty() if name == "empty" else cases.a_day(CASES[name]())
    url = written(name, report)
    with browsing.opened(browser, url, color_scheme=look) as seen:
        assert seen.page.locator("figure.drawn canvas").count() == (0 if name == "empty" else 2)
        for fold in seen.page.locator("details > summary").all():
            fold.evaluate("summary => { summary.parentElement.open = true; }")
        assert browsing.axe(seen.page) == []
        assert seen.requests == [url]
        assert seen.complaints == []


def test_the_curves_have_the_readings(leak: browsing.Seen) -> None:
    report = cases.a_day(cases.leak())
    drawn = leak.page.evaluate(
        "(({columns, data}) => [columns, data.series.map(one => one.channel)])(memwatch.curves.get('memory'))"
    )
    (times, *values), names = drawn
    assert len(times) == len(report.history)
    for place in (0, 1, 4321, -1):
        sample = report.history[place]
        assert abs(times[place] - sample.time_s) <= 0.06
        for name, column in zip(names, values, strict=True):
            assert abs(column[place] - sample.values[name]) <= cases.GIB * 1.25 / 20_000
    pixels = leak.page.evaluate(
        """(() => {
            const canvas = document.querySelector('[data-curve=memory] canvas');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let blue = 0;
            for (let at = 0; at < data.length; at += 4) {
                blue += data[at] < 30 && data[at + 1] > 90 && data[at + 2] > 150 && data[at + 3] > 200;
            }
            return blue;
        })()"""
    )
    assert pixels > 500  # the line of resident memory


def test_sizes_are_written_as_everywhere_else(leak: browsing.Seen) -> None:
    sizes = [0, 1, 1023, 1024, 9999, 10_235, 102_399, 1_048_063, 1_048_064, 1.21 * cases.GIB, 5e15, -3 * cases.MIB]
    assert leak.page.evaluate("sizes => sizes.map(memwatch.size)", sizes) == [format_size(size) for size in sizes]


def test_dragging_over_a_curve_zooms_and_a_button_shows_all_again(leak: browsing.Seen) -> None:
    page = leak.page
    before = scale(page)
    button = page.locator("[data-curve=memory] .tools > button")
    assert button.is_disabled()
    page.locator("[data-curve=memory]").scroll_into_view_if_needed()
    box = page.locator("[data-curve=memory] .u-over").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.25 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.50 * box["width"], middle, steps=5)
    page.mouse.up()
    after = scale(page)
    assert after[1] - after[0] == pytest.approx((before[1] - before[0]) / 4, rel=0.05)
    assert button.is_enabled()
    button.click()
    assert scale(page) == before
    page.locator("[data-curve=memory] .plot").focus()
    page.keyboard.press("+")
    page.mouse.dblclick(box["x"] + 0.5 * box["width"], middle)
    assert scale(page) == before


def test_keys_move_zoom_and_reset_a_curve(leak: browsing.Seen) -> None:
    page = leak.page
    page.locator("[data-curve=memory] .plot").focus()
    readout = page.locator("[data-curve=memory] .readout")
    page.keyboard.press("End")
    told = readout.inner_text()
    assert "2026-11-22 08:00:00 UTC" in told and "resident memory 1.2" in told and "Python heap" in told and "leaking" in told
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text() != told
    whole = scale(page)
    page.keyboard.press("+")
    page.wait_for_function(
        "width => { const {min, max} = memwatch.curves.get('memory').chart.scales.x; return max - min < 0.6 * width; }",
        arg=whole[1] - whole[0],
    )
    near = scale(page)
    page.keyboard.press("Shift+ArrowLeft")
    assert scale(page)[0] < near[0]
    page.keyboard.press("0")
    assert scale(page) == whole
    page.keyboard.press("Home")
    assert "2026-11-21 08:00:10 UTC" in readout.inner_text()


def test_a_line_can_be_hidden_and_shown_again(leak: browsing.Seen) -> None:
    button = leak.page.get_by_role("button", name="Python heap")
    shown = "memwatch.curves.get('memory').chart.series[2].show"
    assert button.get_attribute("aria-pressed") == "true" and leak.page.evaluate(shown)
    button.click()
    assert button.get_attribute("aria-pressed") == "false" and not leak.page.evaluate(shown)
    button.click()
    assert leak.page.evaluate(shown)


def test_a_flame_graph_zooms_finds_and_goes_back(leak: browsing.Seen) -> None:
    page = leak.page
    flame = page.locator(".flame")
    frames = flame.locator(".frame")
    whole = frames.count()
    widest = flame.locator(".frame", has_text="SessionStore.add").first
    before = widest.bounding_box()["width"]
    assert 0.8 < before / flame.locator(".frames").bounding_box()["width"] <= 1.0
    widest.click()
    assert frames.count() < whole
    assert widest.bounding_box()["width"] > before
    assert "app/sessions.py:48" in flame.locator(".readout").inner_text()
    page.keyboard.press("Escape")
    assert frames.count() == whole
    page.mouse.move(0, 0)  # what is under the mouse is told, too
    flame.get_by_role("searchbox").fill("audit")
    assert flame.locator(".hit").count() == 1
    assert "3.60 MiB in what matches" in flame.locator(".readout").inner_text()


def test_keys_walk_through_a_flame_graph(leak: browsing.Seen) -> None:
    page = leak.page
    page.locator(".flame .frame[tabindex='0']").focus()
    focused = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(focused).startswith("all ")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused).startswith("dispatch") or "web.py" in page.evaluate(focused)
    deep = page.evaluate(focused)
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) != deep
    page.keyboard.press("ArrowRight")
    assert "audit" in page.evaluate(focused)
    page.keyboard.press("Enter")
    assert page.evaluate(focused) is not None


def test_the_keyboard_reaches_everything_that_can_be_used(leak: browsing.Seen) -> None:
    page = leak.page
    wanted = page.evaluate(
        """[...document.querySelectorAll('a[href], button:not(:disabled):not([tabindex="-1"]), input, summary, [tabindex="0"]')]
            .filter(one => one.checkVisibility()).length"""
    )
    page.evaluate("document.body.focus()")
    reached = page.evaluate("window.reached = new Set(); 0")
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        reached = page.evaluate("(reached.add(document.activeElement), [...reached].filter(one => one !== document.body).length)")
    assert reached == wanted


def test_times_are_in_the_zone_of_the_reader_with_utc_beside(browser: Any, written: Any) -> None:
    with browsing.opened(browser, written("leak", cases.a_day(cases.leak())), timezone_id="Asia/Kolkata") as seen:
        assert "2026-11-22 13:30:00 (08:00:00 UTC)" in seen.page.locator("#verdict").inner_text()
        seen.page.locator("[data-curve=memory] .plot").focus()
        seen.page.keyboard.press("End")
        assert "2026-11-22 13:30:00 (08:00:00 UTC)" in seen.page.locator("[data-curve=memory] .readout").inner_text()


def test_a_phone_needs_no_scrolling_sideways(browser: Any, written: Any) -> None:
    for name in ("leak", "hostile"):
        url = written(name, cases.a_day(CASES[name]()))
        with browsing.opened(browser, url, viewport=browsing.PHONE, device_scale_factor=2) as seen:
            assert seen.page.evaluate("document.scrollingElement.scrollWidth") <= browsing.PHONE["width"]


def test_without_a_script_and_on_paper_the_curves_are_pictures(browser: Any, written: Any, tmp_path: Path) -> None:
    url = written("leak", cases.a_day(cases.leak()))
    with browsing.opened(browser, url, java_script_enabled=False) as seen:
        assert seen.page.locator("[data-curve=memory] .still svg").is_visible()
        assert "app.sessions.Session" in seen.page.inner_text("body")
    with browsing.opened(browser, url, color_scheme="dark") as seen:
        assert not seen.page.locator("[data-curve=memory] .still").is_visible()
        seen.page.emulate_media(media="print", color_scheme="dark")
        assert seen.page.locator("[data-curve=memory] .still svg").is_visible()
        assert not seen.page.locator("[data-curve=memory] .live").is_visible()
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        paper = seen.page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
        assert paper.startswith(b"%PDF") and seen.page.evaluate(
            "[...document.querySelectorAll('details:not(.long)')].every(one => one.open)"
        )


def test_nothing_that_a_process_says_of_itself_runs(browser: Any, written: Any) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
    report = cases.a_day(cases.leak())
    evidence = tuple(
        replace(item, suspects=tuple(replace(one, label=f"{evil}:1 {evil}", trail=(evil, f"{evil}:2 f")) for one in item.suspects))
        for item in report.evidence
    )
    report = replace(
        report, process=replace(report.process, name=evil), evidence=evidence, verdict=replace(report.verdict, reason=evil)
    )
    url = written("evil", report)
    with browsing.opened(browser, url) as seen:
        assert seen.page.locator("img").count() == 0
        assert "<script>alert(1)" in seen.page.locator("h1").inner_text()
        frame = seen.page.locator(".flame .frame").nth(1)
        frame.click()
        assert "<script>" in seen.page.locator(".flame .readout").inner_text()
        assert (seen.requests, seen.complaints) == ([url], [])


def test_shown_again_with_other_data_a_curve_moves_on_and_keeps_its_zoom(leak: browsing.Seen) -> None:
    page = leak.page
    page.locator("[data-curve=memory] .plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("+")
    zoomed = scale(page)
    report = cases.a_day(cases.leak())
    later = replace(report.history[-1], time_s=report.history[-1].time_s + 10)
    moved = replace(report, history=(*report.history, later))
    page.evaluate("data => memwatch.show(data)", json.loads(json.dumps(page_data(moved, curves(moved)))))
    assert page.evaluate("memwatch.curves.get('memory').columns[0].length") == len(report.history) + 1
    assert scale(page) == zoomed
    assert page.locator("[data-curve=memory] canvas").count() == 1


@pytest.mark.parametrize("look", ["light", "dark"])
def test_the_page_of_a_test_run_looks_alike_and_is_clean(browser: Any, pytester: pytest.Pytester, look: str) -> None:
    pytester.makepyfile(
        """
        KEPT = []
        def test_leaks():
            KEPT.append(bytearray(3_000_000))
        def test_warms_up():
            if len(KEPT) < 9: KEPT.extend([bytearray(2_000_000)] * 9)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--memwatch", "--memwatch-html=page.html")
    url = (pytester.path / "page.html").as_uri()
    with browsing.opened(browser, url, color_scheme=look) as seen:
        assert "test_leaks" in seen.page.locator("#findings").inner_text()
        assert seen.page.locator(".long.leaking").first.bounding_box()["width"] > 100
        assert browsing.axe(seen.page) == []
        assert (seen.requests, seen.complaints) == ([url], [])
