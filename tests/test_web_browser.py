"""`memwatch serve` as people see it: a real browser, a service that really leaks, the keyboard, axe-core."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import browsing
import pytest
import report_cases as cases
from serving import Server, until
from web_runs import dashboard, fleet, leaking, write

sync_api = pytest.importorskip("playwright.sync_api", reason="elsewhere: playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="elsewhere: axe-playwright-python is not installed")
pytestmark = browsing.needs_chromium
PATIENCE_S = 60.0
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with browsing.browser() as started:
        yield started


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fleet(tmp_path_factory.mktemp("web") / "records")


@pytest.fixture(scope="module")
def server(records: dict[str, Path]) -> Iterator[Server]:
    with dashboard(records["leak"].parent) as running:
        yield running


@pytest.fixture
def visit(browser: sync_api.Browser) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens pages; at the end none of them may have complained, or asked another site for anything."""
    wrong: list[str] = []
    contexts = []

    def open_page(server: Server, path: str, **context: object) -> sync_api.Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda asked: asked.url.startswith((server.base, "data:,")) or wrong.append(f"asked for {asked.url}"))
        page.goto(server.base + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def live(page: sync_api.Page) -> None:
    page.wait_for_selector('#live[data-state="live"]', timeout=PATIENCE_S * 1e3)


def paths(records: dict[str, Path]) -> dict[str, str]:
    leak = records["leak"].stem
    return {
        "fleet": "/",
        "process": f"/process/{leak}",
        "hostile": f"/process/{records['hostile'].stem}",
        "form": "/compare",
        "comparison": f"/compare?a={leak}&a_at=first&b={leak}&b_at=last",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["fleet", "process", "hostile", "form", "comparison"])
def test_axe_finds_nothing_and_no_page_is_wider_than_the_screen(
    name: str, width: int, scheme: str, server: Server, records: dict[str, Path], visit: Callable[..., sync_api.Page]
) -> None:
    page = visit(server, paths(records)[name], color_scheme=scheme, viewport={"width": width, "height": 800})
    if name in ("fleet", "process", "hostile"):
        live(page)
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_axe_finds_nothing_where_one_logs_in_or_goes_wrong_or_nothing_is_watched(
    tmp_path: Path, visit: Callable[..., sync_api.Page]
) -> None:
    with dashboard(tmp_path / "records") as server:
        page = visit(server, "/")
        live(page)
        assert axe.Axe().run(page).response["violations"] == []
        assert page.is_visible("text=No process is watched yet.")
        write(tmp_path / "records", cases.leak(), name="first")
        page.wait_for_selector("#running tr[data-row]", timeout=PATIENCE_S * 1e3)
        assert not page.is_visible("text=No process is watched yet.")


def test_one_logs_in_by_keyboard_reads_and_logs_out(tmp_path: Path, browser: sync_api.Browser) -> None:
    write(tmp_path / "records", cases.leak(), name="first")
    with dashboard(tmp_path / "records", token=TOKEN) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{server.base}/compare")
        assert axe.Axe().run(page).response["violations"] == []
        page.keyboard.type("not the token at all")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=That is not the token.")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:text('Compare')")
        assert page.url == f"{server.base}/compare"
        page.click("text=Processes")
        live(page)
        page.click("text=Log out")
        page.wait_for_selector("#token")
        context.close()


def test_the_page_of_a_process_moves_while_it_leaks(tmp_path: Path, visit: Callable[..., sync_api.Page]) -> None:
    with dashboard(tmp_path / "records") as server, leaking(tmp_path / "records"):
        page = visit(server, "/")
        link = page.wait_for_selector("#running td.name a", timeout=PATIENCE_S * 1e3)
        assert link is not None
        cell = "#running td.rss"
        before = until(lambda: "iB" in (text := page.text_content(cell) or "") and text, "its memory is shown")
        until(lambda: page.text_content(cell) != before, "the memory in the table moves")
        page.goto(str(link.evaluate("link => link.href")))
        # A curve needs two readings: the page draws it when they are there.
        page.wait_for_selector("figure.drawn .plot", timeout=PATIENCE_S * 1e3)
        page.focus(".plot")

        def curve() -> tuple[int, float]:
            columns = page.evaluate("memwatch.curves.get('memory').columns")
            return len(columns[0]), columns[1][-1]

        first = curve()
        until(lambda: curve()[0] > first[0], "the curve becomes longer")
        assert curve()[1] > first[1]
        # Who reads on is not disturbed: the focus, a zoom and what is unfolded stay.
        assert page.evaluate("document.activeElement.className") == "plot"
        page.keyboard.press("+")
        page.evaluate("document.querySelector('#process details').open = true")
        zoom = page.evaluate("memwatch.curves.get('memory').chart.scales.x.min")
        second = curve()
        until(lambda: curve()[0] > second[0], "the curve becomes longer while it is zoomed")
        assert page.evaluate("memwatch.curves.get('memory').chart.scales.x.min") == zoom
        assert page.evaluate("document.querySelector('#process details').open") is True
        page.click("#pause")
        assert (page.text_content("#live-text") or "").startswith("paused")
        third = curve()
        page.click("#pause")
        until(lambda: curve()[0] > third[0], "it goes on")


