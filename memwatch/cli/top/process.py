"""The screen of one process, and the keys that ask it for something."""

from __future__ import annotations

import contextlib
import contextvars
import json
import socket
import threading
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from memwatch import live
from memwatch.cli.gc import told
from memwatch.cli.top import near
from memwatch.cli.top.reading import OneReader
from memwatch.fleet import Found
from memwatch.model import Freed
from memwatch.record import RecordError
from memwatch.report import shown
from memwatch.report.layout import wrapped

CURVE_LEAST, CURVE_MOST = 3, 16
"""Rows of the curve."""
OTHER_ROWS = 17
"""What the rest of the screen needs before the curve gets more than its least: the headline, its axis, a page, status and keys."""

SAID_MOST = 3
"""Lines of a status."""


def asked(pid: int, what: str) -> tuple[bool, str]:
    """Ask a process for `evidence` or `gc`; whether it did that, and what is to be said.

    Cost: it waits for the process, up to a minute.
    """
    try:
        code, body = live.ask(pid, "POST", f"/{what}")
    except live.NoAnswer as error:
        return False, str(error)
    if code != 200:
        return False, live.error_of(body)
    if what == "evidence":
        return True, "it has looked at itself: page 1 tells what it found"
    try:
        return True, told(Freed.from_dict(json.loads(body)))
    except (ValueError, LookupError, TypeError, AttributeError):
        return True, "it has collected, and does not say what that freed"


