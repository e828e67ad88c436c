"""Two moments side by side as a page: of one process, of two releases, of two workers.

Law: pure; what is compared and how it is told is `memwatch.report.compare`'s.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from memwatch.fleet import worst_first
from memwatch.model import Process
from memwatch.moments import MOMENTS
from memwatch.report import parts
from memwatch.report.compare import TITLES, Comparison, Moment, Row, between, grown_most, moved, numbers, when_taken
from memwatch.report.layout import shown
from memwatch.report.words import amount, resident_bytes, title
from memwatch.units import format_duration
from memwatch.web.pages import page
from memwatch.web.reading import Seen
from memwatch.web.rows import address

HOUR_S = 3600.0
SUGGESTED = 6
"""Comparisons of a kind that are offered; the form has all."""
LABEL_MOST = 200
"""Characters of a label that a form completes."""
OFFERED = 600
"""Records that the form completes while somebody types."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the form holds."""

    a: str = ""
    a_at: str = ""
    b: str = ""
    b_at: str = ""


def compare_page(
    asked: Asked,
    seen: Sequence[Seen],
    *,
    found: Comparison | None = None,
    names: tuple[str, str] = ("", ""),
    wrong: str = "",
    leave: bool = False,
) -> str:
    """The form, and what has changed.

    Args:
        found: the comparison; None until two moments are chosen.
        names: the records it is of.
        wrong: why there is none although it was asked for.
    """
    body = [f"<h1>Compare</h1>{_form(asked, seen)}"]
    if wrong:
        body.append(f'<p class="critical" role="alert">{parts.clipped(wrong)}</p>')
    if found is not None:
        body += _comparison(found, names)
    else:
        body += _suggestions(seen)
    return page("Compare · memwatch", "\n".join(body), here="/compare", leave=leave)


def _form(asked: Asked, seen: Sequence[Seen]) -> str:
    sides = []
    for side, name, target, when in (("a", "Before (A)", asked.a, asked.a_at), ("b", "After (B)", asked.b, asked.b_at)):
        sides.append(
            f'<fieldset><legend>{name}</legend><label for="{side}">Process, record or label</label>'
            f'<input id="{side}" name="{side}" list="records" required autocomplete="off" value="{parts.text(target)}">'
            f'<label for="{side}_at">Moment</label>'
            f'<input id="{side}_at" name="{side}_at" list="moments" autocomplete="off" placeholder="last" '
            f'value="{parts.text(when)}">'
            "</fieldset>"
        )
    records = "".join(f'<option value="{html.escape(value)}">{parts.text(told)}</option>' for value, told in _targets(seen))
    moments = "".join(f'<option value="{when}">' for when in ("first", "last", "-10m", "-1h", "-6h", "-1d"))
    return (
        f'<form class="compare" action="/compare">{"".join(sides)}<button>Compare</button></form>'
        f'<p class="soft">A moment is {html.escape(MOMENTS)}. A label means the newest record that has it: version=1.4.2.</p>'
        f'<datalist id="records">{records}</datalist><datalist id="moments">{moments}</datalist>'
    )


def _targets(seen: Sequence[Seen]) -> Iterator[tuple[str, str]]:
    by_name = {item.found.path: item for item in seen}
    for found in worst_first([item.found for item in seen])[:OFFERED]:
        process = found.report.process
        yield by_name[found.path].name, f"{process.name[:80]}[{process.pid}] {process.fate}"
    for name, key, values in _labelled(seen):
        for value in values:
            whole = f"{name} {key}={value}"
            if whole == shown(whole) and len(whole) <= LABEL_MOST:  # what cannot be typed is not offered
                yield whole, "newest record with this label"


def _labelled(seen: Sequence[Seen]) -> list[tuple[str, str, list[str]]]:
    """Labels whose values tell records of one name apart: name, key, values with the most recent first."""
    known: dict[tuple[str, str], dict[str, None]] = {}
    for item in seen:
        process = item.found.report.process
        for key, value in process.labels.items():
            known.setdefault((process.name, key), {}).setdefault(value)
    return [(name, key, list(values)) for (name, key), values in known.items() if len(values) > 1]


def link(a: str, a_at: str, b: str, b_at: str) -> str:
    """The address of a comparison."""
    return "/compare?" + urlencode({"a": a, "a_at": a_at, "b": b, "b_at": b_at})


