"""Direct search against brute force, geometric shares and held-out frames."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.policy import fit_policy
from streamexit.scheduling.scorers import MaxProbability, score_all_exits
from streamexit.scheduling.search import SearchShares, expected_quality
from streamexit.scheduling.shares import GeometricShares, table_budgets
from streamexit.scheduling.thresholds import (
    exits_taken,
    solve_thresholds,
    spread_all,
    thresholds_within,
)
from tests.scheduling.samples import synthetic

COSTS = {2: (0.3, 1.0), 3: (0.25, 0.6, 1.0), 4: (0.2, 0.4, 0.7, 1.0), 5: (0.1, 0.3, 0.5, 0.8, 1.0)}
SKILLS = {2: (1.0, 3.0), 3: (0.5, 2, 3), 4: (0.0, 1.5, 2, 3), 5: (0.0, 2.0, 1.0, 2.5, 3.0)}


def sample(frames: int, num_exits: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Scores [N, K], ties spread, and quality [N, K]."""
    evidence, _ = synthetic(frames, skills=SKILLS[num_exits], seed=seed)
    scores = spread_all(score_all_exits(MaxProbability(), evidence).double().numpy())
    return scores, evidence.quality.double().numpy()


def worth(scores: Floats, values: Floats, shares: Floats, costs: Floats) -> tuple[float, float]:
    """(mean cost, mean value) of leaving by these shares."""
    taken = exits_taken(scores, solve_thresholds(scores, shares))
    return float(costs[taken].mean()), float(values[np.arange(len(taken)), taken].mean())


def best_within(search: SearchShares, budget: float) -> Floats:
    """The most valuable shares that were found at no more than `budget`."""
    found = search.candidates
    return np.asarray(found.shares[np.where(found.cost <= budget + 1e-9, found.value, 0).argmax()])


@pytest.mark.parametrize(("num_exits", "frames"), [(2, 100), (2, 137), (3, 100), (3, 137)])
def test_search_is_the_best_of_the_whole_grid(num_exits: int, frames: int) -> None:
    """No shares on the grid of hundredths are worth more within a budget than those that are found."""
    costs = np.array(COSTS[num_exits])
    scores, quality = sample(frames, num_exits)
    values = expected_quality(scores, quality)
    search = SearchShares(scores, quality, COSTS[num_exits])
    cuts = np.rint(np.arange(101) * frames / 100) / frames
    tried = [
        worth(scores, values, np.diff([0, *corners, 1]), costs)
        for corners in product(cuts, repeat=num_exits - 1)
        if list(corners) == sorted(corners)
    ]
    for budget in np.linspace(costs[0], 1, 12):
        best = max(value for cost, value in tried if cost <= budget + 1e-9)
        cost, value = worth(scores, values, best_within(search, float(budget)), costs)
        assert cost <= budget + 1e-9
        assert value >= best - 1e-9
    grid = len(tried)
    assert sorted(search.candidates.value[:grid]) == pytest.approx(
        sorted(value for _, value in tried), abs=1e-9
    )


@pytest.mark.parametrize("num_exits", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_search_is_never_worse_than_geometric_shares(num_exits: int, seed: int) -> None:
    """At every budget of the table the expected quality is at least that of geometric shares.

    Where rounding to whole frames takes geometric shares over the budget, search need not follow.
    """
    costs = np.array(COSTS[num_exits])
    scores, quality = sample(500, num_exits, seed)
    values = expected_quality(scores, quality)
    search, geometric = (
        SearchShares(scores, quality, COSTS[num_exits]),
        GeometricShares(COSTS[num_exits]),
    )
    for budget in table_budgets(costs).tolist():
        cost, value = worth(scores, values, best_within(search, budget), costs)
        spent, other = worth(scores, values, geometric.shares(budget), costs)
        assert cost <= budget + 1e-9
        assert value >= other - 1e-9 or spent > budget


@pytest.mark.parametrize("num_exits", [2, 3, 4, 5])
def test_rows_rise(num_exits: int) -> None:
    """Rows are shares, for rising costs over the whole range."""
    costs = np.array(COSTS[num_exits])
    rows = np.array(SearchShares(*sample(300, num_exits), COSTS[num_exits]).rows())
    assert rows.sum(1) == pytest.approx(np.ones(len(rows)))
    assert rows.min() >= 0
    spent = rows @ costs
    assert np.all(np.diff(spent) > -1e-9)
    assert spent[0] < costs[0] + 0.1
    assert spent[-1] > 0.9


@pytest.mark.parametrize("num_exits", [3, 4, 5])
def test_search_beats_geometric_shares_where_an_exit_is_weak(num_exits: int) -> None:
    """With a first exit that guesses, fitted on 1,000 frames, held-out accuracy is far higher."""
    skills = (0.0, 2.0, 3.0, 3.5, 4.0)[:num_exits]
    fitted, _ = synthetic(1000, skills=skills, seed=1)
    held_out, _ = synthetic(5000, skills=skills, seed=2)
    costs = np.array(COSTS[num_exits])
    quality = held_out.quality.double().numpy()
    for budget in (0.5, 0.6, 0.7):
        accuracy = {}
        for name in ("msdnet", "direct"):
            policy = fit_policy(name, fitted, COSTS[num_exits])
            scores = spread_all(score_all_exits(policy.scorer, held_out).double().numpy())
            taken = exits_taken(scores, thresholds_within(policy.table, scores, budget))
            assert costs[taken].mean() == pytest.approx(budget, rel=0.005)
            accuracy[name] = quality[np.arange(len(taken)), taken].mean()
        assert accuracy["direct"] > accuracy["msdnet"] + 0.03


def test_expected_quality_of_a_step_is_the_share_that_is_right() -> None:
    """On a score of two values the regression gives each group's share, drawn in by the ridge."""
    scores = np.repeat([0.2, 0.9], 1000)[:, None]
    quality = np.concatenate([np.arange(1000) < 300, np.arange(1000) < 800]).astype(float)[:, None]
    expected = expected_quality(scores, quality)
    assert expected[0, 0] == pytest.approx(0.3, abs=0.01)
    assert expected[-1, 0] == pytest.approx(0.8, abs=0.01)


def test_expected_quality_survives_what_is_never_right_or_never_known() -> None:
    """Exits that are always right or always wrong, and infinite scores, give finite chances."""
    scores = np.tile([0.0, 1.0, np.inf], (50, 1))
    scores[::2, 1] = -np.inf
    quality = np.tile([0.0, 1.0, 1.0], (50, 1))
    expected = expected_quality(scores, quality)
    assert np.all((expected > 0) & (expected < 1))
    assert expected[:, 0].max() < 0.1 < 0.9 < expected[:, 1].min()
