"""Share rules: which fraction of frames should leave at which exit, for a budget.

K: exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from streamexit.scheduling.evidence import Floats

TABLE_ROWS = 25


class ShareRule(Protocol):
    """Gives exit shares for every budget."""

    def rows(self) -> list[Floats]:
        """Shares [K], non-negative, summing to 1, for rising budgets over the whole range.

        A table of thresholds is built from them.
        """
        ...


class GeometricShares:
    """Shares proportional to q^k (MSDNet, ICLR 2018, section 5), with q found by bisection.

    The mean cost rises with q, from the first exit's (q = 0) to the last one's (q = infinity).

    Args:
        fractions: [K], cost of each exit as a share of the full network's.
    """

    def __init__(self, fractions: Sequence[float]) -> None:
        self._costs = np.asarray(fractions)

    def shares(self, budget: float) -> Floats:
        """Shares [K] whose mean cost is `budget`, a share of the full network's."""
        return tilt_to_budget(np.full(len(self._costs), 1.0), self._costs, budget, by_depth=True)

    def rows(self) -> list[Floats]:
        """See `ShareRule`."""
        return [self.shares(float(budget)) for budget in table_budgets(self._costs)]


def table_budgets(fractions: Sequence[float] | Floats, *, rows: int = TABLE_ROWS) -> Floats:
    """Evenly spaced budgets strictly between the first exit's cost and the full one."""
    return np.linspace(fractions[0], fractions[-1], rows + 2)[1:-1]


def tilt_to_budget(
    shares: Floats, costs: Floats, budget: float, *, by_depth: bool = False
) -> Floats:
    """Bend shares until their mean cost is `budget`, by a factor exp(x d_k) and bisection on x.

    Args:
        shares: [K], non-negative, with some weight on a cheaper and on a dearer exit.
        costs: [K], rising.
        budget: Between costs[0] and costs[-1].
        by_depth: d_k is the exit's index instead of its cost; from equal shares that gives the
            geometric family. With the cost, the result is the nearest to `shares` in the sense
            of Kullback-Leibler.
    """
    depth = np.arange(len(costs)) if by_depth else costs / costs[-1]
    prior = np.log(np.maximum(shares, 1e-12))

    def tilted(x: float) -> Floats:
        exponent = prior + x * depth
        weights = np.exp(exponent - exponent.max())
        return np.asarray(weights / weights.sum())

    low, high = -1000.0, 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if tilted(middle) @ costs < budget else (low, middle)
    return tilted((low + high) / 2)
