"""Direct search: the exit shares that make calibration accuracy highest at a budget.

EENet's h and the geometric rule both choose exit shares without looking at what they do to
accuracy. But there are only K - 1 of them, and one pass over the calibration frames tells what a
choice is worth; so they can be searched.

Frames leave by rank, as in `solve_thresholds`: at each exit the highest-scoring of those still
present. Shares lie on a grid of 1 / `GRID`.

- K <= 3: every point of the grid is tried, so the best on the grid is found.
- K > 3: ascent from several starts, one exit at a time, at many prices of compute. Given the other
  thresholds, the best one of an exit is found exactly: what a frame is worth when it leaves there,
  and what when it passes, do not depend on that threshold, so one cumulative sum along the ranking
  values all candidates.

Geometric shares are candidates too, and their table is taken where it comes to more on average: on
the calibration objective a table of direct search is never worse than theirs. The objective is accuracy as a few parameters see it: with 1,000 frames, who
happened to be right near a threshold is mostly luck, so each exit's quality is replaced by its
regression on the scores so far (`expected_quality`).

N: frames, K: exits, P: candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.shares import GeometricShares, table_budgets
from streamexit.scheduling.thresholds import (
    build_table,
    exits_taken,
    solve_thresholds,
    spread_all,
    thresholds_within,
)

GRID = 100
EXACT_EXITS = 3
PRICES = np.geomspace(0.003, 3.0, 24)
"""Quality per full network's cost: what ascent lets compute be worth."""

MAX_SWEEPS = 8
LOGIT_LIMIT = 12.0
RIDGE = 1.0
"""Penalty on each weight of a regression, in units of frames' log-likelihood."""


@dataclass(frozen=True)
class Candidates:
    """Choices of exit shares and what they come to on calibration data.

    Attributes:
        shares: [P, K].
        cost: [P], mean, as a share of the full network's.
        value: [P], mean quality that is expected.
    """

    shares: Floats
    cost: Floats
    value: Floats


class SearchShares:
    """Direct search as a share rule.

    Args:
        scores: [N, K].
        quality: [N, K] in [0, 1].
        fractions: [K], cost of each exit as a share of the full network's.
    """

    def __init__(self, scores: Floats, quality: Floats, fractions: Sequence[float]) -> None:
        self._costs = np.asarray(fractions, float)
        scores = np.nan_to_num(np.asarray(scores, float), nan=0.0)
        expected = expected_quality(scores, quality)
        self._raw, self._expected = scores, expected
        scores = spread_all(scores)
        geometric = GeometricShares(fractions).rows()
        if len(fractions) <= EXACT_EXITS:
            parts = [_whole_grid(scores, expected, self._costs)]
        else:
            parts = [_Ascent(scores, expected, self._costs).climb(geometric)]
        parts.append(_evaluate(geometric, scores, expected, self._costs))
        self.candidates = Candidates(
            np.concatenate([part.shares for part in parts]),
            np.concatenate([part.cost for part in parts]),
            np.concatenate([part.value for part in parts]),
        )
        self._frontier = concave_hull(self.candidates.cost, self.candidates.value)

    def rows(self) -> list[Floats]:
        """The frontier, filled up where its points are far apart; or geometric shares.

        A table must be monotone in every threshold, which may bend the frontier's rows. Should the
        table of geometric shares then come to more, on average over all budgets, it is taken.
        """
        frontier, geometric = self._frontier_rows(), GeometricShares(self._costs.tolist()).rows()
        return max(frontier, geometric, key=self._worth_of_table)

    def _worth_of_table(self, rows: list[Floats]) -> float:
        table = build_table(self._raw, self._costs.tolist(), rows)
        scores, every = spread_all(self._raw), np.arange(len(self._raw))
        taken = [
            exits_taken(scores, thresholds_within(table, scores, float(budget)))
            for budget in table_budgets(self._costs)
        ]
        return float(np.mean([self._expected[every, t].mean() for t in taken]))

    def _frontier_rows(self) -> list[Floats]:
        budgets = np.union1d(table_budgets(self._costs), self.candidates.cost[self._frontier])
        inside = budgets[(budgets > self._costs[0]) & (budgets < self._costs[-1])]
        return [self._between(float(budget)) for budget in inside]

    def _between(self, budget: float) -> Floats:
        cost = self.candidates.cost[self._frontier]
        columns = self.candidates.shares[self._frontier].T
        return np.array([np.interp(budget, cost, column) for column in columns])


def expected_quality(scores: Floats, quality: Floats) -> Floats:
    """Chance that exit k is right given the scores at exits up to k: logistic regression.

    On the logits of the scores and their squares, by Newton's method with a ridge penalty.

    Args:
        scores: [N, K].
        quality: [N, K].

    Returns:
        [N, K] in (0, 1).
    """
    n, num_exits = scores.shape
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    logits = np.clip(np.log(clipped) - np.log1p(-clipped), -LOGIT_LIMIT, LOGIT_LIMIT)
    logits = (logits - logits.mean(0)) / (logits.std(0) + 1e-9)
    result = np.empty((n, num_exits))
    for k in range(num_exits):
        seen = logits[:, : k + 1]
        x = np.concatenate([np.ones((n, 1)), seen, seen**2], axis=1)
        weights = np.zeros(x.shape[1])
        for _ in range(25):
            p = _sigmoid(x @ weights)
            curvature = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(len(weights))
            step = np.linalg.solve(curvature, x.T @ (quality[:, k] - p) - RIDGE * weights)
            weights += step
        result[:, k] = _sigmoid(x @ weights)
    return result


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def _evaluate(rows: Sequence[Floats], scores: Floats, values: Floats, costs: Floats) -> Candidates:
    """What shares come to when they are solved for."""
    taken = [exits_taken(scores, solve_thresholds(scores, shares)) for shares in rows]
    every = np.arange(len(scores))
    realised = [np.bincount(t, minlength=len(costs)) / len(scores) for t in taken]
    return Candidates(
        np.array(realised),
        np.array([float(costs[t].mean()) for t in taken]),
        np.array([float(values[every, t].mean()) for t in taken]),
    )


