from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamexit.budget.ledger import WindowLedger


def test_a_reservation_worked_by_hand() -> None:
    """In windows of three, each frame half a unit below its budget, one may use what three spared."""
    ledger = WindowLedger(3)
    ledger.enter(0, -0.5)
    assert not ledger.reserve(0, 0.75)  # the beginning counts as a window of its own
    assert ledger.reserve(0, 0.5)
    ledger.enter(1, -0.5)
    ledger.enter(2, -0.5)
    assert not ledger.reserve(2, 1.25)
    assert ledger.reserve(2, 1.0)
    assert not ledger.reserve(1, 0.01)  # the window that ends with frame 2 is full


def test_what_was_spent_comes_back_when_it_leaves_the_window() -> None:
    """And what was spared goes with it: nothing is saved up beyond the window."""
    ledger = WindowLedger(2)
    ledger.enter(0, -0.5)
    ledger.enter(1, -0.5)
    assert ledger.reserve(1, 1.0)
    ledger.enter(2, -0.5)
    assert not ledger.reserve(2, 0.25)  # frame 1 is still in it
    ledger.enter(3, -0.5)
    assert ledger.reserve(3, 1.0)  # frames 2 and 3
    for seq in range(4, 50):
        ledger.enter(seq, -0.5)
    assert not ledger.reserve(49, 1.25)


def test_a_frame_that_has_left_its_window_reserves_nothing() -> None:
    """Its place belongs to another frame by then."""
    ledger = WindowLedger(3)
    for seq in range(4):
        ledger.enter(seq, -0.5)
    assert not ledger.reserve(0, 0.25)
    assert ledger.reserve(1, 0.25)


def test_frames_from_before_the_first_reserve_nothing() -> None:
    """What they spared under other terms must not be spent under these."""
    ledger = WindowLedger(3, first=10)
    ledger.enter(10, -0.5)
    ledger.enter(11, -0.5)
    assert not ledger.reserve(9, 0.25)
    assert ledger.reserve(10, 0.5)


def test_another_budget_worked_by_hand() -> None:
    """Two units overspent in the last two of three frames are owed until they leave the window."""
    ledger = WindowLedger(3)
    for seq in range(3):
        ledger.enter(seq, -1.0)
    assert ledger.reserve(2, 3.0)  # the last frame alone is 2 above its budget, all three 0
    ledger = ledger.under_another_budget(3)
    ledger.enter(3, -0.5)  # with the two before: 1 - 0.5
    assert not ledger.reserve(3, 0.1)
    ledger.enter(4, -0.5)  # with the one before: 2 - 0.5 - 0.5
    assert not ledger.reserve(4, 0.1)
    ledger.enter(5, -0.5)
    assert ledger.reserve(5, 1.5)


def test_what_was_spared_under_another_budget_is_not_spent() -> None:
    """Frames behind a change cost at most their budget among themselves."""
    ledger = WindowLedger(3)
    for seq in range(3):
        ledger.enter(seq, -1.0)
    ledger = ledger.under_another_budget(3)
    ledger.enter(3, -0.5)
    assert not ledger.reserve(3, 0.6)
    assert ledger.reserve(3, 0.5)
    assert not ledger.reserve(2, 0.1)  # it came before the change


FIRST = 0.25
"""Cost of the first exit."""


@settings(max_examples=200)
@given(
    chance=st.randoms(use_true_random=False),
    window=st.integers(1, 12),
    every=st.integers(1, 20),
    budgets=st.lists(st.floats(FIRST, 1.0), min_size=1, max_size=6),
)
def test_no_window_costs_more_than_its_largest_budget(
    chance: random.Random, window: int, every: int, budgets: list[float]
) -> None:
    """Whenever the budget changes, and whichever frames ask for more; each beginning keeps its own."""
    ledger, begun = WindowLedger(window), 0
    allowed: list[float] = []
    costs: list[float] = []
    for seq in range(120):
        if seq and seq % every == 0:
            ledger, begun = ledger.under_another_budget(window), seq
        allowed.append(budgets[seq // every % len(budgets)])
        costs.append(FIRST)
        ledger.enter(seq, FIRST - allowed[seq])
        for asks in chance.choices(range(max(0, seq - window), seq + 1), k=3):
            more = chance.choice([0.05, 0.35, 0.75])
            if costs[asks] + more <= 1.0 and ledger.reserve(asks, more):
                costs[asks] += more
        assert sum(costs[begun:]) <= sum(allowed[begun:]) + 1e-6
        last = slice(max(0, seq + 1 - window), seq + 1)
        assert sum(costs[last]) <= len(costs[last]) * max(allowed[last]) + 1e-6


@pytest.mark.parametrize(("window", "owed"), [(2, 2), (5, 0)])
def test_another_window_takes_over_what_it_knows(window: int, owed: int) -> None:
    """A shorter one the latest frames, a longer one all there are."""
    ledger = WindowLedger(3)
    for seq in range(3):
        ledger.enter(seq, -1.0)
    assert ledger.reserve(2, 3.0)
    ledger = ledger.under_another_budget(window)
    for seq in range(3, 3 + owed):
        ledger.enter(seq, -0.5)
        assert ledger.reserve(seq, 0.5) == (seq == 2 + owed)
    ledger.enter(3 + owed, -0.5)
    assert not ledger.reserve(3 + owed, 0.6)
    assert ledger.reserve(3 + owed, 0.5)
