"""The report as one page that needs nothing else: no network, no other file, and no way to run what it shows.

Law: pure.  Its Content-Security-Policy allows exactly the style and the script that are in it, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from memwatch.model import Report
from memwatch.report import parts
from memwatch.report.curve import Curve, curves
from memwatch.report.drawing import as_script, curve_data, stack_data
from memwatch.report.palette import STATE_COLOURS
from memwatch.report.text import render_text
from memwatch.report.words import status, who

STYLES = ("uplot/uPlot.min.css", "memwatch.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "memwatch.js")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style></head>
<body>
<a class="skip" href="#{first}">To the content</a>
<header><span class="brand">memwatch</span><nav aria-label="sections">{links}</nav></header>
<main>
{body}
</main>
<footer>{footer}</footer>
{scripts}
</body></html>
"""
_FOOTER = """Made by memwatch from the record of the process; nothing is loaded when this page is opened. Curves are drawn by uPlot
(MIT, Leon Sorokin), whose licence is in this file."""


@cache
def asset(name: str) -> str:
    """A file that pages are made of, as text."""
    return files("memwatch.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def style() -> str:
    """The style of every page: one sheet, with the colours of the palette in it."""
    light = "".join(f"--{name}: {colour.light};" for name, colour in STATE_COLOURS.items())
    dark = "".join(f"--{name}: {colour.dark};" for name, colour in STATE_COLOURS.items())
    colours = f":root {{{light}}} @media (prefers-color-scheme: dark) {{ @media screen {{ :root {{{dark}}} }} }}\n"
    return colours + "\n".join(map(asset, STYLES))


@cache
def script() -> str:
    """The script of every page, with the licence of what is vendored in it."""
    licence = asset("uplot/LICENSE").replace("*/", "* /")
    return f"/* uPlot\n{licence}*/\n" + "\n".join(map(asset, SCRIPTS))


def page_data(report: Report, drawn: Mapping[str, Curve]) -> dict[str, Any]:
    """What the script of a page draws."""
    return {"curves": {name: curve_data(curve) for name, curve in drawn.items()}, "stacks": stack_data(report)}


def render_html(report: Report) -> str:
    """The report as one page.

    Cost: about 0.3 s for a day of readings every 10 s (bench/page.py).
    """
    drawn = curves(report)
    made = parts.sections(report, drawn)
    heading = f"<h1>{parts.clipped(report.process.name)}<small>[{report.process.pid}]</small></h1>\n"
    return document(
        f"{status(report.verdict)}: {who(report)[:120]} · memwatch",
        heading + "\n".join(parts.section(name, body) for name, body in made.items()),
        {name: parts.TITLES[name] for name in made},
        footer=_FOOTER,
        data=page_data(report, drawn),
    )


def document(
    title: str, body: str, links: Mapping[str, str], *, footer: str, extra_style: str = "", data: Mapping[str, Any] | None = None
) -> str:
    """A page that needs nothing else.

    Args:
        title: plain text, for the window.
        body: HTML.
        links: the ids of sections, and what they are called (plain text).
        footer: HTML.
        extra_style: what this page needs beyond the style of all.
        data: what the script draws; without it the page has no script.
    """
    styled = style() + extra_style
    allowed = f"default-src 'none'; style-src '{_hash(styled)}'"
    scripts = ""
    if data is not None:
        allowed += f"; script-src '{_hash(script())}'"
        scripts = f'<script type="application/json" id="memwatch-data">{as_script(data)}</script>\n<script>{script()}</script>'
    return _PAGE.format(
        policy=f"{allowed}; base-uri 'none'; form-action 'none'",
        title=html.escape(title),
        style=styled,
        first=next(iter(links), "top"),
        links="".join(f'<a href="#{name}">{html.escape(text)}</a>' for name, text in links.items()),
        body=body,
        footer=footer,
        scripts=scripts,
    )


def render_inline(report: Report) -> str:
    """The report within a notebook: no script, and a style that stays within it."""
    shown = ("verdict", "curve", "proof", "evidence")
    body = "".join(f"<div>{made}</div>" for name, made in parts.sections(report, curves(report)).items() if name in shown)
    whole = html.escape(render_text(report))
    return (
        f'<div class="memwatch-report"><style>{asset("notebook.css")}</style>{body}'
        f"<details><summary>The whole report</summary><pre>{whole}</pre></details></div>"
    )


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
