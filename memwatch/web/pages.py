"""The pages of the dashboard.

Law: pure; HTML from what was read.  No inline script and no inline style, so that the policy that forbids both holds.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from memwatch.model import Report
from memwatch.report import parts
from memwatch.report.curve import curves
from memwatch.report.drawing import as_script
from memwatch.report.html import page_data
from memwatch.report.words import status, who
from memwatch.web.assets import versioned
from memwatch.web.live import Content
from memwatch.web.reading import Seen
from memwatch.web.rows import COLUMNS, Row, address, errors, in_order, row, summary

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="{style}">{script}</head>
<body{attributes}>
<a class="skip" href="#main">To the content</a>
<header><span class="brand">memwatch</span>{nav}</header>
<main id="main">
{body}
</main>
<footer>{footer}</footer>
{data}</body></html>
"""
_LIVE = (
    '<p class="live-line" id="live" hidden><span class="dot" aria-hidden="true"></span> <span id="live-text">live</span> '
    '<button type="button" id="pause">Pause</button></p><p class="unseen" id="told" role="status"></p>'
)


def page(
    title: str,
    body: str,
    *,
    here: str = "",
    footer: str = "",
    attributes: Mapping[str, str] | None = None,
    data: str = "",
    leave: bool = False,
    links: bool = True,
) -> str:
    """One page.

    Args:
        here: the address of the page in the navigation.
        attributes: of the body.
        data: what the script draws, as JSON.
        leave: whether the reader has logged in, and may log out.
        links: whether there is a navigation.
    """
    places = (("/", "Processes"), ("/compare", "Compare"))
    items = "".join(f'<a href="{to}"{" aria-current=page" if to == here else ""}>{name}</a>' for to, name in places)
    out = '<form method="post" action="/logout" class="leave"><button>Log out</button></form>' if leave else ""
    return _PAGE.format(
        title=html.escape(title),
        style=versioned("memwatch.css"),
        script=f'<script src="{versioned("memwatch.js")}" defer></script>',
        attributes="".join(f' data-{name}="{html.escape(value)}"' for name, value in (attributes or {}).items()),
        nav=f'<nav aria-label="pages">{items}</nav>{out}' if links else "",
        body=body,
        footer=footer or "Read from the records of the processes; none of them is asked.",
        data=f'<script type="application/json" id="memwatch-data">{data}</script>\n' if data else "",
    )


def problem(status_code: int, title: str, detail: str, *, leave: bool = False, links: bool = True) -> str:
    """What is wrong with a request, and what to do."""
    body = f'<h1>{html.escape(title)}<small>{status_code}</small></h1><p class="headline">{parts.clipped(detail)}</p>'
    return page(f"{title} · memwatch", body, leave=leave, links=links)


def login(target: str, wrong: str = "") -> str:
    """Where the token is given."""
    said = f'<p class="critical" role="alert">{html.escape(wrong)}</p>' if wrong else ""
    body = (
        f'<h1>memwatch</h1>{said}<form method="post" action="/login" class="login">'
        f'<input type="hidden" name="next" value="{html.escape(target)}">'
        '<label for="token">Token</label><input id="token" name="token" type="password" autocomplete="current-password" '
        'required autofocus><button>Log in</button></form><p class="soft">It is the MEMWATCH_TOKEN that the '
        "dashboard was started with.</p>"
    )
    return page("Log in · memwatch", body, links=False, footer="memwatch")


# The fleet.


def fleet_content(seen: Sequence[Seen], problems: Sequence[str], *, is_complete: bool) -> tuple[Content, list[Row]]:
    """The parts of the fleet's page."""
    rows = [row(item) for item in seen]
    made = {"summary": summary(seen), "errors": errors(problems)} | {f"row:{item.name}": item.html for item in rows}
    return Content(made, is_complete), rows


