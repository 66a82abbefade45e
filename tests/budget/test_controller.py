from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamexit.budget.controller import DEBT_SHARE, BudgetController, Passage
from streamexit.budget.terms import Terms
from streamexit.errors import BudgetError
from streamexit.replay import worst_window_error
from streamexit.scheduling.shares import GeometricShares
from streamexit.scheduling.thresholds import ThresholdTable, build_table

COSTS = (0.25, 0.6, 1.0)


def make_table(seed: int = 0) -> ThresholdTable:
    """A table whose calibration scores are uniform."""
    scores = np.random.default_rng(seed).random((1000, 3))
    rows = [GeometricShares(COSTS).shares(b) for b in np.linspace(0.28, 0.97, 17)]
    return build_table(scores, COSTS, rows)


TABLE = make_table()
Scores = Callable[[int, int], float]


def play(controller: BudgetController, scores: Scores, frames: int) -> list[float]:
    """Costs of frames that are decided one after the other."""
    costs = []
    for i in range(frames):
        k, passage = 0, controller.enter(float(i))
        while not controller.leaves(passage, k, scores(i, k)):
            k += 1
        controller.answered(passage, k)
        costs.append(COSTS[k])
    return costs


def play_delayed(
    controller: BudgetController, scores: Scores, frames: int, delay: int
) -> list[float]:
    """The same when each stage waits until `delay` frames are there, as batching does."""
    costs = [0.0] * frames
    waiting: list[deque[tuple[int, Passage]]] = [deque(), deque(), deque()]

    def run(k: int) -> None:
        while waiting[k]:
            i, passage = waiting[k].popleft()
            if controller.leaves(passage, k, scores(i, k)):
                costs[i] = COSTS[k]
            else:
                waiting[k + 1].append((i, passage))

    for i in range(frames):
        waiting[0].append((i, controller.enter(float(i))))
        for k in range(3):
            if len(waiting[k]) >= delay or i == frames - 1:
                run(k)
    return costs


def bound(budget: float, window: int) -> float:
    """The docstring's."""
    limit = max(1.0, DEBT_SHARE * window * budget)
    return (2 * limit + COSTS[-1] - COSTS[0]) / window / budget


def uniform(seed: int) -> Scores:
    """Scores as in calibration."""
    values = np.random.default_rng(seed).random((5000, 3))
    return lambda i, k: float(values[i, k])


