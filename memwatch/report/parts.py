"""The sections of a report as HTML: what the page, the dashboard and a notebook put together.

Law: pure.  Text from a watched process is always shown, never obeyed: it goes through `text` or `clipped`.  No style attribute and
no script is written, so that the strictest Content-Security-Policy holds.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from memwatch.model import ChannelSummary, Event, Evidence, Report, Suspect, iso
from memwatch.report.causes import known_causes
from memwatch.report.curve import Curve
from memwatch.report.happenings import happened
from memwatch.report.layout import shown
from memwatch.report.proof import TRAILS, Row, gap, others, proof, shown_rows
from memwatch.report.svg import picture
from memwatch.report.text import COLLECTOR_TITLES, facts
from memwatch.report.usage import ROUTE_HEADER, blame, blamed_routes, cache_remarks, cache_removals, number, route_cells
from memwatch.report.words import (
    amount,
    as_of,
    channel_pace,
    channel_state,
    channels_in_order,
    headline,
    moment,
    not_the_cause,
    says_only_now,
    share_of,
    status,
    title,
    who,
)
from memwatch.units import format_count, format_duration, format_size

CLIPPED = 300
"""Characters of a text from the process that are shown; the rest unfolds."""
SUSPECTS_SHOWN = 12
"""Rows of a collector that are shown; the rest unfolds."""
EVENTS_SHOWN = 40
STEPS_SHOWN = 40
"""Steps of a path that are drawn; those in the middle of a longer one are counted."""


def text(value: str) -> str:
    """Text as HTML: escaped, and what is not printable written out."""
    return html.escape(shown(value))


def clipped(value: str) -> str:
    """Text as HTML; what is very long unfolds."""
    whole = shown(value)
    if len(whole) <= CLIPPED:
        return html.escape(whole)
    more = f"{len(whole) - CLIPPED:,} more characters"
    return (
        f'<details class="long"><summary>{html.escape(whole[:CLIPPED])}… <small>({more})</small></summary>'
        f"{html.escape(whole[CLIPPED:])}</details>"
    )


def time_of(time_s: float | None) -> str:
    """A moment: UTC as it is written, the reader's zone beside it where there is a script."""
    stamp = iso(time_s)
    if stamp is None:
        return "at an unknown time"
    return f'<time datetime="{stamp}">{html.escape(moment(time_s))} UTC</time>'


def sections(report: Report, drawn: Mapping[str, Curve]) -> dict[str, str]:
    """Every section that has something to say, in reading order: its id (see `TITLES`) and its inner HTML.

    Args:
        drawn: `curves(report)`.
    """
    made: dict[str, Callable[[Report], str]] = {
        "verdict": verdict,
        "curve": lambda _: figures(drawn),
        "proof": what_grows,
        "evidence": evidence,
        "routes": routes,
        "caches": caches,
        "channels": channels,
        "events": events,
        "process": process,
    }
    return {name: body for name, make in made.items() if (body := make(report))}


TITLES = {
    "verdict": "Verdict",
    "curve": "Over time",
    "proof": "What grows, and who holds it",
    "evidence": "Evidence",
    "routes": "Routes and jobs",
    "caches": "Caches",
    "channels": "Channels",
    "events": "What happened",
    "process": "Process and settings",
}


def section(name: str, body: str) -> str:
    """One section of a page."""
    heading = f'<h2 id="{name}-title">{TITLES[name]}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}<div class="body">{body}</div></section>'


def chip(report: Report) -> str:
    """The verdict in a word, in the colour of its state."""
    return f'<span class="chip {report.verdict.state}">{html.escape(status(report.verdict))}</span>'


# The verdict and its proof.


