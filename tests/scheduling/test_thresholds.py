from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamexit.errors import BudgetError, PipelineError
from streamexit.exits import ALWAYS, NEVER
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.shares import GeometricShares, tilt_to_budget
from streamexit.scheduling.thresholds import (
    ThresholdTable,
    build_table,
    exits_taken,
    logit,
    solve_thresholds,
    spread_ties,
    thresholds_within,
)

COSTS = (0.25, 0.6, 1.0)


def realised(scores: Floats, thresholds: Floats) -> list[int]:
    """Frames per exit."""
    taken = exits_taken(scores, thresholds)
    return [int((taken == k).sum()) for k in range(scores.shape[1])]


def test_worked_case() -> None:
    """Of six frames the two best leave first, then two of the other four, then the rest."""
    scores = np.array([[0.9, 0], [0.8, 0], [0.1, 0.9], [0.2, 0.3], [0.3, 0.8], [0.4, 0.1]])
    scores = np.hstack([scores, np.zeros((6, 1))])
    thresholds = solve_thresholds(scores, np.array([2, 2, 2]) / 6)
    assert thresholds.tolist() == [0.8, 0.8, ALWAYS]
    assert exits_taken(scores, thresholds).tolist() == [0, 0, 1, 2, 1, 2]


def test_nobody_and_everybody() -> None:
    """A share of nothing is "never", a share of all is "always"."""
    scores = np.array([[1.0, 1.0], [0.5, 1.0]])
    assert solve_thresholds(scores, np.array([0.0, 1.0]))[0] == NEVER
    assert solve_thresholds(scores, np.array([1.0, 0.0]))[0] == ALWAYS


def test_nan_never_leaves_early() -> None:
    """A frame whose score is NaN goes to the last exit, which always accepts."""
    scores = np.full((4, 3), np.nan)
    thresholds = solve_thresholds(scores, np.array([0.5, 0.25, 0.25]))
    assert exits_taken(scores, thresholds).tolist() == [2, 2, 2, 2]


distinct = st.integers(4, 60).flatmap(
    lambda n: st.permutations(range(n)).flatmap(
        lambda a: st.permutations(range(n)).map(lambda b: np.array([a, b, a]).T / n)
    )
)
simplex = arrays(float, 3, elements=st.floats(0.01, 1)).map(lambda x: x / x.sum())


@given(scores=distinct, shares=simplex)
def test_shares_are_met_to_one_frame(scores: Floats, shares: Floats) -> None:
    """Without ties, the cumulative number of frames gone is right to one frame at each exit."""
    counts = np.cumsum(realised(scores, solve_thresholds(scores, shares)))
    assert np.all(np.abs(counts - np.cumsum(shares) * len(scores)) <= 1)


anything = arrays(
    float,
    st.tuples(st.integers(3, 40), st.just(3)),
    elements=st.one_of(st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]), st.floats(0, 1)),
)


@given(scores=anything, shares=simplex)
def test_every_frame_leaves_somewhere(scores: Floats, shares: Floats) -> None:
    """Ties, NaN and infinities included, each frame has exactly one exit."""
    thresholds = solve_thresholds(scores, shares)
    assert thresholds[-1] == ALWAYS
    assert not np.isnan(thresholds).any()
    assert sum(realised(scores, thresholds)) == len(scores)


def test_ties_go_the_nearer_way() -> None:
    """Three of four equal scores wanted: all leave; one of four wanted: none leaves."""
    scores = np.array([[0.5, 0.0]] * 4)
    assert realised(scores, solve_thresholds(scores, np.array([0.75, 0.25]))) == [4, 0]
    assert realised(scores, solve_thresholds(scores, np.array([0.25, 0.75]))) == [0, 4]


@given(budget=st.floats(0.26, 0.99))
def test_geometric_shares_cost_the_budget(budget: float) -> None:
    """Bisection finds the q whose mean cost is the budget, and the shares are geometric."""
    shares = GeometricShares(COSTS).shares(budget)
    assert shares.sum() == pytest.approx(1)
    assert shares @ np.array(COSTS) == pytest.approx(budget, abs=1e-9)
    assert shares[1] ** 2 == pytest.approx(shares[0] * shares[2], abs=1e-9)


def test_tilt_leaves_fitting_shares_alone() -> None:
    """Shares that already cost the budget are not changed."""
    shares, costs = np.array([0.5, 0.3, 0.2]), np.array(COSTS)
    assert tilt_to_budget(shares, costs, float(shares @ costs)) == pytest.approx(shares)


SCORES = np.random.default_rng(0).random((500, 3))
TABLE = build_table(
    SCORES, COSTS, [GeometricShares(COSTS).shares(b) for b in np.linspace(0.28, 0.97, 17)]
)


