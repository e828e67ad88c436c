"""The proof under the headline: what grew, where it was allocated and what holds it, joined from what the collectors found.

Law: pure, and of one leak one row: a row is a suspect of the collector that explains most, with what the others know of it.  What
is left out is counted and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from memwatch.model import EXPLAINING, Evidence, Report, Suspect
from memwatch.report.causes import UNSURE_BELOW, known_causes
from memwatch.report.layout import cells, glued, padded, shown, wrapped
from memwatch.report.usage import blame, blamed_routes
from memwatch.report.words import RESOURCE_KINDS, headline, is_lookalike, moment, not_the_cause, share_of
from memwatch.units import format_count, format_size

ROWS = 3
"""Rows of the proof: what a person takes in at a glance; the sections below have the others."""
WORTH_A_ROW = 0.02
"""Share of the growth below which a suspect is counted but not shown here, unless it is the largest."""
NEARLY = 0.7
"""A collector that says what grew goes before one that explains more, if it explains at least this part of what that does."""
BRIEF_LINES = 12
BRIEF_WIDTH = 120
INDENT = "  "

MOVING = ("growing", "leaking", "recovering")

_ORDER = ("types", "sites", "holders", "resources", "native")
_STEP = re.compile(r"(?P<name>.*?)(?: \((?P<kind>[^×(),]+)(?:,[^()]*)?\))?(?: \(× \d+\))?", re.DOTALL)
_RUNNER = re.compile(
    r"(?:.*/)?(?:(?:asyncio|uvloop|uvicorn|hypercorn|granian|gunicorn|anyio|trio|gevent)/|(?:selectors|socketserver|threading|runpy)\.py:)"
    r".* (?:\S*\.)?"
    r"(?:run|asyncio_run|run_forever|run_until_complete|_run_once|select|serve|serve_forever|main|run_loop|_bootstrap|_bootstrap_inner)"
)
"""A line of a server or an event loop below which everything runs: that it ran while memory grew says nothing."""
_LINE = re.compile(r"(:\d+) (?=\S)")


@dataclass(frozen=True, slots=True)
class Row:
    """One suspect, and what the other collectors know of it."""

    suspect: Suspect
    collector: str
    what: str
    """What grew, or where, with its count."""
    allocated: tuple[str, ...] = ()
    """The allocating or creating sites, best first."""
    held: tuple[str, ...] = ()
    """The path from where it accumulates to the object that grows."""


def proof(report: Report) -> tuple[Row, ...]:
    """Every suspect of the collector that explains most, the largest first, joined with what the others know."""
    leading = _leading(report)
    if leading is None:
        return ()
    holders = [suspect for item in report.evidence if item.collector == "holders" for suspect in item.suspects]
    ranked = sorted(leading.suspects, key=lambda suspect: _runs_all(leading.collector, suspect))
    return tuple(_row(leading.collector, suspect, holders, first=not place) for place, suspect in enumerate(ranked))


def _leading(report: Report) -> Evidence | None:
    order = ("resources", *_ORDER) if report.verdict.kind in RESOURCE_KINDS else _ORDER
    found = [item for name in order for item in report.evidence if item.collector == name and item.suspects]
    best = max(map(_explained, found), default=0.0)
    return next((item for item in found if _explained(item) >= NEARLY * best), None)


def _explained(evidence: Evidence) -> float:
    """Part of the growth that *evidence* puts a name to.  A line that runs the whole program is none."""
    whole = sum(suspect.share or 0.0 for suspect in evidence.suspects)
    named = sum(suspect.share or 0.0 for suspect in evidence.suspects if not _runs_all(evidence.collector, suspect))
    if evidence.explains is not None:
        return evidence.explains * (named / whole if whole > 0.0 else 1.0)
    return min(1.0, named)


def _runs_all(collector: str, suspect: Suspect) -> bool:
    return collector in ("sites", "native") and _RUNNER.fullmatch(suspect.label) is not None


def _row(collector: str, suspect: Suspect, holders: list[Suspect], *, first: bool) -> Row:
    what = counted(collector, suspect)
    only = _path(holders[0]) if first and len(holders) == 1 else ()
    match collector:
        case "types":
            return Row(suspect, collector, what, suspect.trail, _held(suspect.label, holders) or only)
        case "holders":
            return Row(suspect, collector, what, (), _path(suspect))
        case "sites":
            return Row(suspect, collector, what, (), only)
        case _:
            return Row(suspect, collector, what, suspect.trail)


def _path(holder: Suspect) -> tuple[str, ...]:
    return (holder.label, *holder.trail)


def _held(label: str, holders: list[Suspect]) -> tuple[str, ...]:
    """The path of the holder through which objects of this type grow, up to them: at its end, else on the way."""
    names = {label, label.rpartition(".")[2]}
    for holder in holders:
        if holder.trail and _is_of(holder.trail[-1], names):
            return _path(holder)
    for holder in holders:
        for place, step in enumerate(holder.trail):
            if _is_of(step, names):
                return (holder.label, *holder.trail[: place + 1])
    return ()


def _is_of(step: str, names: set[str]) -> bool:
    """Whether a step of a path is an object of the type that has these *names*.

    Steps are `Session`, `cart (list, 50 entries)`, `dict, 3 entries` and `next (Node) (× 3)`.
    """
    parts = _STEP.fullmatch(step)
    kind = ((parts["kind"] or parts["name"]) if parts is not None else step).partition(",")[0]
    return bool({kind, kind.rpartition(".")[2]} & names)


def counted(collector: str, suspect: Suspect) -> str:
    """A suspect with how many there are of it, safe to print."""
    label = shown(suspect.label)
    if collector in ("sites", "native"):
        label = _wide(suspect.label)
        return label if suspect.count is None else f"{label}  ({format_count(suspect.count)} objects)"
    return label if suspect.count is None else f"{format_count(suspect.count)} × {label}"


def gap(report: Report) -> str:
    """How much of the growth is explained, as the title of the proof."""
    if report.verdict.state in MOVING and report.is_evidence_earlier:
        return f"this growth has not been looked at yet; of earlier growth, at {moment(report.evidence_taken)} UTC"
    moving = report.verdict.state in MOVING or is_lookalike(report.verdict)
    if report.explained is None:
        return "where it grew" if moving else "where it grew earlier"
    return f"{share_of(report.explained)} of the {'' if moving else 'earlier '}growth explained"


def proof_lines(report: Report, width: int, *, rows: int = ROWS) -> Iterator[str]:
    """The proof as text: the rows, known causes, and what is not the cause; nothing where nothing is known."""
    found = proof(report)
    if found:
        yield from wrapped(f"{gap(report)}:", width, first=INDENT)
        yield from _rows(found, width, rows)
    for cause in known_causes(report):
        yield from wrapped(f"{cause.sentence}: {cause.link}", width, first=f"{INDENT}known cause: ", rest=INDENT * 2)
    cleared = not_the_cause(report)
    if cleared:
        yield from wrapped(", ".join(map(glued, cleared)), width, first=f"{INDENT}not the cause: ", rest=INDENT * 2)


def shown_rows(found: tuple[Row, ...], rows: int = ROWS) -> tuple[tuple[Row, ...], str]:
    """The rows worth showing, at most *rows*, and a sentence about the others (empty if there are none)."""
    worth = [
        place for place, row in enumerate(found) if not place or row.suspect.share is None or row.suspect.share >= WORTH_A_ROW
    ][:rows]
    left_out = tuple(row.suspect for place, row in enumerate(found) if place not in worth)
    return tuple(found[place] for place in worth), others(left_out)


def others(left_out: tuple[Suspect, ...]) -> str:
    """What is not shown, counted: `and 12 more, 4 % of the growth`."""
    if not left_out:
        return ""
    text = f"and {len(left_out)} more"
    shares = [suspect.share for suspect in left_out if suspect.share is not None]
    return f"{text}, {share_of(sum(shares))} of the growth" if len(shares) == len(left_out) else text


def _rows(found: tuple[Row, ...], width: int, rows: int) -> Iterator[str]:
    kept, more = shown_rows(found, rows)
    firsts, indent = numbers(tuple(row.suspect for row in kept))
    wide = max(cells(row.what) for row in kept)
    beside = [f"allocated at  {_first_site(row)}" if row.collector == "types" and row.allocated else "" for row in kept]
    # The site stands beside what grew where there is room for it in every row.
    inline = all(cells(first) + wide + 4 + cells(site) <= width for first, site in zip(firsts, beside, strict=True))
    for first, row, site in zip(firsts, kept, beside, strict=True):
        if row.collector == "holders":
            yield from wrapped(joined(row.held, " →", width - cells(first)), width, first=first, rest=indent + INDENT)
            continue
        if site and inline:
            yield f"{first}{padded(row.what, wide)}    {site}"
        else:
            yield from wrapped(row.what, width, first=first, rest=indent + INDENT)
        details: list[tuple[str, tuple[str, ...], str]] = []
        if row.collector == "types" and row.allocated and not inline:
            details.append(("allocated at", (_first_site(row),), ""))
        elif row.collector != "types" and row.allocated:
            details.append((TRAILS[row.collector][0], row.allocated, " ←"))
        if row.held:
            details.append(("held by", row.held, " →"))
        yield from _details(details, indent, cells(first), width)
    if more:
        yield from wrapped(more, width, first=indent)


TRAILS = {
    "sites": ("called from", " ←"),
    "native": ("called from", " ←"),
    "types": ("allocated at", ""),
    "resources": ("at", " ←"),
    "caches": ("in", " →"),
}
"""What the trail of a suspect is, and how its steps are joined."""


def _first_site(row: Row) -> str:
    more = f", and {len(row.allocated) - 1} more" if row.allocated[1:] else ""
    return f"{_wide(row.allocated[0])}{more}"


def _wide(site: str) -> str:
    """A site with its function set off: `app/sessions.py:48  SessionStore.add`."""
    return _LINE.sub(r"\1  ", shown(site), count=1)


def _details(details: list[tuple[str, tuple[str, ...], str]], indent: str, column: int, width: int) -> Iterator[str]:
    """Lines below a row: a word, and what it says from one column on."""
    longest = max((cells(word) for word, _, _ in details), default=0)
    column = max(column, cells(indent) + longest + 2)
    for word, steps, arrow in details:
        first = padded(indent + word, column)
        if width - column < 30:  # too narrow for a column
            first, rest = f"{indent}{word}  ", indent + INDENT
        else:
            rest = " " * column
        yield from wrapped(joined(steps, arrow, width - cells(rest)), width, first=first, rest=rest)


STEPS_SHOWN = 6
"""Of a list of callers or places; the others are counted.  A path to what grows is shown whole."""


def joined(steps: tuple[str, ...], arrow: str, width: int) -> str:
    """The steps of a trail as one text that breaks between them, where they fit into *width*.

    Args:
        arrow: " →" leads on to the next, " ←" back to a caller; "" lists places.
    """
    if arrow == " →":  # a label may hold steps itself
        steps = kept = tuple(part for step in steps for part in step.split(" → "))
    else:
        kept = steps[:STEPS_SHOWN]
    words = [glued(shown(step)) if cells(shown(step)) + 2 <= width else shown(step) for step in kept]
    text = ", ".join(words) if arrow == "" else f" {arrow.strip()}{glued(' ')}".join(words)
    return f"{text}, and {len(steps) - len(kept)} more" if len(steps) > len(kept) else text


def numbers(suspects: tuple[Suspect, ...]) -> tuple[list[str], str]:
    """The beginnings of rows, with share and bytes in columns; and the indent of what stands below a row."""
    shares = ["" if suspect.share is None else share_of(suspect.share) for suspect in suspects]
    sizes = ["" if suspect.bytes is None else format_size(suspect.bytes, sign=True) for suspect in suspects]
    share_width, size_width = (max(map(cells, column), default=0) for column in (shares, sizes))
    firsts = []
    for share, size in zip(shares, sizes, strict=True):
        columns = [padded(text, wide, right=True) for text, wide in ((share, share_width), (size, size_width)) if wide]
        firsts.append(INDENT + "".join(f"{column}  " for column in columns))
    return firsts, INDENT + " " * (share_width + 2 if share_width else 2)


def brief(report: Report, *, width: int = BRIEF_WIDTH) -> str:
    """The verdict and the proof in a dozen lines at most, if they can be told in that, for a log or a message.

    The headline is a line of its own, of any length; the proof is at most *width* columns wide.  No newline at the end.
    """
    first = headline(report)
    lines: list[str] = []
    for rows in range(ROWS, 0, -1):
        lines = list(proof_lines(report, width, rows=rows))
        if len(lines) < BRIEF_LINES:
            break
    if not proof(report) or (report.explained or 0.0) < UNSURE_BELOW:
        # Where little is explained, what the collectors could not see and what else they know is most of what there is to tell.
        lines += [
            line
            for item in report.evidence
            if item.note and item.collector in EXPLAINING
            for line in wrapped(f"{shown(item.collector)}: {shown(item.note)}", width, first=INDENT, rest=INDENT * 2)
        ]
    told = [
        line
        for row in blamed_routes(report.routes)[:2]
        for line in wrapped(shown(blame(row)), width, first=INDENT, rest=INDENT * 2)
    ]
    return "\n".join((first, *told, *lines))