PATTERNS: dict[str, Scores] = {
    "as calibrated": uniform(1),
    "always sure": lambda i, k: 1.0,
    "never sure": lambda i, k: 0.0,
    "constant": lambda i, k: 0.5,
    "NaN": lambda i, k: float("nan"),
    "alternating extremes": lambda i, k: float(i % 2),
    "blocks": lambda i, k: float(i // 100 % 2),
    "drifting": lambda i, k: min(1.0, i / 3000 + 0.2 * uniform(2)(i, k)),
    "mostly sure": lambda i, k: 0.9 + 0.1 * uniform(3)(i, k),
}


@pytest.mark.parametrize("budget", [0.26, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_window_keeps_the_bound(pattern: str, budget: float) -> None:
    """Whatever the scores, any window's mean is within the proven bound of the budget."""
    costs = play(BudgetController(TABLE, Terms(budget)), PATTERNS[pattern], 3000)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= bound(budget, 300)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    budget=st.floats(0.255, 0.995),
    window=st.integers(20, 400),
    switch=st.integers(1, 200),
)
def test_adversary_cannot_break_the_bound(
    seed: int, budget: float, window: int, switch: int
) -> None:
    """Content that jumps between regimes at bad moments stays within the proven bound."""
    chance = random.Random(seed)
    levels = [chance.choice([0.0, 0.3, 0.5, 0.999, 1.0, float("nan")]) for _ in range(2000)]
    costs = play(
        BudgetController(TABLE, Terms(budget, window=window)),
        lambda i, k: levels[i // switch] if k == 0 else levels[(i // switch + k) % 2000],
        800,
    )
    worst = worst_window_error(costs, budget, window)
    assert worst is not None
    assert worst <= bound(budget, window) + 1e-9


@pytest.mark.parametrize("budget", [0.4, 0.5, 0.8])
@pytest.mark.parametrize("pattern", ["as calibrated", "mostly sure", "drifting"])
def test_late_stages_do_not_spoil_the_budget(pattern: str, budget: float) -> None:
    """With stages that wait for batches of 32, windows are within 5% and the whole within 0.5%."""
    controller = BudgetController(TABLE, Terms(budget))
    costs = play_delayed(controller, PATTERNS[pattern], 3000, delay=32)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= 0.05
    assert sum(costs) / len(costs) == pytest.approx(budget, rel=0.005)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_delay_costs_what_the_docstring_says(pattern: str, budget: float) -> None:
    """With up to 64 frames in flight beyond exit 1, the bound widens by their possible error."""
    costs = play_delayed(BudgetController(TABLE, Terms(budget)), PATTERNS[pattern], 2000, delay=32)
    worst = worst_window_error(costs, budget, 300)
    assert worst is not None
    assert worst <= bound(budget, 300) + 2 * 64 * (COSTS[2] - COSTS[1]) / 300 / budget


@pytest.mark.parametrize("pattern", ["as calibrated", "mostly sure", "never sure", "always sure"])
def test_cold_start_is_paid_back(pattern: str) -> None:
    """On a clip of 200 frames of unfamiliar content the mean is within 2% of the budget."""
    costs = play(BudgetController(TABLE, Terms(0.5)), PATTERNS[pattern], 200)
    assert sum(costs) / 200 == pytest.approx(0.5, rel=0.02)


def test_offset_does_not_remain_as_debt() -> None:
    """After a lasting change of content the debt returns to about zero, not to an offset."""
    controller = BudgetController(TABLE, Terms(0.5))
    play(controller, PATTERNS["mostly sure"], 3000)
    debts = []
    for i in range(300):
        play(controller, lambda _, k, i=i: PATTERNS["mostly sure"](i, k), 1)  # type: ignore[misc]
        debts.append(controller.status.debt)
    assert abs(float(np.mean(debts))) < 0.5


def test_unreachable_budget_does_not_wind_up() -> None:
    """Below the first exit's cost every frame leaves there, and no debt piles up."""
    controller = BudgetController(TABLE, Terms(0.1))
    assert set(play(controller, PATTERNS["as calibrated"], 500)) == {0.25}
    assert controller.status.state == "unreachable"
    assert controller.status.debt == 0


@pytest.mark.parametrize("budget", [1.0, 3.0])
def test_budget_that_does_not_bind(budget: float) -> None:
    """At the full cost or more every frame goes all the way."""
    controller = BudgetController(TABLE, Terms(budget))
    assert set(play(controller, PATTERNS["always sure"], 100)) == {1.0}
    assert controller.status.state == "not_binding"


def test_budget_at_the_first_exit() -> None:
    """Exactly the first exit's cost can be kept, and is."""
    controller = BudgetController(TABLE, Terms(0.25))
    costs = play(controller, PATTERNS["as calibrated"], 1000)
    assert sum(costs) / 1000 <= 0.25 * 1.02


def test_status_tells_the_window() -> None:
    """Mean, shares and count are over the last W frames; the version rises."""
    controller = BudgetController(TABLE, Terms(0.5, window=50))
    before = controller.status
    assert before.mean is None
    costs = play(controller, uniform(5), 120)
    status = controller.status
    assert status.frames == 50
    assert status.mean == pytest.approx(sum(costs[-50:]) / 50)
    assert sum(status.exit_shares) == pytest.approx(1)
    assert status.version > before.version
    assert status.state == "on_budget"


def test_broken_promise_is_owned_up_to() -> None:
    """While frames in flight turn out dearer than expected, the state says saturated."""
    controller = BudgetController(TABLE, Terms(0.5, window=50))
    passages: list[Passage] = [controller.enter(float(i)) for i in range(100)]
    scores = np.linspace(0.3, 0.7, 100)
    stayed = [
        p for p, score in zip(passages, scores, strict=True) if not controller.leaves(p, 0, score)
    ]
    for passage in stayed:
        assert controller.leaves(passage, 2, 0.0)
        controller.answered(passage, 2)
    assert controller.status.state == "saturated"


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_nonsense_budget_is_refused(budget: float) -> None:
    """A budget is a positive number."""
    with pytest.raises(BudgetError, match="positive number"):
        BudgetController(TABLE, Terms(budget))


def test_empty_window_is_refused() -> None:
    """A window has at least one frame."""
    with pytest.raises(BudgetError, match="at least 1 frame"):
        BudgetController(TABLE, Terms(0.5, window=0))


def test_single_exit_network() -> None:
    """With one exit there is nothing to decide."""
    table = ThresholdTable((1.0,), (), (), ())
    controller = BudgetController(table, Terms(1.0))
    passage = controller.enter(0.0)
    assert controller.leaves(passage, 0, 0.0)
    controller.answered(passage, 0)
    assert controller.status.state == "not_binding"


def test_window_error_worked_by_hand() -> None:
    """Means of three: 1/3, 2/3, 2/3, against a budget of a half."""
    assert worst_window_error([0, 0, 1, 1, 0], 0.5, 3) == pytest.approx(1 / 3)
    assert worst_window_error([1, 0], 0.5, 3) == 0
    assert worst_window_error([], 0.5, 3) is None
