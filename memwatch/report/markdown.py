"""The report as Markdown, for an issue, a merge request or a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from memwatch.model import Evidence, Report, Suspect
from memwatch.report.causes import known_causes
from memwatch.report.happenings import happened
from memwatch.report.layout import shown
from memwatch.report.proof import TRAILS, Row, gap, others, proof, shown_rows
from memwatch.report.text import COLLECTOR_TITLES, SUSPECTS_SHOWN, facts
from memwatch.report.usage import ROUTE_HEADER, blame, blamed_routes, cache_line, route_cells
from memwatch.report.words import (
    amount,
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
from memwatch.units import format_count, format_size

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$!])")


def render_markdown(report: Report) -> str:
    """Render a report as GitHub-flavoured Markdown; text from the process cannot add markup, links or mentions."""
    blocks = ["\n".join(block) for block in _blocks(report)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _blocks(report: Report) -> Iterator[list[str]]:
    word = status(report.verdict)
    rest = headline(report).removeprefix(f"{word}  {who(report)}").strip()
    yield [f"**{word}** {code(who(report))} {escaped(rest)}"]
    if report.verdict.reason and shown(report.verdict.reason) not in headline(report):
        yield [escaped(report.verdict.reason)]
    yield from _proof(report)
    cleared = not_the_cause(report)
    if cleared:
        yield [f"Not the cause: {escaped(', '.join(cleared))}"]
    channels = channels_in_order(report)
    if channels:
        yield _table(
            ("channel", "now" if report.process.fate == "running" else "last", "average", "peak", "rate", "state"),
            [
                (
                    title(name),
                    amount(name, summary.current),
                    "" if says_only_now(name) else amount(name, summary.average),
                    "" if says_only_now(name) else amount(name, summary.peak),
                    channel_pace(name, summary),
                    channel_state(summary),
                )
                for name, summary in channels
            ],
            right=(1, 2, 3, 4),
        )
    for evidence in report.evidence:
        yield from _evidence(evidence)
    if report.routes:
        yield from _routes(report)
    if report.caches:
        yield ["Caches:"]
        yield [f"- {code(cache_line(cache))}" for cache in report.caches]
    if report.events:
        yield [f"<details><summary>{len(report.events)} events</summary>"]
        yield _table(
            ("time (UTC)", "what", ""), [(moment(event.time_s), code(event.what), code(happened(event))) for event in report.events]
        )
        yield ["</details>"]
    yield [f"- {name}: {code(text)}" for name, text in facts(report)]
    yield [f"Fingerprint: `{report.fingerprint}`"]


def _routes(report: Report) -> Iterator[list[str]]:
    for row in blamed_routes(report.routes):
        yield [f"**Route:** {escaped(blame(row))}"]
    if report.routes_note and not blamed_routes(report.routes):
        yield [f"Which route it is cannot be told: {escaped(report.routes_note)}"]
    rows = [route_cells(row) for row in report.routes]
    yield _table(("route", *ROUTE_HEADER[1:]), [(code(row[0]), *row[1:]) for row in rows], right=range(1, len(ROUTE_HEADER)))


def _proof(report: Report) -> Iterator[list[str]]:
    found = proof(report)
    if found:
        yield [f"**{escaped(gap(report))}**"]
        kept, more = shown_rows(found)
        yield _table(
            ("share", "growth", "what", "from", "held by"),
            [
                (*_numbers(row.suspect), _what(row), _steps(row.collector, row.allocated), code(" → ".join(row.held)))
                for row in kept
            ],
            right=(0, 1),
        )
        if more:
            yield [f"… {escaped(more)}"]
    causes = known_causes(report)
    if causes:
        yield [f"- Known cause: {escaped(cause.sentence)} ([{escaped(cause.name)}]({cause.link}))" for cause in causes]


def _what(row: Row) -> str:
    return code(row.suspect.label if row.collector == "holders" else row.what)


def _numbers(suspect: Suspect) -> tuple[str, str]:
    return (
        "" if suspect.share is None else share_of(suspect.share),
        "" if suspect.bytes is None else format_size(suspect.bytes, sign=True),
    )


def _steps(collector: str, steps: tuple[str, ...]) -> str:
    _, arrow = TRAILS.get(collector, ("", " →"))
    return code((f"{arrow} " if arrow else ", ").join(steps))


def _evidence(evidence: Evidence) -> Iterator[list[str]]:
    name = COLLECTOR_TITLES.get(evidence.collector, evidence.collector)
    explained = f": {share_of(evidence.explains)} of the growth explained" if evidence.explains is not None else ""
    yield [f"**{escaped(name)}**{escaped(explained)}"]
    kept, left_out = evidence.suspects[:SUSPECTS_SHOWN], evidence.suspects[SUSPECTS_SHOWN:]
    if kept:
        word, _ = TRAILS.get(evidence.collector, ("trail", ""))
        yield _table(
            ("share", "growth", "count", "what", word),
            [
                (
                    *_numbers(suspect),
                    "" if suspect.count is None else format_count(suspect.count),
                    code(suspect.label),
                    _steps(evidence.collector, suspect.trail),
                )
                for suspect in kept
            ],
            right=(0, 1, 2),
        )
    if left_out:
        yield [f"… {escaped(others(left_out))}"]
    if evidence.note:
        yield [f"Note: {escaped(evidence.note)}"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return [_row(header), f"| {' | '.join(rule)} |", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    # A bar ends a cell even inside a code span; escaped, it is shown as a bare bar there too.
    kept = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(kept)} |"


def code(text: str) -> str:
    """Text from elsewhere as a code span: nothing in it marks up, links or mentions anybody."""
    text = shown(text)
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def escaped(text: str) -> str:
    """A sentence of ours as Markdown shows it unchanged."""
    return _SPECIAL.sub(r"\\\1", shown(text))
