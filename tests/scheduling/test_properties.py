"""What holds for thresholds and tables whatever the scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from streamexit.exits import ALWAYS
from streamexit.scheduling.eenet import EENetShares
from streamexit.scheduling.evidence import Calibration, Floats
from streamexit.scheduling.methods import SHARE_RULES, RuleFit
from streamexit.scheduling.scorers import MaxProbability, score_all_exits
from streamexit.scheduling.search import SearchShares
from streamexit.scheduling.shares import GeometricShares, ShareRule
from streamexit.scheduling.thresholds import (
    SPREAD,
    ThresholdTable,
    build_table,
    exits_taken,
    solve_thresholds,
    spread_all,
    spread_ties,
    thresholds_within,
)
from tests.scheduling.samples import synthetic

COSTS = (0.25, 0.6, 1.0)
CUMULATIVE = np.array(COSTS)

few_values = st.sampled_from([0.0, 0.25, 0.5, 1.0])
unit = st.one_of(few_values, st.floats(0, 1, width=32))
odd = st.sampled_from([np.nan, np.inf, -np.inf])
shape = st.tuples(st.integers(3, 60), st.just(3))
in_range = arrays(float, shape, elements=unit)
anything = arrays(float, shape, elements=st.one_of(unit, odd))
holes = arrays(float, shape, elements=st.one_of(unit, st.just(np.nan)))
ordered = arrays(float, shape, elements=st.one_of(unit, st.sampled_from([np.inf, -np.inf])))
simplex = arrays(float, 3, elements=st.floats(0, 1)).filter(lambda x: x.sum() > 0.01)


def mean_cost(scores: Floats, thresholds: Floats) -> float:
    """On these frames, as a share of the full network's."""
    return float(CUMULATIVE[exits_taken(scores, thresholds)].mean())


def table_of(seed: int = 0) -> ThresholdTable:
    """A table from random scores and geometric shares."""
    scores = np.random.default_rng(seed).random((300, 3))
    return build_table(scores, COSTS, GeometricShares(COSTS).rows())


TABLE = table_of()


@given(scores=in_range, shares=simplex)
def test_shares_are_realised_to_one_frame(scores: Floats, shares: Floats) -> None:
    """With ties spread, every exit's cumulative share is right to one frame, ties or not."""
    spread, shares = spread_all(scores), shares / shares.sum()
    taken = exits_taken(spread, solve_thresholds(spread, shares))
    realised = np.cumsum(np.bincount(taken, minlength=3)) / len(scores)
    assert np.all(np.abs(realised - np.cumsum(shares)) <= 1 / len(scores) + 1e-12)


@given(scores=anything, shares=simplex)
def test_nan_leaves_only_where_all_leave(scores: Floats, shares: Floats) -> None:
    """Where its score is NaN a frame leaves at an exit that lets all pass only, as the last does."""
    spread = spread_all(scores)
    thresholds = solve_thresholds(spread, shares / shares.sum())
    assert not np.isnan(thresholds).any()
    taken = exits_taken(spread, thresholds)
    unsure = np.isnan(spread[np.arange(len(taken)), taken])
    assert np.all(thresholds[taken[unsure]] == ALWAYS)


@given(scores=holes, shares=simplex)
@example(scores=np.array([[np.nan, 0.5, 0.5]] * 3), shares=np.array([1.0, 0.0, 0.0]))
def test_what_nan_holds_back_leaves_at_the_next_exit(scores: Floats, shares: Floats) -> None:
    """Fewer than wanted have left by an exit only if the score of all that stay is NaN there."""
    spread, shares = spread_all(scores), shares / shares.sum()
    taken = exits_taken(spread, solve_thresholds(spread, shares))
    wanted = np.rint(np.cumsum(shares) * len(scores))
    for k in range(2):
        if (taken <= k).sum() < wanted[k]:
            assert np.isnan(spread[taken > k, k]).all()


@given(scores=ordered, u=st.floats(0, 1.2), v=st.floats(0, 1.2))
def test_smaller_coordinate_never_costs_more(scores: Floats, u: float, v: float) -> None:
    """On any frames the thresholds of a smaller table coordinate cost no more."""
    spread = spread_all(scores)
    low, high = (np.array(TABLE.at(x)) for x in sorted((u, v)))
    assert mean_cost(spread, low) <= mean_cost(spread, high) + 1e-12


@given(scores=ordered, one=st.floats(0.25, 1.1), other=st.floats(0.25, 1.1))
def test_smaller_budget_never_costs_more(scores: Floats, one: float, other: float) -> None:
    """On any frames the thresholds within a smaller budget cost no more."""
    spread = spread_all(scores)
    low, high = (thresholds_within(TABLE, spread, x) for x in sorted((one, other)))
    assert mean_cost(spread, low) <= mean_cost(spread, high) + 1e-12


@given(scores=ordered, budget=st.floats(0.25, 1.1))
def test_thresholds_within_a_budget_stay_within_it(scores: Floats, budget: float) -> None:
    """On the frames they were chosen for, thresholds never cost more than the budget."""
    spread = spread_all(scores)
    assert mean_cost(spread, thresholds_within(TABLE, spread, budget)) <= budget + 1e-12


