"""The law of states: total, and followed to the letter."""

from __future__ import annotations

import itertools

import pytest

from memwatch.model import STATES
from memwatch.trend.states import CALM, TABLE, Finding, Standing


def test_the_table_has_a_move_for_every_state_and_finding_and_no_other():
    assert set(TABLE) == set(itertools.product(STATES, Finding))
    assert {move.state for move in TABLE.values()} <= set(STATES)
    assert all(move.patience >= 1 for move in TABLE.values())


def test_every_state_can_be_reached_from_every_other():
    reached = {state: {state} for state in STATES}
    for _ in STATES:
        for (state, _finding), move in TABLE.items():
            for known in reached.values():
                if state in known:
                    known.add(move.state)
    assert all(known == set(STATES) for known in reached.values())


@pytest.mark.parametrize("state", STATES)
def test_a_restart_forgets_every_state(state):
    assert TABLE[state, Finding.RESTART].state == "warming-up"


@pytest.mark.parametrize("state", STATES)
def test_a_leak_is_called_from_every_state(state):
    assert TABLE[state, Finding.LEAK] == ("leaking", 1)


def test_only_proof_or_an_explanation_or_a_restart_ends_an_alarm():
    ends = {finding for finding in Finding if TABLE["leaking", finding].state != "leaking"}
    assert ends == {Finding.OVER, Finding.EXPLAINED, Finding.RESTART}


def test_growing_ends_only_after_a_row_of_calm_samples():
    standing = Standing()
    standing.meet(Finding.GROWTH)
    for _ in range(CALM - 1):
        assert not standing.meet(Finding.FLAT)
    assert standing.state == "growing"
    assert standing.meet(Finding.FLAT)
    assert standing.state == "stable"


def test_one_sample_of_growth_starts_the_row_anew():
    standing = Standing()
    standing.meet(Finding.GROWTH)
    for finding in [Finding.FLAT] * (CALM - 1) + [Finding.GROWTH] + [Finding.FLAT] * (CALM - 1):
        standing.meet(finding)
    assert standing.state == "growing"


@pytest.mark.parametrize(("state", "finding"), list(itertools.product(STATES, Finding)))
def test_a_channel_moves_as_the_table_says(state, finding):
    standing = Standing()
    standing.state = state
    move = TABLE[state, finding]
    for _ in range(move.patience - 1):
        assert not standing.meet(finding)
        assert standing.state == state
    assert standing.meet(finding) == (move.state != state)
    assert standing.state == move.state