def _whole_grid(scores: Floats, values: Floats, costs: Floats) -> Candidates:
    """All shares on the grid, for two or three exits."""
    n, num_exits = scores.shape
    cuts = np.rint(np.arange(GRID + 1) * n / GRID).astype(int)
    first = np.argsort(-scores[:, 0], kind="stable")
    led = _running(values[first, 0])
    if num_exits == 2:
        shares = np.stack([cuts / n, 1 - cuts / n], axis=1)
        gained = led + values[:, 1].sum() - _running(values[first, 1])
        return Candidates(shares, shares @ costs, gained[cuts] / n)
    rank = np.empty(n, int)
    rank[first] = np.arange(n)
    second = np.argsort(-scores[:, 1], kind="stable")
    shares_parts, value_parts = [], []
    for i, a in enumerate(cuts):
        rest = second[rank[second] >= a]
        b = cuts[i:] - a
        gained = _running(values[rest, 1]) + values[rest, 2].sum() - _running(values[rest, 2])
        value_parts.append((led[a] + gained[b]) / n)
        shares_parts.append(np.stack([np.full(len(b), a / n), b / n, 1 - (a + b) / n], axis=1))
    shares = np.concatenate(shares_parts)
    return Candidates(shares, shares @ costs, np.concatenate(value_parts))


def _running(x: Floats) -> Floats:
    """Sums of the first 0, 1, ... N entries."""
    return np.concatenate([[0.0], np.cumsum(x)])


class _Ascent:
    """Coordinate ascent on thresholds, for more exits than can be enumerated."""

    def __init__(self, scores: Floats, values: Floats, costs: Floats) -> None:
        self._scores = scores
        self._values = values
        self._costs = costs
        self._order = [np.argsort(-scores[:, k], kind="stable") for k in range(len(costs) - 1)]
        self._step = max(1, round(len(scores) / GRID))

    def climb(self, starts: Sequence[Floats]) -> Candidates:
        """All stopping points, over all prices and starts."""
        found = [
            thresholds
            for start in starts[:: max(1, len(starts) // 5)]
            for thresholds in self._descend_prices(solve_thresholds(self._scores, start))
        ]
        taken = [exits_taken(self._scores, t) for t in found]
        shares = [np.bincount(t, minlength=len(self._costs)) / len(t) for t in taken]
        return _evaluate(list(np.unique(shares, axis=0)), self._scores, self._values, self._costs)

    def _descend_prices(self, thresholds: Floats) -> Iterator[Floats]:
        """From dear compute to cheap, each solution the start of the next."""
        for price in PRICES[::-1]:
            thresholds = self._improve(thresholds, float(price))
            yield thresholds.copy()

    def _improve(self, thresholds: Floats, price: float) -> Floats:
        worth = self._values - price * self._costs
        thresholds = thresholds.copy()
        best = self._worth(worth, thresholds)
        for _ in range(MAX_SWEEPS):
            before = best
            for k in range(len(thresholds) - 1):
                tried = thresholds.copy()
                tried[k] = self._best_threshold(worth, thresholds, k)
                reached = self._worth(worth, tried)
                if reached > best:
                    thresholds, best = tried, reached
            if best <= before + 1e-9:
                break
        return thresholds

    def _worth(self, worth: Floats, thresholds: Floats) -> float:
        taken = exits_taken(self._scores, thresholds)
        return float(worth[np.arange(len(taken)), taken].mean())

    def _best_threshold(self, worth: Floats, thresholds: Floats, k: int) -> float:
        """The threshold of exit k that is worth most while the others stay."""
        passed = np.all(self._scores[:, :k] < thresholds[:k], axis=1)
        here = self._order[k][passed[self._order[k]]]
        later = k + 1 + exits_taken(self._scores[:, k + 1 :], thresholds[k + 1 :])
        gain = _running(worth[here, k] - worth[here, later[here]])
        cuts = np.union1d(np.arange(0, len(gain), self._step), [len(gain) - 1])
        cut = int(cuts[gain[cuts].argmax()])
        if cut == 0:
            return np.inf
        return float(self._scores[here[cut - 1], k]) if cut < len(here) else -np.inf


def concave_hull(x: Floats, y: Floats) -> list[int]:
    """Indices of the points on the least concave curve above all points, by rising x."""
    hull: list[int] = []

    def slope(i: int, j: int) -> float:
        return float((y[j] - y[i]) / (x[j] - x[i]))

    for i in np.lexsort((-y, x)).tolist():
        if hull and x[i] <= x[hull[-1]] + 1e-12:
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) <= slope(hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull
