"""Allocation stacks for flame graphs: speedscope's JSON, and collapsed lines for flamegraph.pl, inferno and speedscope.

Law: a frame is a function with its file and line, the outermost first; a weight is bytes.  What has no stacks is an error that says
why, never an empty picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from memwatch.model import Evidence, Report, Suspect
from memwatch.report.layout import shown
from memwatch.report.words import moment, who

SCHEMA_URL = "https://www.speedscope.app/file-format-schema.json"
_FRAME = re.compile(r"(?P<file>.*?):(?P<line>\d{1,9})(?: +(?P<name>.*))?", re.DOTALL)


class NoStacks(ValueError):
    """The report has no allocation stacks; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a stack."""

    name: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """Stacks of one kind."""

    name: str
    kind: str
    """What its bytes are, in words that do not name the process."""
    stacks: tuple[tuple[tuple[Frame, ...], int], ...]
    """Frames, outermost first, and bytes."""


def render_speedscope(report: Report) -> str:
    """The stacks as a file for https://www.speedscope.app: a profile of the growth, and one of what is alive where a census has it.

    Raises:
        NoStacks: there are none.
    """
    numbered: dict[Frame, int] = {}
    drawn = []
    for profile in profiles(report):
        samples = [[numbered.setdefault(frame, len(numbered)) for frame in stack] for stack, _ in profile.stacks]
        weights = [weight for _, weight in profile.stacks]
        drawn.append(
            {
                "type": "sampled",
                "name": profile.name,
                "unit": "bytes",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    whole = {
        "$schema": SCHEMA_URL,
        "name": who(report),
        "exporter": "memwatch",
        "activeProfileIndex": 0,
        "shared": {"frames": [_plain(frame) for frame in numbered]},
        "profiles": drawn,
    }
    return json.dumps(whole, ensure_ascii=True, allow_nan=False) + "\n"


def _plain(frame: Frame) -> dict[str, Any]:
    known = {"name": frame.name, "file": frame.file, "line": frame.line}
    return {key: value for key, value in known.items() if value is not None}


def render_collapsed(report: Report) -> str:
    """The stacks of the growth (else of what is alive), one a line: `outer;…;inner bytes`.

    Raises:
        NoStacks: there are none.
    """
    total: dict[str, int] = {}
    for stack, weight in profiles(report)[0].stacks:
        line = ";".join(map(_collapsed, stack))
        total[line] = total.get(line, 0) + weight
    return "".join(f"{line} {weight}\n" for line, weight in total.items())


def _collapsed(frame: Frame) -> str:
    place = f" ({frame.file}:{frame.line})" if frame.file is not None else ""
    return f"{frame.name}{place}".replace(";", ",")  # which divides frames


def profiles(report: Report) -> list[Profile]:
    """The stacks of the growth, and of what is alive where a census has them.

    Raises:
        NoStacks: there are none.
    """
    found = [
        _profile(f"{title} of {who(report)}", title, item)
        for collector, title in (("sites", "growth"), ("native", "growth in C while these lines ran"))
        for item in report.evidence
        if item.collector == collector
    ]
    for census in reversed(report.censuses):
        when = f"{moment(census.time_s)} UTC"
        alive = [_profile(f"alive in {who(report)}, {when}", f"alive at {when}", item) for item in _sites(census.evidence)]
        if any(profile.stacks for profile in alive):
            found += alive
            break
    found = [profile for profile in found if profile.stacks]
    if not found:
        raise NoStacks(_why_none(report))
    return found


def _sites(evidence: tuple[Evidence, ...]) -> list[Evidence]:
    return [item for item in evidence if item.collector == "sites"]


def _why_none(report: Report) -> str:
    notes = "; ".join(shown(item.note) for item in _sites(report.evidence) if item.note)
    why = notes or "they are taken when growth is suspected, unless evidence is off"
    return f"there are no allocation stacks of {who(report)} to draw: {why}; --format text tells what is known"


def _profile(name: str, kind: str, evidence: Evidence) -> Profile:
    return Profile(name, kind, tuple(_stacks(evidence.suspects)))


def _stacks(suspects: tuple[Suspect, ...]) -> Iterator[tuple[tuple[Frame, ...], int]]:
    for suspect in suspects:
        if suspect.bytes is not None and suspect.bytes >= 1:  # a picture has no room for what shrank
            yield frames(suspect), int(suspect.bytes)


def frames(suspect: Suspect) -> tuple[Frame, ...]:
    """The stack of an allocation site, the outermost frame first."""
    return tuple(map(_frame, (*reversed(suspect.trail), suspect.label)))


def _frame(label: str) -> Frame:
    label = shown(label)
    parts = _FRAME.fullmatch(label)
    if parts is None or not parts["file"]:
        return Frame(label)
    return Frame(parts["name"] or parts["file"], parts["file"], int(parts["line"]))