def test_rows_move_and_the_focus_and_the_filter_stay(tmp_path: Path, visit: Callable[..., sync_api.Page]) -> None:
    directory = tmp_path / "records"
    calm = write(directory, cases.lookalike(), pid=1, name="calm")
    write(directory, cases.lookalike(), pid=2, name="other")
    with dashboard(directory) as server:
        page = visit(server, "/")
        live(page)
        page.focus(f'tr[data-row="{calm.stem}"] a')
        leak = write(directory, cases.leak(), pid=3, name="calm too")
        page.wait_for_selector(f'tr[data-row="{leak.stem}"]', timeout=PATIENCE_S * 1e3)
        assert page.eval_on_selector_all("#running tr[data-row]", "rows => rows[0].dataset.row") == leak.stem
        assert page.evaluate("document.activeElement.closest('tr').dataset.row") == calm.stem
        page.fill("#filter", "calm")
        assert page.eval_on_selector_all("tr[data-row]:not([hidden])", "rows => rows.length") == 2
        assert page.text_content("#shown") == "2 of 3"
        leak.unlink()
        page.wait_for_selector(f'tr[data-row="{leak.stem}"]', state="detached", timeout=PATIENCE_S * 1e3)
        assert page.text_content("#shown") == "1 of 2"
        page.click("th.rss a")
        assert "sort=rss" in page.url
        assert page.input_value("#filter") == "calm"


def test_the_keyboard_reaches_everything(server: Server, records: dict[str, Path], visit: Callable[..., sync_api.Page]) -> None:
    for path in paths(records).values():
        page = visit(server, path)
        page.wait_for_timeout(300)
        wanted = page.evaluate(
            """() => {
              const wanted = [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
                .filter((one) => one.checkVisibility() && !one.disabled && one.tabIndex >= 0);
              wanted.forEach((one, index) => { one.dataset.wanted = index; });
              return wanted.length;
            }"""
        )
        reached = set()
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            at = page.evaluate("document.activeElement.dataset.wanted ?? null")
            reached.add(at)
        assert reached - {None} == {str(number) for number in range(wanted)}, path


def test_times_are_in_the_zone_of_the_reader_with_utc_beside(
    server: Server, records: dict[str, Path], visit: Callable[..., sync_api.Page]
) -> None:
    page = visit(server, paths(records)["comparison"], timezone_id="Asia/Tokyo")
    told = page.text_content("#moments-told time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(\d\d:\d\d:\d\d UTC\)", told or ""), told


def test_pages_print_what_they_show(server: Server, records: dict[str, Path], visit: Callable[..., sync_api.Page]) -> None:
    for path in paths(records).values():
        page = visit(server, path)
        page.emulate_media(media="print")
        assert page.pdf()[:5] == b"%PDF-"
        assert not page.is_visible("#pause, form.compare, #filter")
        assert page.is_visible("h1")


def test_hostile_names_run_nothing(tmp_path: Path, visit: Callable[..., sync_api.Page]) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    path = write(tmp_path / "records", cases.leak(), name=evil, labels={evil: evil, "version": "y" * 100_000}, pid=7)
    with dashboard(tmp_path / "records") as server:
        for place in ("/", f"/process/{path.stem}", f"/compare?a={path.stem}@first&b=7"):
            page = visit(server, place)
            page.on("dialog", lambda dialog: pytest.fail("a script of a process has run"))
            page.wait_for_timeout(300)
            assert page.query_selector("main img, main script") is None
            assert evil in (page.text_content("main") or "")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