def _suggestions(seen: Sequence[Seen]) -> Iterator[str]:
    by_path = {item.found.path: item for item in seen}
    ordered = [by_path[found.path] for found in worst_first([item.found for item in seen])]
    moments = []
    for item in ordered[:SUGGESTED]:
        choices = [("first", "since its first sample")]
        if item.found.report.statistics.uptime_s > HOUR_S:  # before that there is nothing to compare with
            choices.append(("-1h", "in its last hour"))
        links = [_link(link(item.name, when, item.name, "last"), told) for when, told in choices]
        moments.append(f"{parts.text(_who(item.found.report.process))}: {', '.join(links)}")
    releases = [
        _link(link(f"{name} {key}={old}", "", f"{name} {key}={new}", ""), f"{name[:80]}: {key}={old[:60]} with {key}={new[:60]}")
        for name, key, (new, old, *_) in _labelled(seen)[:SUGGESTED]
    ]
    workers: dict[str, list[Seen]] = {}
    for item in ordered:
        if item.found.report.process.fate == "running":
            workers.setdefault(item.found.report.process.name, []).append(item)
    pairs = []
    for several in workers.values():
        if len(several) > 1:
            by_level = sorted(several, key=lambda item: resident_bytes(item.found.report) or 0.0)
            least, most = by_level[0], by_level[-1]
            told = (
                f"{_who(least.found.report.process)}, with the least memory, and {_who(most.found.report.process)}, with the most"
            )
            pairs.append(_link(link(least.name, "last", most.name, "last"), told))
    for heading, found in (("Two moments", moments), ("Two releases", releases), ("Two workers", pairs[:SUGGESTED])):
        if found:
            yield f"<section><h2>{heading}</h2><ul>{''.join(f'<li>{item}</li>' for item in found)}</ul></section>"


def _link(to: str, told: str) -> str:
    return f'<a href="{html.escape(to)}">{parts.text(told)}</a>'


def _who(process: Process) -> str:
    return f"{process.name[:80]}[{process.pid}]"


def _comparison(found: Comparison, names: tuple[str, str]) -> Iterator[str]:
    sides = "".join(
        _side(letter, side, other, name)
        for letter, side, other, name in (("A", found.a, found.b, names[0]), ("B", found.b, found.a, names[1]))
    )
    told = parts.text(between(found))
    yield f'<section id="moments-told"><h2>What has grown</h2><dl>{sides}</dl><p class="soft">{told}</p></section>'
    yield _channels(found)
    taken = when_taken(found)
    for name, rows in found.tables.items():
        heading = TITLES.get(name, name)
        yield f"<section><h2>{parts.text(heading[:1].upper() + heading[1:])}</h2>{_rows(heading + taken, rows)}</section>"
    if found.notes:
        yield "<ul>" + "".join(f'<li class="soft">{parts.clipped(note)}</li>' for note in found.notes) + "</ul>"


def _side(letter: str, side: Moment, other: Moment, name: str) -> str:
    process = side.process
    told = [f'<a href="{html.escape(address(name))}">{parts.text(_who(process))}</a>']
    if process.host != other.process.host and process.host:
        told.append(f"on {parts.text(process.host[:80])}")
    told.append(parts.time_of(side.time_s) if side.time_s is not None else "no sample was taken")
    if side.time_s is not None and process.started is not None and side.time_s >= process.started:
        told.append(f"{format_duration(side.time_s - process.started)} after its start")
    different = [f"{key}={value}" for key, value in process.labels.items() if other.process.labels.get(key) != value]
    told += [f"<code>{parts.clipped(label)}</code>" for label in different]
    return f"<dt>{letter}</dt><dd>{', '.join(told)}</dd>"


def _channels(found: Comparison) -> str:
    changed = [(name, item) for name, item in found.channels.items() if item.before != item.after or name == "rss"]
    same = [title(name) for name, item in found.channels.items() if item.before == item.after and name != "rss"]
    rows = [
        [
            parts.text(title(name)),
            html.escape(amount(name, item.before) or "–"),
            html.escape(amount(name, item.after) or "–"),
            *map(html.escape, moved(name, item)),
        ]
        for name, item in changed
    ]
    if not rows:
        return ""
    header = ("channel", "A", "B", "change", "per hour")
    unchanged = f'<p class="soft">Unchanged: {parts.text(", ".join(same))}.</p>' if same else ""
    return f"<section><h2>Channels</h2>{parts.table(header, rows, label='channels', right=range(1, 5))}{unchanged}</section>"


def _rows(label: str, rows: Sequence[Row]) -> str:
    kept, more = grown_most(rows)
    said = "".join(f'<p class="soft">{parts.text(line)}</p>' for line in more)
    if not kept:
        return f'<p class="soft">Nothing grew.</p>{said}'
    cells = [[*map(html.escape, numbers(item)), f"<code>{parts.clipped(item.label)}</code>"] for item in kept]
    header = ("growth", "per hour", "A", "B", "objects", "what")
    return parts.table(header, cells, label=shown(label), right=range(5)) + said