class PlainText(Static):
    """Text as it is: what a record says is never markup."""

    def __init__(self, text: str = "", *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(Text(text), id=id, classes=classes, markup=False)

    def say(self, text: str) -> None:
        """Show a plain text."""
        self.update(Text(text))

    def say_wrapped(self, text: str, width: int) -> None:
        """Show a plain text in a few lines of *width* cells; where it is cut, that is said."""
        lines = wrapped(text, width)
        if len(lines) > SAID_MOST:
            lines = [*lines[: SAID_MOST - 1], lines[SAID_MOST - 1][: width - 2] + " …"]
        self.say("\n".join(lines))


class Page(PlainText):
    """The name of a page; a click opens it."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(f" {number} {name} ", classes="page")
        self.page = name

    def on_click(self, event: events.Click) -> None:
        event.stop()
        assert isinstance(self.screen, ProcessScreen)
        self.screen.action_page(self.page)


class Confirm(ModalScreen[bool]):
    """A question whose answer is yes or no, and no unless somebody says yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q,enter", "answer(False)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question

    def compose(self) -> ComposeResult:
        yield PlainText(f"{self.question}\n\ny  yes      n  no", id="box")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class ProcessScreen(Screen[None]):
    """One process from near."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "back", "back"),
        Binding("e", "evidence", "take evidence now"),
        Binding("g", "collect", "collect garbage"),
        Binding("c", "curve", "memory or counts"),
        Binding("tab,right", "turn(1)", "next page", priority=True),
        Binding("shift+tab,left", "turn(-1)", "page before", priority=True),
        *(Binding(str(number), f"page('{name}')", name) for number, name in enumerate(near.PAGES, 1)),
    ]

    class Read(Message):
        """The record was read, or could not be."""

        def __init__(self, found: Found | None, error: str) -> None:
            super().__init__()
            self.found, self.error = found, error

    class Answered(Message):
        """The process has done what it was asked for, or not."""

        def __init__(self, done: bool, text: str) -> None:
            super().__init__()
            self.done, self.text = done, text

    def __init__(self, path: Path, *, every_s: float) -> None:
        super().__init__()
        self._reader = OneReader(path)
        self._every_s = every_s
        self._reading = self._at_once = False
        self._asking = ""
        self._error = ""
        self._said = ""
        self._found: Found | None = None
        self._resources: bool | None = None
        self.page = near.PAGES[0]

    def compose(self) -> ComposeResult:
        yield PlainText("reading …", id="headline")
        yield PlainText(id="curve")
        with Horizontal(id="pages"):
            for number, name in enumerate(near.PAGES, 1):
                yield Page(number, name)
        with VerticalScroll(id="body"):
            yield PlainText(id="text")
        yield PlainText(id="status")
        yield PlainText("esc back  e evidence  g collect  c curve  1-5 page  ↑↓ scroll  ? help  q quit", id="keys")

    def on_mount(self) -> None:
        self.query_one("#body").focus()
        self.set_interval(self._every_s, self.look)
        self._mark_page()
        self.look()

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the record on another thread, unless that goes on already."""
        if self._reading or not self.is_current:
            return
        self._reading = True
        self.run_worker(self._read, thread=True, group="record", exit_on_error=True)

    def _read(self) -> None:
        try:
            at_once, self._at_once = self._at_once, False
            message = self.Read(self._reader.look(at_once=at_once), "")
        except RecordError as error:
            message = self.Read(None, str(error))
        self.post_message(message)

    def on_process_screen_read(self, message: Read) -> None:
        self._reading = False
        self._error = message.error
        if message.found is not None:
            is_new, self._found = message.found is not self._found, message.found
            if is_new:
                self._draw()
        elif self._found is None:
            self.query_one("#headline", PlainText).say("there is nothing to show")
        self._draw_status()

    def on_resize(self, event: events.Resize) -> None:
        self._draw()

    def on_screen_resume(self) -> None:
        self.look()

    # -- drawing ----------------------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if self._found is None or not self.is_mounted:
            return
        report = self._found.report
        if self._resources is None and report.history:
            self._resources = near.grows_in_count(report)
        width = self.app.size.width
        height = min(CURVE_MOST, max(CURVE_LEAST, 3 + (self.app.size.height - OTHER_ROWS - 3) // 2))
        self.query_one("#headline", PlainText).update(near.headline_text(report, width - 2))
        curve = near.curve_text(report, width - 2, height, resources=bool(self._resources))
        self.query_one("#curve", PlainText).update(curve)
        self._draw_page()

    def _draw_page(self) -> None:
        if self._found is not None:
            width = self.app.size.width - 3  # the margins, and the scroll bar
            self.query_one("#text", PlainText).update(near.page(self.page, self._found.report, width))

    def _mark_page(self) -> None:
        for page in self.query(Page):
            page.set_class(page.page == self.page, "-open")

    def _draw_status(self) -> None:
        parts = [shown(self._error)] if self._error else []
        if self._said:
            parts.append(self._said)
        self.query_one("#status", PlainText).say_wrapped("  ·  ".join(parts), self.app.size.width - 2)

    def say(self, text: str) -> None:
        """Show one line of chatter."""
        self._said = shown(text)
        self._draw_status()

    # -- keys -------------------------------------------------------------------------------------------------------------------

    def action_back(self) -> None:
        self.app.pop_screen()

    def action_page(self, name: str) -> None:
        self.page = name
        self._mark_page()
        self._draw_page()
        self.query_one("#body", VerticalScroll).scroll_home(animate=False)

    def action_turn(self, by: int) -> None:
        self.action_page(near.PAGES[(near.PAGES.index(self.page) + by) % len(near.PAGES)])

    def action_curve(self) -> None:
        self._resources = not self._resources
        self._draw()

    def action_evidence(self) -> None:
        pid = self._may_be_asked()
        if pid is not None:
            self._ask(pid, "evidence", "is taking evidence")

    def action_collect(self) -> None:
        pid = self._may_be_asked()
        if pid is None or self._found is None:
            return
        question = (
            f"Let {near.shortened_who(self._found.report)} collect its garbage and give free memory back to the system?\n"
            "It stands still meanwhile: about 0.24 s per million containers."
        )

        def answered(yes: bool | None) -> None:
            if yes:
                self._ask(pid, "gc", "is collecting")

        self.app.push_screen(Confirm("\n".join(line for part in question.split("\n") for line in wrapped(part, 60))), answered)

    def _may_be_asked(self) -> int | None:
        """The pid to ask; None, and why is told, if this process cannot be asked."""
        if self._found is None:
            return None
        process = self._found.report.process
        if self._asking:
            self.say(f"{self._asking} still; one thing at a time")
        elif process.fate != "running":
            self.say(f"process {process.pid} does not run any more: nobody can be asked")
        elif process.host not in ("", socket.gethostname()):
            self.say(f"process {process.pid} runs on {process.host}: ask it there")
        else:
            return process.pid
        return None

    def _ask(self, pid: int, what: str, doing: str) -> None:
        assert self._found is not None
        self._asking = f"{near.shortened_who(self._found.report)} {doing}"
        self.say(f"{self._asking} …")
        context = contextvars.copy_context()

        def run() -> None:
            done, text = asked(pid, what)
            with contextlib.suppress(RuntimeError):  # the screen has gone, and its loop with it
                self.post_message(self.Answered(done, text))

        # No worker of textual's: it would be waited for when somebody quits, and evidence may take a minute.
        threading.Thread(target=lambda: context.run(run), daemon=True, name="memwatch-top-asks").start()

    def on_process_screen_answered(self, message: Answered) -> None:
        self._asking = ""
        self.say(message.text if message.done else f"not done: {message.text}")
        self._at_once = True
        self.look()
