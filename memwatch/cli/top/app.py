"""The application, and its first screen: the table of processes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Input

from memwatch.cli.top import near, rows
from memwatch.cli.top.process import PlainText, ProcessScreen
from memwatch.cli.top.reading import Look, Reader
from memwatch.fleet import Found
from memwatch.report import shown
from memwatch.report.layout import wrapped
from memwatch.report.palette import STATE_TERMINAL

HELP = """\
all processes
  ↑ ↓           choose            enter   open
  s             sort by the next column; or click its header
  r             reverse           /       filter by name or pid
one process
  1 … 5, ← →    page              ↑ ↓     scroll
  c             curve of memory, or of descriptors, threads, tasks
  e             let it take evidence now: what grows, or what is alive
  g             let it collect garbage (with MEMWATCH_SOCKET=control)
  esc           back              q       quit

NOT A LEAK is growth that was examined and found harmless.
RATE and TIME LEFT are of what grows. Of a process that has ended,
TIME LEFT says how: it exited, was killed, or is gone without a word."""


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter", "close", "close")]

    def compose(self) -> ComposeResult:
        yield PlainText(HELP, id="box")

    def action_close(self) -> None:
        self.dismiss()


class Table(DataTable[Text]):
    """The processes; a row is chosen by reversing it, which needs no colour."""


class FleetScreen(Screen[None]):
    """Every process of a directory of records."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "sort"),
        Binding("r", "reverse", "reverse"),
        Binding("slash", "filter", "filter"),
        Binding("escape", "clear_filter", "all"),
    ]

    class Looked(Message):
        """The records were looked at."""

        def __init__(self, look: Look) -> None:
            super().__init__()
            self.look = look

    def __init__(self, directory: Path, *, every_s: float) -> None:
        super().__init__()
        self._reader = Reader(directory)
        self._every_s = every_s
        self._looking = False
        self._look: Look | None = None
        self._wanted = ""
        self._rows: list[rows.Row] = []
        self._drawn: tuple[list[rows.Column], list[Path]] | None = None
        self._shown: dict[Path, tuple[rows.Row, list[str]]] = {}
        self._chosen: Path | None = None
        self.sort = "state"
        self.reversed = False

    def compose(self) -> ComposeResult:
        yield PlainText("reading …", id="title")
        yield Table(cursor_type="row", cell_padding=0, id="table")
        yield PlainText(id="empty")
        yield PlainText(id="status")
        yield Input(placeholder="a part of the name, or a pid", id="filter", compact=True, select_on_focus=False)
        yield PlainText("enter open  s sort  r reverse  / filter  ? help  q quit", id="keys")

    def on_mount(self) -> None:
        self.query_one("#filter").display = False
        self.query_one("#empty").display = False
        self.query_one(Table).focus()
        self.set_interval(self._every_s, self.look)
        self.look()

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at the records on another thread, unless that goes on already."""
        if self._looking or not self.is_current:
            return
        self._looking = True
        self.run_worker(self._read, thread=True, group="records", exit_on_error=True)

    def _read(self) -> None:
        self.post_message(self.Looked(self._reader.look()))

    def on_fleet_screen_looked(self, message: Looked) -> None:
        self._looking = False
        self._look = message.look
        self._draw()

    def on_screen_resume(self) -> None:
        self.look()

    def on_resize(self, event: events.Resize) -> None:
        self._draw()

    # -- drawing ----------------------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        look = self._look
        if look is None or not self.is_mounted:
            return
        found = rows.SORTS[self.sort][1]([item for item in look.found if rows.matches(item, self._wanted)])
        if self.reversed:
            found.reverse()
        self._rows = [self._row(item, look.curves.get(item.path, ())) for item in found]
        self._draw_title(look)
        self._draw_status(look)
        table, empty = self.query_one(Table), self.query_one("#empty", PlainText)
        table.display, empty.display = bool(self._rows), not self._rows
        if self._rows and self.focused is None:
            table.focus()  # what is hidden loses the keys
        if self._rows:
            self._draw_table(table)
        elif self._wanted:
            empty.say(f"no process matches {self._wanted!r}; escape shows all")
        else:
            place = shown(str(self._reader.directory))
            text = f"no records in {place}; start one with 'memwatch run -- CMD'"
            empty.say("\n".join(wrapped(text, self.app.size.width - 4)))

    def _row(self, item: Found, curve: tuple[float, ...]) -> rows.Row:
        known = self._shown.get(item.path)
        if known is not None and known[0].found is item and known[0].curve is curve:
            return known[0]
        return rows.row(item, curve)

    def _draw_table(self, table: Table) -> None:
        width = self.app.size.width - 2  # the margin, and the scroll bar
        columns = rows.columns(self._rows, width)
        gap = 1 if width < 100 else 2
        paths = [row.path for row in self._rows]
        before = self._drawn
        self._drawn = columns, paths
        shown_before, self._shown = self._shown, {}
        if before == self._drawn:
            for row in self._rows:
                known = shown_before[row.path]
                texts = known[1] if known[0] is row else [rows.cell(row, column, gap) for column in columns]
                self._shown[row.path] = row, texts
                for column, old, new in zip(columns, known[1], texts, strict=True):
                    if old != new or self._style(known[0], column) != self._style(row, column):
                        table.update_cell(str(row.path), column.key, self._styled(row, column, new))
            return
        top = table.scroll_y
        table.clear(columns=True)
        for column in columns:
            table.add_column(self._header(column, gap), width=column.width, key=column.key)
        for row in self._rows:
            texts = [rows.cell(row, column, gap) for column in columns]
            self._shown[row.path] = row, texts
            table.add_row(
                *(self._styled(row, column, text) for column, text in zip(columns, texts, strict=True)), key=str(row.path)
            )
        table.move_cursor(row=paths.index(self._chosen) if self._chosen in paths else 0, scroll=False)
        table.scroll_to(y=top, animate=False, force=True)

    def _header(self, column: rows.Column, gap: int) -> Text:
        width = column.width - gap
        arrow = ("▲" if self.reversed else "▼") if column.key == self.sort else ""
        title = column.title
        if arrow:
            title = (
                f"{arrow}{title}" if len(title) < width else f"{arrow}{title[1:]}" if column.right else title[: width - 1] + arrow
            )
            if not column.right and len(column.title) < width:
                title = f"{column.title}{arrow}"
        space = " " * (width - len(title))
        return Text((space + title if column.right else title + space) + " " * gap)

    @staticmethod
    def _style(row: rows.Row, column: rows.Column) -> str:
        report = row.found.report
        has_ended = report.process.fate != "running"
        if column.key not in ("state", "curve"):
            return "dim" if has_ended else ""
        strength = "dim " if has_ended else "bold " if column.key == "state" else ""
        return strength + STATE_TERMINAL[report.verdict.state]

    def _styled(self, row: rows.Row, column: rows.Column, text: str) -> Text:
        return Text(text, style=self._style(row, column), no_wrap=True)

    def _draw_title(self, look: Look) -> None:
        running = [item for item in look.found if item.report.process.fate == "running"]
        ended = len(look.found) - len(running)
        text = Text("memwatch top", style="bold")
        text.append(f"  {len(running)} running", style="not bold")
        for state in STATE_TERMINAL:  # the worst first
            count = sum(item.report.verdict.state == state for item in running)
            if count:
                text.append(", ", style="not bold")
                text.append(f"{count} {state}", style=f"not bold {STATE_TERMINAL[state]}")
        if ended:
            text.append(f"; {ended} ended", style="not bold")
        now = near.clock(look.at_s)
        width = self.app.size.width - 2
        space = width - text.cell_len - len(now)
        if space >= 2:
            text.append(" " * space + now, style="not bold dim")
        text.truncate(width, overflow="ellipsis")
        self.query_one("#title", PlainText).update(text)

    def _draw_status(self, look: Look) -> None:
        parts = []
        if look.errors:
            first = shown(next(iter(look.errors.values())))
            others = f" (and {len(look.errors) - 1} more)" if len(look.errors) > 1 else ""
            parts.append(f"{first}{others}")
        parts.append(f"sorted {rows.SORTS[self.sort][0]}" + (", reversed" if self.reversed else ""))
        if self._wanted:
            parts.append(f"only {self._wanted!r} ({len(self._rows)} of {len(look.found)})")
        self.query_one("#status", PlainText).say_wrapped("  ·  ".join(parts), self.app.size.width - 2)

    # -- keys -------------------------------------------------------------------------------------------------------------------

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        # While the table is filled anew the first row is chosen for a moment: only what is in it whole counts.
        if self._drawn is not None and len(self._drawn[1]) == event.data_table.row_count and event.cursor_row < len(self._drawn[1]):
            row = event.data_table.cursor_row
            self._chosen = self._drawn[1][row] if row < len(self._drawn[1]) else None

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        if self._drawn is not None and event.cursor_row < len(self._drawn[1]):
            self.app.push_screen(ProcessScreen(self._drawn[1][event.cursor_row], every_s=self._every_s))

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        key = str(event.column_key.value)
        if key == self.sort:
            self.action_reverse()
        elif key in rows.SORTS:
            self._sort_by(key)

    def _sort_by(self, key: str) -> None:
        self.sort, self.reversed, self._drawn = key, False, None
        self._draw()

    def action_sort(self) -> None:
        known = list(rows.SORTS)
        self._sort_by(known[(known.index(self.sort) + 1) % len(known)])

    def action_reverse(self) -> None:
        self.reversed, self._drawn = not self.reversed, None
        self._draw()

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value.strip()
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._close_filter()

    def action_clear_filter(self) -> None:
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter").display = False
        self.query_one(Table).focus()


class Top(App[None]):
    """`memwatch top`.

    Args:
        directory: whose records are shown.
        opened: the record that is opened at once.
        every_s: seconds between two looks.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "memwatch top"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", "quit", priority=True),
        Binding("ctrl+z", "suspend_process", "suspend"),
        Binding("question_mark", "help", "help"),
    ]
    # The colours are those of the terminal, as its user has chosen them; what is chosen is reversed, so that none is needed.
    CSS = """
    Screen { background: ansi_default; color: ansi_default; padding: 0 1; overflow: hidden; }
    #title, #status, #keys { height: 1; }
    #status { height: auto; max-height: 3; }
    #keys { text-style: dim; dock: bottom; }
    #table { height: 1fr; scrollbar-size: 1 1; background: ansi_default; background-tint: transparent; overflow-x: hidden; }
    #table > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold underline; }
    #table > .datatable--header-hover { background: ansi_default; color: ansi_default; text-style: bold reverse; }
    #table > .datatable--hover { background: ansi_default; text-style: underline; }
    #table > .datatable--cursor { background: ansi_default; color: ansi_default; text-style: reverse; }
    #empty { height: 1fr; padding: 1 1; }
    #filter { height: 1; border: none; background: ansi_default; padding: 0; }
    #headline { height: auto; max-height: 4; }
    #curve { height: auto; }
    #pages { height: 1; }
    .page { width: auto; height: 1; }
    .page.-open { text-style: bold reverse; }
    #body { height: 1fr; scrollbar-size: 1 1; background: ansi_default; }
    #text { height: auto; }
    Confirm, Help { align: center middle; background: transparent; padding: 0; }
    #box { width: auto; height: auto; max-width: 76; border: round ansi_default; padding: 0 2; background: ansi_default; }
    """

    def __init__(self, directory: Path, *, opened: Path | None = None, every_s: float = 2.0) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self._directory, self._opened, self._every_s = directory, opened, every_s

    def on_mount(self) -> None:
        self.push_screen(FleetScreen(self._directory, every_s=self._every_s))
        if self._opened is not None:
            self.push_screen(ProcessScreen(self._opened, every_s=self._every_s))

    def action_help(self) -> None:
        if not isinstance(self.screen, ModalScreen):
            self.push_screen(Help())