def verdict(report: Report) -> str:
    """The sentence, and why."""
    word = status(report.verdict)
    sentence = headline(report).removeprefix(word).lstrip(" ").removeprefix(who(report)).lstrip(" ")
    parts = [f'<p class="headline">{chip(report)} {text(sentence)}</p>']
    reason = shown(report.verdict.reason)
    if reason and reason not in headline(report):
        parts.append(f"<p>{clipped(report.verdict.reason)}</p>")
    if report.verdict.severity == "critical":
        parts.append('<p class="critical">Critical: at or above the growth limit, or little time is left.</p>')
    parts += [f"<p>{text(blame(row))}</p>" for row in blamed_routes(report.routes)[:2]]
    newest = as_of(report)
    if newest is not None:
        parts.append(f'<p class="soft">As of {time_of(newest)}.</p>')
    return "".join(parts)


def what_grows(report: Report) -> str:
    """The proof in a few rows, known causes, and what is not the cause."""
    parts = list(_proof(report))
    parts += [
        f'<p>Known cause: {text(cause.sentence)}: <a href="{html.escape(cause.link)}" rel="noreferrer">{text(cause.link)}</a></p>'
        for cause in known_causes(report)
    ]
    cleared = not_the_cause(report)
    if cleared:
        parts.append(f"<p>Not the cause: {text(', '.join(cleared))}.</p>")
    return "".join(parts)


def _proof(report: Report) -> Iterator[str]:
    found = proof(report)
    if not found:
        return
    yield f"<p>{text(gap(report)[:1].upper() + gap(report)[1:])}:</p>"
    kept, more = shown_rows(found)
    yield f'<ul class="proof">{"".join(map(_row, kept))}</ul>'
    if more:
        yield f'<p class="soft">{text(more)}</p>'


def _row(row: Row) -> str:
    parts = [_weight(row.suspect)]
    if row.collector != "holders":
        parts.append(f"<code>{clipped(row.what)}</code>")
    if row.allocated:
        word = TRAILS[row.collector][0]
        more = f" and {len(row.allocated) - 1} more" if row.allocated[1:] else ""
        parts.append(f"<div>{word} <code>{clipped(row.allocated[0])}</code>{more}</div>")
    if row.held:
        parts.append(f"<div>held by {path(row.held)}</div>")
    return f"<li>{' '.join(parts)}</li>"


def _weight(suspect: Suspect) -> str:
    shares = share_of(suspect.share) if suspect.share is not None else ""
    size = format_size(suspect.bytes, sign=True) if suspect.bytes is not None else ""
    return f"<b>{' '.join(filter(None, (shares, size)))}</b>"


def path(steps: Sequence[str]) -> str:
    """A retaining path, drawn as one: from the root to what grows."""
    parts = [part for step in steps for part in step.split(" → ")]
    if len(parts) > STEPS_SHOWN:
        half = STEPS_SHOWN // 2
        parts = [*parts[:half], f"… {len(parts) - 2 * half} steps …", *parts[-half:]]
    return f'<ol class="path">{"".join(f"<li><code>{clipped(part)}</code></li>" for part in parts)}</ol>'


# Curves.


CAPTIONS = {"memory": "Memory", "resources": "Descriptors, threads, tasks, child processes"}


def figures(drawn: Mapping[str, Curve]) -> str:
    """Where the curves go; without a script, and on paper, they are pictures."""
    return "".join(
        f'<figure class="curve" data-curve="{name}"><figcaption>{CAPTIONS[name]}</figcaption><div class="live" hidden></div>'
        f'<div class="still">{picture(curve, label=f"{CAPTIONS[name]} over time")}</div></figure>'
        for name, curve in drawn.items()
    )


# Evidence.


def evidence(report: Report) -> str:
    """What each collector found; where nothing grows, what was alive when somebody looked."""
    if report.evidence:
        when = f'<p class="soft">Taken {time_of(report.evidence_taken)}.</p>' if report.evidence_taken is not None else ""
        flame = _flame() if any(item.collector in ("sites", "native") and item.suspects for item in report.evidence) else ""
        return when + flame + "".join(_collected(item) for item in report.evidence)
    census = next((item for item in reversed(report.censuses) if any(part.suspects for part in item.evidence)), None)
    if census is None:
        return ""
    flame = _flame() if any(item.collector == "sites" and item.suspects for item in census.evidence) else ""
    return f"<p>Nothing grows; alive {time_of(census.time_s)}:</p>{flame}" + "".join(
        _collected(item, alive=True) for item in census.evidence
    )


