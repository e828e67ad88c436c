"""One visual language: the same colour for the same state and the same channel wherever memwatch draws.

Law: a colour never stands alone; a word or a dash says the same.  The hues are those of Okabe and Ito (Color Universal Design,
2008), which people of any colour vision tell apart, darkened on light ground and lightened on dark ground until text in them has a
contrast of 4.5 to 1 (WCAG 2.2, 1.4.3) and lines one of 3 to 1 (1.4.11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memwatch.model import State


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour on light and on dark ground."""

    light: str
    dark: str


STATE_COLOURS: Mapping[State, Colour] = {
    "leaking": Colour("#b3360b", "#ff8a5b"),
    "growing": Colour("#8a5a00", "#f2b84b"),
    "recovering": Colour("#00677a", "#6ccbe0"),
    "warming-up": Colour("#2f56ad", "#9db7ff"),
    "stable": Colour("#006b4c", "#4ccb9f"),
}
STATE_TERMINAL: Mapping[State, str] = {
    "leaking": "red",
    "growing": "yellow",
    "recovering": "cyan",
    "warming-up": "blue",
    "stable": "green",
}
"""The same states in the sixteen colours of a terminal."""


@dataclass(frozen=True, slots=True)
class Stroke:
    """How the line of a channel is drawn."""

    colour: Colour
    dash: tuple[int, ...] = ()
    """Pixels drawn and left out; empty is a solid line."""


OTHER = Stroke(Colour("#5b6270", "#a9b1bf"), (2, 3))
"""A channel without a stroke of its own."""
STROKES: Mapping[str, Stroke] = {
    "rss": Stroke(Colour("#0072b2", "#56b4e9")),
    "heap": Stroke(Colour("#c24f00", "#f0883e"), (8, 3)),
    "native": Stroke(Colour("#a0458f", "#dda0d0"), (3, 3)),
    "retained": Stroke(Colour("#008560", "#2cc99a"), (9, 3, 2, 3)),
    "limit": Stroke(Colour("#3a3f47", "#c9ced6"), (2, 4)),
    "fds": Stroke(Colour("#0072b2", "#56b4e9")),
    "sockets": Stroke(Colour("#c24f00", "#f0883e"), (8, 3)),
    "threads": Stroke(Colour("#a0458f", "#dda0d0"), (3, 3)),
    "tasks": Stroke(Colour("#008560", "#2cc99a"), (9, 3, 2, 3)),
    "children": Stroke(Colour("#3a3f47", "#c9ced6"), (2, 4)),
}
STROKE_TERMINAL: Mapping[str, str] = {
    "rss": "bright_blue",
    "heap": "yellow",
    "native": "magenta",
    "retained": "green",
    "fds": "bright_blue",
    "sockets": "yellow",
    "threads": "magenta",
    "tasks": "green",
}
"""The nearest of the sixteen colours of a terminal; a channel that is not named here has the colour of the text."""


def stroke(channel: str) -> Stroke:
    """How *channel* is drawn."""
    return STROKES.get(channel, OTHER)