def short_eenet(
    evidence: Calibration, scores: Tensor, fractions: Sequence[float], seed: int
) -> ShareRule:
    """EENet's h, which trains for each row, with few steps."""
    return EENetShares(evidence, scores, fractions, seed=seed, steps=5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), frames=st.integers(20, 80))
@pytest.mark.parametrize(
    "rule",
    [SHARE_RULES["geometric"], SHARE_RULES["search"], short_eenet],
    ids=["geometric", "search", "eenet"],
)
def test_tables_are_monotone_in_every_threshold(rule: RuleFit, seed: int, frames: int) -> None:
    """Whatever the rule, a larger budget lowers no threshold, and rows rise inside the range."""
    evidence, _ = synthetic(frames, seed=seed)
    scores = score_all_exits(MaxProbability(), evidence)
    table = build_table(scores.double().numpy(), COSTS, rule(evidence, scores, COSTS, seed).rows())
    inside = [COSTS[0], *table.budgets, 1.0]
    assert all(a < b for a, b in pairwise(inside))
    for low, high in pairwise(table.at(u) for u in np.linspace(0.2, 1.05, 60)):
        assert all(a <= b for a, b in zip(low, high, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(5, 120),
    num_exits=st.integers(2, 5),
    values=st.sampled_from([2, 3, 1000]),
)
def test_search_over_random_data_gives_rows_in_the_range(
    seed: int, frames: int, num_exits: int, values: int
) -> None:
    """Random scores and quality, ties and all: rows lie between the first exit's cost and one."""
    random = np.random.default_rng(seed)
    costs = np.cumsum(random.random(num_exits) + 0.05)
    costs /= costs[-1]
    scores = random.integers(0, values, (frames, num_exits)) / (values - 1)
    quality = (random.random((frames, num_exits)) < random.random(num_exits)).astype(float)
    table = build_table(
        scores, costs.tolist(), SearchShares(scores, quality, costs.tolist()).rows()
    )
    assert all(costs[0] < budget < 1 for budget in table.budgets)
    for low, high in pairwise(table.thresholds):
        assert all(a <= b for a, b in zip(low, high, strict=True))
    shares = np.array(table.shares).reshape(-1, num_exits)
    assert shares.sum(1) == pytest.approx(np.ones(len(shares)))
    assert shares @ costs == pytest.approx(np.array(table.budgets))


@pytest.mark.parametrize(
    "values",
    [
        (0.0,),
        (0.5,),
        (1.0,),
        (0.0, 0.5, 1.0),
        (1 / 3, 2 / 3, 1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", ["geometric", "search"])
def test_scores_of_few_values_leave_no_budget_out(values: tuple[float, ...], rule: str) -> None:
    """With constant scores or three values the realised cost is within 2% of every budget."""
    random = np.random.default_rng(0)
    fitted, met = random.choice(values, (2, 3000, 3))
    rows = (
        GeometricShares(COSTS).rows()
        if rule == "geometric"
        else SearchShares(fitted, (random.random((3000, 3)) < fitted).astype(float), COSTS).rows()
    )
    table = build_table(fitted, COSTS, rows)
    for scores in (spread_all(fitted), spread_all(met)):
        for budget in (0.255, 0.26, 0.28, 0.3, *np.linspace(0.35, 0.95, 13), 0.98, 0.99, 0.995):
            cost = mean_cost(scores, thresholds_within(table, scores, float(budget)))
            assert budget - 0.02 < cost <= budget + 1e-12


@given(
    scores=arrays(float, st.integers(2, 50), elements=unit),
    k=st.integers(0, 4),
    start=st.integers(0, 10**7),
)
def test_spreading_keeps_the_order(scores: Floats, k: int, start: int) -> None:
    """Spread scores stay in [0, 1], differ, and keep the order of those more than 1e-6 apart."""
    index = start + np.arange(len(scores), dtype=float)
    spread = spread_ties(scores, k, index)
    assert spread.min() >= 0
    assert spread.max() <= 1
    first, second = np.nonzero(scores[:, None] > scores + SPREAD / (1 - SPREAD))
    assert np.all(spread[first] > spread[second])
    same = scores[:, None] == scores
    np.fill_diagonal(same, False)
    assert not np.any(same & (spread[:, None] == spread))


def test_one_score_is_spread_like_many() -> None:
    """The node spreads one score at a time, calibration whole columns; they agree."""
    scores = np.full((40, 3), 0.5)
    spread = spread_all(scores)
    for i in range(40):
        for k in range(3):
            assert spread_ties(0.5, k, float(i)) == spread[i, k]


def test_spreading_is_even() -> None:
    """Of any stretch of equal scores, any share lies below the threshold that it asks for."""
    for start in (0, 12_345, 10**6):
        offset = spread_ties(np.zeros(500), 0, start + np.arange(500.0)) / SPREAD - 0.5
        for share in np.linspace(0.1, 0.9, 9):
            assert abs((offset < share).mean() - share) < 0.01