def test_exit_that_nobody_reaches_stays_open_for_later_rows() -> None:
    """A row in which all have left before exit 2 does not close exit 2 for dearer rows."""
    scores = np.random.default_rng(0).random((1000, 4))
    rows = [np.array([0.5, 0.5, 0, 0]), np.array([0.2, 0.3, 0.3, 0.2])]
    table = build_table(scores, (0.2, 0.4, 0.7, 1.0), rows)
    assert table.shares[1] == pytest.approx((0.2, 0.3, 0.3, 0.2), abs=0.002)


def test_first_row_in_which_all_leave_at_once_changes_nothing() -> None:
    """Rounding may put a row at the first exit's cost just above it; the others stay as they are."""
    scores = np.random.default_rng(0).random((1000, 3))
    costs = (0.2, 0.4, 1.0)
    rows = [np.array([1.0, 0, 0]), np.array([0.5, 0.3, 0.2])]
    table = build_table(scores, costs, rows)
    assert table.shares[-1] == pytest.approx((0.5, 0.3, 0.2), abs=0.002)


@given(u=st.floats(0, 1.2), v=st.floats(0, 1.2))
def test_smaller_budget_never_raises_a_threshold(u: float, v: float) -> None:
    """The table is monotone over the whole range, ends included."""
    low, high = TABLE.at(min(u, v)), TABLE.at(max(u, v))
    assert all(a <= b for a, b in zip(low, high, strict=True))


def test_ends_force_the_extremes() -> None:
    """At the lower end all leave at once, at the upper end none before the last."""
    assert TABLE.at(0.25) == (ALWAYS, ALWAYS, ALWAYS)
    assert TABLE.at(1.0) == (NEVER, NEVER, ALWAYS)


@pytest.mark.parametrize("u", [0.35, 0.5, 0.7, 0.9])
def test_coordinate_is_the_mean_cost(u: float) -> None:
    """Frozen thresholds of coordinate u cost u on the calibration data."""
    taken = exits_taken(SCORES, np.array(TABLE.at(u)))
    assert np.array(COSTS)[taken].mean() == pytest.approx(u, abs=0.015)


def test_rows_must_fit_the_costs() -> None:
    """A table whose rows do not match the exits is refused."""
    with pytest.raises(PipelineError, match="3 exits"):
        ThresholdTable(COSTS, (0.5,), ((0.5,),), ((0.5, 0.3, 0.2),))


@pytest.mark.parametrize(
    ("budgets", "thresholds", "shares", "expected"),
    [
        ((0.5,), ((0.5, 0.5),), (), "differ in length"),
        ((0.5,), (), ((0.5, 0.3, 0.2),), "differ in length"),
        ((0.5,), ((0.5, 0.5),), ((0.5, 0.5),), "3 exits"),
        ((0.5, 0.5), ((0.5, 0.5),) * 2, ((0.5, 0.3, 0.2),) * 2, r"inside 0\.25\.\.1"),
        ((0.25,), ((0.5, 0.5),), ((0.5, 0.3, 0.2),), "rise strictly"),
        ((1.0,), ((0.5, 0.5),), ((0.5, 0.3, 0.2),), "rise strictly"),
    ],
)
def test_a_table_must_be_whole_and_rise(
    budgets: tuple[float, ...],
    thresholds: tuple[tuple[float, ...], ...],
    shares: tuple[tuple[float, ...], ...],
    expected: str,
) -> None:
    """Rows that are missing, too short, or out of order would be read as other thresholds."""
    with pytest.raises(PipelineError, match=expected):
        ThresholdTable(COSTS, budgets, thresholds, shares)


BY_HAND = ThresholdTable(
    COSTS, (0.4, 0.7), ((0.3, 0.4), (0.8, 0.9)), ((0.75, 0.0, 0.25), (0.25, 0.375, 0.375))
)


def test_a_table_read_by_hand() -> None:
    """Halfway between two rows shares are their mean, and thresholds the mean of their logits."""
    assert BY_HAND.at(0.4) == pytest.approx((0.3, 0.4, ALWAYS))
    assert BY_HAND.shares_at(0.55) == pytest.approx((0.5, 0.1875, 0.3125))
    assert BY_HAND.leaving_share(0.55, 0) == pytest.approx(0.5)
    assert BY_HAND.leaving_share(0.55, 1) == pytest.approx(0.1875 / 0.5)
    assert logit(BY_HAND.threshold(0.55, 1)) == pytest.approx((logit(0.4) + logit(0.9)) / 2)
    assert BY_HAND.shares_at(0.1) == BY_HAND.shares_at(0.25) == (1.0, 0.0, 0.0)
    assert BY_HAND.shares_at(1.0) == BY_HAND.shares_at(2.0) == (0.0, 0.0, 1.0)