def _flame() -> str:
    return '<div class="flame" hidden></div>'


def _collected(item: Evidence, *, alive: bool = False) -> str:
    name = COLLECTOR_TITLES.get(item.collector, shown(item.collector))
    name = {"types": "alive, by type", "sites": "alive, by the line that allocated it"}.get(item.collector, name) if alive else name
    explained = f" <small>{share_of(item.explains)} of the growth explained</small>" if item.explains is not None else ""
    parts = [f"<h3>{text(name[:1].upper() + name[1:])}{explained}</h3>"]
    kept, folded = item.suspects[:SUSPECTS_SHOWN], item.suspects[SUSPECTS_SHOWN:]
    if kept:
        parts.append(_suspects(item.collector, name, kept, alive=alive))
    if folded:
        more = text(others(folded))
        parts.append(f"<details><summary>{more}</summary>{_suspects(item.collector, name, folded, alive=alive)}</details>")
    if item.note:
        parts.append(f'<p class="soft">{clipped(item.note)}</p>')
    elif not item.suspects:
        parts.append('<p class="soft">Nothing was found.</p>')
    return "".join(parts)


def _suspects(collector: str, name: str, suspects: Sequence[Suspect], *, alive: bool) -> str:
    largest = max((abs(item.bytes or 0.0) for item in suspects), default=0.0)
    rows = []
    for item in suspects:
        size = "" if item.bytes is None else format_size(item.bytes, sign=not alive)
        rows.append(
            (
                f"{bar((item.bytes or 0.0) / largest)}{html.escape(size)}" if largest else html.escape(size),
                "" if item.share is None else share_of(item.share),
                "" if item.count is None else format_count(item.count),
                _suspect(collector, item),
            )
        )
    return table(("bytes", "share", "count", "what"), rows, label=name, right=(1, 2))


def _suspect(collector: str, item: Suspect) -> str:
    if collector == "holders":
        return path((item.label, *item.trail))
    label = f"<code>{clipped(item.label)}</code>"
    if not item.trail:
        return label
    word = TRAILS.get(collector, ("from", ""))[0]
    steps = "".join(f"<li><code>{clipped(step)}</code></li>" for step in item.trail)
    if len(item.trail) == 1:
        return f'{label} <span class="soft">{word} <code>{clipped(item.trail[0])}</code></span>'
    return f"{label}<details><summary>{word} {len(item.trail)} lines</summary><ol>{steps}</ol></details>"


def bar(part: float) -> str:
    """A part of a whole, drawn."""
    width = round(60 * min(1.0, max(0.0, part)), 1)
    return f'<svg class="bar" viewBox="0 0 60 10" aria-hidden="true"><rect width="{width}" height="10"/></svg>'


# Tables.


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, right: Iterable[int] = ()) -> str:
    """A table that scrolls sideways within itself where it is too wide.

    Args:
        rows: cells as HTML.  A column that is empty in every row is left out.
        label: what the table is, for whoever does not see it.
        right: columns aligned to the right.
    """
    found = [list(row) for row in rows]
    used = [column for column in range(len(header)) if any(row[column] for row in found)]
    numeric = set(right)

    def cell(kind: str, column: int, value: str) -> str:
        return f"<{kind}{' class=n' if column in numeric else ''}{' scope=col' if kind == 'th' else ''}>{value}</{kind}>"

    head = "".join(cell("th" if header[column] else "td", column, header[column]) for column in used)
    body = "".join("<tr>" + "".join(cell("td", column, row[column]) for column in used) + "</tr>" for row in found)
    region = f'class="scroll" role="region" tabindex="0" aria-label="table: {html.escape(label)}"'
    return f"<div {region}><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def routes(report: Report) -> str:
    """Which route leaks, or why that cannot be told; then what each did."""
    if not report.routes:
        return ""
    parts = []
    if report.routes_note and not blamed_routes(report.routes):
        parts.append(f"<p>Which route it is cannot be told: {clipped(report.routes_note)}</p>")
    rows = [[f"<code>{clipped(name)}</code>", *map(html.escape, rest)] for name, *rest in map(route_cells, report.routes)]
    header = ("route", *ROUTE_HEADER[1:])
    return "".join([*parts, table(header, rows, label="routes and jobs", right=range(1, len(header)))])


