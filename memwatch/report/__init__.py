"""Reports as people and programs read them: report -> str, and nothing else.

Law: pure; no clock, terminal, colour or file.  No fact is dropped silently, no line is wider than asked for, and text that
came from a watched process is shown as text, never obeyed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from memwatch.model import Report
from memwatch.report.curve import NothingToDraw
from memwatch.report.layout import shown
from memwatch.report.markdown import render_markdown
from memwatch.report.proof import brief
from memwatch.report.stacks import NoStacks, render_collapsed, render_speedscope
from memwatch.report.text import WIDTH, render_text
from memwatch.report.words import headline

__all__ = ["FORMATS", "WIDTH", "NoStacks", "NothingToDraw", "brief", "headline", "render", "shown", "without_infinities"]


def render(report: Report, format: str = "text", *, width: int = WIDTH) -> str:
    """Render a report; the result ends with a newline.

    Args:
        format: one of `FORMATS`.
        width: columns of a text report, at least 40; the other formats have no lines to break.

    Raises:
        ValueError: the format is not known; the message lists those that are.
        NoStacks: *format* is `speedscope` or `collapsed`, and no allocation stacks were taken (a ValueError, too).
        NothingToDraw: *format* is `svg`, and fewer than two readings were kept (a ValueError, too).
    """
    if format == "text":
        return render_text(report, width=width)
    renderer = _RENDERERS.get(format)
    if renderer is None:
        raise ValueError(f"{format!r} is not a format of a report here; formats are {', '.join(FORMATS)}")
    return renderer(report)


def render_json(report: Report) -> str:
    """The report of schema 1 (docs/reference/cli.md).  Pure ASCII, so that no terminal or log reads a control sequence in it."""
    return json.dumps(without_infinities(report.to_dict()), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def render_html(report: Report) -> str:
    """The report as a page that needs nothing else."""
    from memwatch.report import html  # here and below: a watched process, which tells of leaks in text, has no use for it

    return html.render_html(report)


def render_svg(report: Report) -> str:
    """The curve as a picture.

    Raises:
        NothingToDraw: fewer than two readings were kept.
    """
    from memwatch.report import svg

    return svg.render_svg(report)


def without_infinities(value: Any) -> Any:
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return value


_RENDERERS: Mapping[str, Callable[[Report], str]] = {
    "json": render_json,
    "html": render_html,
    "markdown": render_markdown,
    "svg": render_svg,
    "speedscope": render_speedscope,
    "collapsed": render_collapsed,
}
FORMATS = ("text", *_RENDERERS)