def test_where_nobody_comes_all_would_leave() -> None:
    """At the first exit's cost nobody reaches the second; whoever came would leave there."""
    assert BY_HAND.leaving_share(0.25, 1) == 1.0


def test_other_costs_keep_the_thresholds() -> None:
    """Held in milliseconds, a row's budget is the mean of its shares' milliseconds."""
    costs = (0.5, 0.8, 1.0)
    other = BY_HAND.costing(costs)
    assert other.fractions == costs
    assert other.thresholds == BY_HAND.thresholds
    assert other.shares == BY_HAND.shares
    assert other.budgets == pytest.approx((0.75 * 0.5 + 0.25, 0.25 * 0.5 + 0.375 * 1.8))


def test_rows_that_other_costs_make_worthless_are_left_out() -> None:
    """Where the dearer row costs no more, or nothing above the first exit, it is not in the table."""
    rows = ((0.4, 0.6, 0.0), (0.5, 0.0, 0.5))
    falling = ThresholdTable(COSTS, (0.46, 0.625), ((0.3, 0.3), (0.5, 0.5)), rows)
    assert falling.costing((0.25, 0.9, 1.0)).shares == rows[:1]
    level = ThresholdTable(
        COSTS, (0.4, 0.5), ((0.3, 0.3), (0.5, 0.5)), ((0.5, 0.25, 0.25), (0.5, 0.25, 0.25))
    )
    assert level.costing((0.5, 0.75, 1.0)).budgets == (0.6875,)
    first = ThresholdTable(COSTS, (0.3,), ((0.3, 0.3),), ((1.0, 0.0, 0.0),))
    assert first.costing(COSTS).budgets == ()


def test_costs_of_another_network_are_refused() -> None:
    """A table for three exits says nothing of two."""
    with pytest.raises(PipelineError, match="made for 3 exits, not for 2"):
        BY_HAND.costing((0.5, 1.0))


def test_a_budget_below_the_first_exit_is_refused() -> None:
    """Every frame goes through the first stage, whatever the thresholds."""
    scores = np.full((4, 3), 0.5)
    for budget in (0.24, float("nan")):
        with pytest.raises(BudgetError, match=r"out of reach; .* costs 0\.25"):
            thresholds_within(TABLE, scores, budget)
    assert realised(scores, thresholds_within(TABLE, scores, 0.25)) == [4, 0, 0]


def test_a_budget_that_can_be_spent_to_the_last_is() -> None:
    """Where thresholds cost exactly the budget, cheaper ones are not taken."""
    scores = np.array([[0.9, 0.0, 0.0], [0.1, 0.0, 0.0]])
    two = ThresholdTable((0.5, 0.75, 1.0), (0.75,), ((0.5, 0.5),), ((0.5, 0.0, 0.5),))
    assert realised(scores, thresholds_within(two, scores, 0.75)) == [1, 0, 1]


def test_spread_scores_stay_away_from_the_ends() -> None:
    """A score of 0 or 1 still has a logit that tells it from others of its kind."""
    index = np.arange(200_000.0)
    for k in range(3):
        lowest, highest = (
            spread_ties(np.zeros(200_000), k, index),
            spread_ties(np.ones(200_000), k, index),
        )
        assert lowest.min() > 0.49e-6
        assert highest.max() < 1 - 0.49e-6


def test_logits_end_where_scores_do() -> None:
    """A score nearer to 0 or 1 than float32 can say counts as the end itself."""
    assert logit(0.0) == logit(1e-12) == -17.0
    assert logit(1.0) == logit(1 - 1e-12) == 17.0
    assert logit(0.5) == 0.0


def test_nan_leaves_where_all_leave() -> None:
    """At an exit that lets everybody go, a frame without a score goes too."""
    scores = np.array([[np.nan, 0.9, 0.0], [0.2, np.nan, 0.0]])
    assert exits_taken(scores, np.array([ALWAYS, ALWAYS, ALWAYS])).tolist() == [0, 0]
    assert exits_taken(scores, np.array([0.5, ALWAYS, ALWAYS])).tolist() == [1, 1]
    assert exits_taken(scores, np.array([0.5, 0.5, ALWAYS])).tolist() == [1, 2]


def test_a_dearer_row_that_lets_more_leave_early_is_held_up() -> None:
    """Its shares ask for a lower threshold at the first exit; it keeps the one of the row before."""
    rows = [np.array([0.3, 0.6, 0.1]), np.array([0.5, 0.0, 0.5])]
    table = build_table(np.random.default_rng(0).random((1000, 3)), COSTS, rows)
    cheap, dear = table.thresholds
    assert dear[0] == cheap[0]
    assert dear[1] > cheap[1]
    assert table.shares[1][0] == pytest.approx(0.3, abs=0.002)