def caches(report: Report) -> str:
    """What each cache holds, and how entries left it."""
    rows = []
    for cache in report.caches:
        held, most, entries, room = (number(cache, name) for name in ("bytes", "max_bytes", "entries", "maxsize"))
        ratio, hits, misses = (number(cache, name) for name in ("hit_ratio", "hits", "misses"))
        rows.append(
            (
                f"<code>{clipped(str(cache.get('name', '?')))}</code>",
                ("about " if cache.get("is_estimated") and held is not None else "") + _of(held, most, format_size),
                _of(entries, room, format_count),
                "" if ratio is None else f"{bar(ratio)}{ratio * 100:.1f} %",
                "" if hits is None or misses is None else format_count(hits + misses),
                text(", ".join(cache_removals(cache))),
                text(", ".join(cache_remarks(cache))),
            )
        )
    header = ("cache", "bytes", "entries", "hits", "reads", "left", "remarks")
    return table(header, rows, label="caches", right=(1, 2, 4)) if rows else ""


def _of(value: float | None, most: float | None, form: Callable[[float], str]) -> str:
    if value is None:
        return ""
    return form(value) + (f" of {form(most)}" if most is not None else "")


def channels(report: Report) -> str:
    """Every channel: now, average, peak, rate and state."""
    rows = [_channel(report, name, summary) for name, summary in channels_in_order(report)]
    now = "now" if report.process.fate == "running" else "last"
    header = ("channel", now, "average", "peak", "rate", "state", "last read")
    return table(header, rows, label="channels", right=(1, 2, 3, 4)) if rows else ""


def _channel(report: Report, name: str, summary: ChannelSummary) -> tuple[str, ...]:
    over_time = not says_only_now(name)
    newest = as_of(report)
    age_s = 0.0 if newest is None or summary.taken is None else newest - summary.taken
    state = channel_state(summary)
    return (
        text(title(name)),
        html.escape(amount(name, summary.current)),
        html.escape(amount(name, summary.average)) if over_time else "",
        html.escape(amount(name, summary.peak)) if over_time else "",
        html.escape(channel_pace(name, summary)),
        f'<span class="state {summary.state}">{html.escape(state)}</span>' if state else "",
        f"{format_duration(age_s)} before" if age_s > 1.5 * (report.process.interval_s or 1.0) + 10.0 else "",
    )


def events(report: Report) -> str:
    """What happened, the newest first."""
    found = report.events[::-1]
    if not found:
        return ""
    kept, folded = found[:EVENTS_SHOWN], found[EVENTS_SHOWN:]
    parts = [_events(kept)]
    if folded:
        parts.append(f"<details><summary>{len(folded):,} earlier</summary>{_events(folded)}</details>")
    return "".join(parts)


def _events(found: Iterable[Event]) -> str:
    rows = ((time_of(event.time_s), text(event.what), clipped(happened(event))) for event in found)
    return table(("when", "what", ""), rows, label="events")


def process(report: Report) -> str:
    """Who was watched, and how."""
    told = [(name, clipped(value)) for name, value in facts(report)]
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{value}</dd>" for name, value in told)
    settings = "".join(
        f"<dt><code>{text(name)}</code></dt><dd>{clipped(value)}</dd>" for name, value in report.process.settings.items()
    )
    below = f"<details><summary>Settings</summary><dl>{settings}</dl></details>" if settings else ""
    return f"<dl>{rows}</dl>{below}"