def fleet(
    content: Mapping[str, str],
    rows: Sequence[Row],
    directory: Path,
    *,
    version: str,
    sort: str,
    order: str,
    wanted: str,
    leave: bool,
) -> str:
    """Every process: those that run, and below those that have ended."""
    chosen = [item for item in rows if all(word in item.words for word in wanted.lower().split())]
    running, ended = ([item for item in chosen if item.is_running is is_running] for is_running in (True, False))
    where = parts.clipped(str(directory))
    body = [f"<h1>Processes</h1>{_LIVE}", f'<div id="summary">{content["summary"]}</div>']
    empty = (
        '<div class="empty"><p class="headline">No process is watched yet.</p><p>Start one with <code>memwatch run -- python '
        "app.py</code> or call <code>memwatch.start()</code> in it; it appears here by itself. To see a leak found: "
        "<code>memwatch demo</code>.</p>"
        f'<p class="soft">Records are looked for in <code>{where}</code>.</p></div>'
    )
    body.append(f'<div id="empty"{" hidden" if rows else ""}>{empty}</div>')
    body.append(
        f'<form class="tools filter" role="search"{"" if rows else " hidden"}><label for="filter">Filter</label>'
        f'<input id="filter" name="q" type="search" value="{html.escape(wanted)}" placeholder="name, pid, state, label">'
        f'<input type="hidden" name="sort" value="{sort}"><input type="hidden" name="order" value="{order}">'
        '<button>Show</button><span class="soft" id="shown" role="status"></span></form>'
    )
    for name, title, found in (("running", "Running", running), ("ended", "Ended", ended)):
        hidden = "" if any(item.is_running is (name == "running") for item in rows) else " hidden"
        body.append(
            f'<section id="{name}" aria-labelledby="{name}-title"{hidden}><h2 id="{name}-title">{title}</h2>'
            f"{_table(name, in_order(found, sort, order), sort, order, wanted)}</section>"
        )
    body.append(f'<div id="errors">{content["errors"]}</div>')
    return page(
        "Processes · memwatch",
        "\n".join(body),
        here="/",
        footer=f"Read from the records in <code>{where}</code>; none of the processes is asked.",
        attributes={"live": "/events", "version": version, "sort": sort, "order": order},
        leave=leave,
    )


def _table(name: str, rows: Sequence[Row], sort: str, order: str, wanted: str) -> str:
    head, spark = [], '<th scope="col" class="spark">Memory over time</th>'
    for column, (title, first) in COLUMNS.items():
        if column == "left" and name == "ended":
            head.append(spark)
            continue
        here = column == sort
        following = ("asc" if order == "desc" else "desc") if here else first
        query = html.escape(_query(sort=column, order=following, q=wanted))
        said = f' aria-sort="{"descending" if order == "desc" else "ascending"}"' if here else ""
        arrow = f'<span aria-hidden="true">{" ▾" if order == "desc" else " ▴"}</span>' if here else ""
        number = " n" if column in ("rate", "rss", "left") else ""
        head.append(f'<th scope="col" class="{column}{number}"{said}><a href="/?{query}">{title}{arrow}</a></th>')
        if column == "left":
            head.append(spark)
    body = "".join(item.html for item in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="table of processes, {name}"><table class="fleet">'
        f"<thead><tr>{''.join(head)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _query(**given: str) -> str:
    return urlencode({name: value for name, value in given.items() if value})


# One process.


def process_content(name: str, report: Report) -> Content:
    """The parts of a process's page."""
    drawn = curves(report)
    made = parts.sections(report, drawn)
    links = "".join(f'<a href="#{section}">{parts.TITLES[section]}</a>' for section in made)
    found = {
        "title": f"{status(report.verdict)}: {who(report)[:120]} · memwatch",
        "state": f"{who(report)[:120]}: {status(report.verdict)}",
        "head": _head(name, report),
        "links": links,
    }
    found |= {f"section:{section}": parts.section(section, body) for section, body in made.items()}
    return Content(found | {"data": as_script(page_data(report, drawn))})


def _head(name: str, report: Report) -> str:
    here = html.escape(address(name))
    first = html.escape("/compare?" + _query(a=name, a_at="first", b=name, b_at="last"))
    labels = ", ".join(parts.text(f"{key}={value}"[:120]) for key, value in list(report.process.labels.items())[:8])
    formats = ", ".join(
        f'<a href="{here}/report.{kind}">{title}</a>' for kind, title in (("html", "page"), ("md", "Markdown"), ("json", "JSON"))
    )
    return (
        f"<h1>{parts.clipped(report.process.name)}<small>[{report.process.pid}]</small></h1>"
        f'<p class="soft">{f"{labels}. " if labels else ""}<a href="{first}">What has grown since the first sample</a>. '
        f"Report as {formats}.</p>"
    )


def process(name: str, content: Mapping[str, str], *, version: str, leave: bool) -> str:
    """One process: the sections of the report, live."""
    sections = "\n".join(body for part, body in content.items() if part.startswith("section:"))
    body = (
        f'<nav aria-label="sections" class="sections" id="links">{content["links"]}</nav>'
        f'<div id="head">{content["head"]}</div>{_LIVE}<div id="sections">{sections}</div>'
    )
    return page(
        content["title"],
        body,
        attributes={"live": f"{address(name)}/events", "version": version, "state": content["state"]},
        data=content["data"],
        leave=leave,
    )
