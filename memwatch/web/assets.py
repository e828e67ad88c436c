"""The style and the script of the dashboard: those of the report, with what only a live page needs.

Law: pure; each is addressed by its content, so that a browser keeps it for ever and never has an old one.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

from memwatch.report.html import script, style

TYPES = {"memwatch.css": "text/css; charset=utf-8", "memwatch.js": "text/javascript; charset=utf-8"}


@cache
def content(name: str) -> bytes:
    """An asset by its name, one of `TYPES`."""
    ours = files("memwatch.web").joinpath("static", name.replace("memwatch", "dashboard")).read_text(encoding="utf-8")
    return f"{style() if name == 'memwatch.css' else script()}\n{ours}".encode()


@cache
def digest(name: str) -> str:
    """What tells one content of it from another."""
    return hashlib.sha256(content(name)).hexdigest()[:16]


def versioned(name: str) -> str:
    """Its address."""
    return f"/assets/{digest(name)}/{name}"
