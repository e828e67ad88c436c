"""A real browser for tests: Debian's Chromium (or Chrome), driven by playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DESK, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="elsewhere: needs Chromium")


@dataclass
class Seen:
    """A page, and what it did that nobody asked for."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Console errors, uncaught exceptions, dialogs."""


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Seen]:
    """A page in a context of its own, loaded.

    Args:
        options: of the context (`viewport`, `color_scheme`, `timezone_id`, `java_script_enabled`, …).
    """
    context = browser.new_context(**({"viewport": DESK, "locale": "en-GB"} | options))
    try:
        page = context.new_page()
        seen = Seen(page)
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: message.type in ("error", "warning") and seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (seen.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(url, wait_until="load")
        yield seen
    finally:
        context.close()


def axe(page: Any) -> list[str]:
    """What axe-core finds wrong with a page, one line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']}: {node['html'][:200]}" for one in found for node in one["nodes"]]
