"""The law of states: what a channel's state becomes, given what the window tests found.

Law: `TABLE` is total (every state x every finding) and is the only place where a state changes.  A move with a patience
above 1 happens when the same finding came that many samples in a row: that is the hysteresis.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from memwatch.model import State


class Finding(Enum):
    """What the window tests of one channel say together, at one sample."""

    SHORT = "too few samples to say anything"
    FLAT = "no growth that matters, or growth with a harmless explanation"
    GROWTH = "growth that may become a leak"
    LEAK = "growth that passed every test, twice"
    OVER = "the growth of the last alarm has stopped or was given back"
    EXPLAINED = "somebody who can see inside says that the growth is bounded"
    RESTART = "another process answers under this name"


class Move(NamedTuple):
    state: State
    patience: int = 1
    """Samples in a row with the finding before the move is made."""


CALM = 8
"""Samples without growth before `growing` or `recovering` ends: one block of the shortest window (guess)."""

_F = Finding
TABLE: Mapping[tuple[State, Finding], Move] = {
    # state          finding        next state, patience
    ("warming-up", _F.SHORT): Move("warming-up"),
    ("warming-up", _F.FLAT): Move("stable"),
    ("warming-up", _F.GROWTH): Move("growing"),
    ("warming-up", _F.LEAK): Move("leaking"),
    ("warming-up", _F.OVER): Move("warming-up"),
    ("warming-up", _F.EXPLAINED): Move("warming-up"),
    ("warming-up", _F.RESTART): Move("warming-up"),
    #
    ("stable", _F.SHORT): Move("stable"),
    ("stable", _F.FLAT): Move("stable"),
    ("stable", _F.GROWTH): Move("growing"),
    ("stable", _F.LEAK): Move("leaking"),
    ("stable", _F.OVER): Move("stable"),
    ("stable", _F.EXPLAINED): Move("stable"),
    ("stable", _F.RESTART): Move("warming-up"),
    #
    ("growing", _F.SHORT): Move("growing"),
    ("growing", _F.FLAT): Move("stable", CALM),
    ("growing", _F.GROWTH): Move("growing"),
    ("growing", _F.LEAK): Move("leaking"),
    ("growing", _F.OVER): Move("stable", CALM),
    ("growing", _F.EXPLAINED): Move("stable"),
    ("growing", _F.RESTART): Move("warming-up"),
    # Only proof that the growth has ended ends an alarm; a window that fails a test once does not.
    ("leaking", _F.SHORT): Move("leaking"),
    ("leaking", _F.FLAT): Move("leaking"),
    ("leaking", _F.GROWTH): Move("leaking"),
    ("leaking", _F.LEAK): Move("leaking"),
    ("leaking", _F.OVER): Move("recovering"),
    ("leaking", _F.EXPLAINED): Move("stable"),
    ("leaking", _F.RESTART): Move("warming-up"),
    # A new alarm needs new growth above the level of the old one (`judge.Floor`), which LEAK already contains.
    ("recovering", _F.SHORT): Move("recovering"),
    ("recovering", _F.FLAT): Move("stable", CALM),
    ("recovering", _F.GROWTH): Move("recovering"),
    ("recovering", _F.LEAK): Move("leaking"),
    ("recovering", _F.OVER): Move("recovering"),
    ("recovering", _F.EXPLAINED): Move("stable"),
    ("recovering", _F.RESTART): Move("warming-up"),
}


class Standing:
    """One channel's state, moved by `TABLE` alone."""

    __slots__ = ("_finding", "_run", "state")

    def __init__(self) -> None:
        self.state: State = "warming-up"
        self._finding: Finding | None = None
        self._run = 0

    def meet(self, finding: Finding) -> bool:
        """Take one finding; return whether the state changed."""
        self._run = self._run + 1 if finding is self._finding else 1
        self._finding = finding
        move = TABLE[self.state, finding]
        if move.state == self.state or self._run < move.patience:
            return False
        self.state = move.state
        return True
