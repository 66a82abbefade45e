from __future__ import annotations

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
