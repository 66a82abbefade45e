"""From exit shares to thresholds, and a table of thresholds over all budgets.

N: frames, K: exits, J: rows of a table.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from streamexit.errors import BudgetError, PipelineError
from streamexit.exits import ALWAYS, NEVER
from streamexit.scheduling.evidence import Floats

LOGIT_LIMIT = 17.0
"""Scores are float32, so a logit of 17 is as near to 0 or 1 as makes a difference."""


SPREAD = 1e-6
"""How far equal scores are drawn apart; less than what a score means."""

GOLDEN = (math.sqrt(5) - 1) / 2

Score = TypeVar("Score", float, Floats)


def spread_ties(score: Score, k: int, index: Score) -> Score:
    """Draw equal scores apart, evenly and reproducibly, so that any share of them can leave.

    Without it, frames that a scorer cannot tell apart (a softmax that is saturated, votes) would
    all leave or all stay, and cost would jump at one threshold. The offset follows the golden
    ratio's sequence, of which any stretch is evenly spread.

    Args:
        score: In [0, 1]; one, or [N].
        k: Exit.
        index: Of the frame among those that were decided; one, or [N].

    Returns:
        As `score`, in (0, 1), half of `SPREAD` away from either end, where logits are still finite.
    """
    return (1 - 2 * SPREAD) * score + SPREAD * (0.5 + (index + 0.5 * k) * GOLDEN % 1)


def spread_all(scores: Floats) -> Floats:
    """`spread_ties` for scores [N, K], frames counted by row."""
    index = np.arange(len(scores), dtype=float)
    return np.stack([spread_ties(scores[:, k], k, index) for k in range(scores.shape[1])], axis=1)


def solve_thresholds(scores: Floats, shares: Floats) -> Floats:
    """Thresholds under which the given shares of frames leave at each exit.

    Exit by exit, the highest-scoring of the frames still present leave (MSDNet, ICLR 2018,
    section 5; EENet, WACV 2024, section 3.3). Among equal scores all leave or none, whichever
    comes nearer; what that misses is made up at the next exit. NaN ranks last: it leaves early only where all do.

    Args:
        scores: [N, K].
        shares: [K], non-negative, summing to 1.

    Returns:
        [K]; +inf where nobody should leave, -inf at the last exit, which always accepts.
    """
    n, num_exits = scores.shape
    thresholds = np.full(num_exits, NEVER)
    thresholds[-1] = ALWAYS
    waiting = np.arange(n)
    wanted = np.rint(np.cumsum(shares) * n).astype(int)
    for k in range(num_exits - 1):
        leaving = wanted[k] - (n - len(waiting))
        here = np.nan_to_num(scores[waiting, k], nan=ALWAYS)
        thresholds[k] = _cut(here, leaving)
        waiting = waiting[~(here >= thresholds[k])]
    return thresholds


def _cut(scores: Floats, count: int) -> float:
    """The threshold that the highest `count` scores reach, ties going the nearer way."""
    if count >= len(scores) or not len(scores):
        return ALWAYS  # also where nobody is left to come: that leaves later rows of a table free
    if count <= 0:
        return NEVER
    edge = float(np.sort(scores)[len(scores) - count])
    with_ties, without = int((scores >= edge).sum()), int((scores > edge).sum())
    if edge == ALWAYS or count - without < with_ties - count:
        above = scores[scores > edge]
        return float(above.min()) if len(above) else NEVER
    return edge


def exits_taken(scores: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """Where each frame leaves: the first exit whose score reaches its threshold, else the last.

    Args:
        scores: [N, K].
        thresholds: [K].
    """
    reached = (scores >= thresholds) | (thresholds == ALWAYS)  # a NaN leaves where all leave
    reached[:, -1] = True
    return np.asarray(reached.argmax(1))


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds for every budget between the first exit's cost and the full network's.

    Thresholds are interpolated on the logit scale. At or below the lower end every frame leaves
    at exit 0; at or above the upper end none leaves before the last. So whatever the content, the
    two ends of the table force the two extremes of cost: a controller can always reach a budget.

    Attributes:
        fractions: [K], cost of each exit as a share of the full network's; the last is 1.
        budgets: [J], strictly rising, inside (fractions[0], 1): the mean cost on calibration data.
        thresholds: [J][K-1]; never falling from row to row.
        shares: [J][K]: the exit shares on calibration data.
    """

    fractions: tuple[float, ...]
    budgets: tuple[float, ...]
    thresholds: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        k = len(self.fractions)
        rows = len(self.budgets)
        if len(self.thresholds) != rows or len(self.shares) != rows:
            raise PipelineError("policy: budgets, thresholds and shares differ in length")
        if any(len(t) != k - 1 for t in self.thresholds) or any(len(s) != k for s in self.shares):
            raise PipelineError(f"policy: rows do not match the {k} exits of the cost table")
        inside = [self.low, *self.budgets, self.high]
        if rows and any(a >= b for a, b in pairwise(inside)):
            raise PipelineError(
                f"policy: budgets must rise strictly inside {self.low}..{self.high}"
            )
        logits = [tuple(logit(t) for t in row) for row in self.thresholds]
        logits = [(-LOGIT_LIMIT,) * (k - 1), *logits, (LOGIT_LIMIT,) * (k - 1)]
        ends = [0.0] * k
        first, last = [1.0, *ends[1:]], [*ends[1:], 1.0]
        object.__setattr__(self, "_knots", (inside, logits, [first, *self.shares, last]))

    def costing(self, fractions: Sequence[float]) -> ThresholdTable:
        """The same thresholds for other costs of the exits, as in milliseconds of a device.

        Rows whose mean cost does not rise under these costs are left out.

        Args:
            fractions: [K].

        Raises:
            PipelineError: Another number of exits.
        """
        if len(fractions) != len(self.fractions):
            raise PipelineError(
                f"policy: made for {len(self.fractions)} exits, not for {len(fractions)}"
            )
        rows: list[tuple[float, int]] = []
        for j, shares in enumerate(self.shares):
            mean = sum(s * c for s, c in zip(shares, fractions, strict=True))
            if (rows[-1][0] if rows else fractions[0]) < mean < fractions[-1]:
                rows.append((mean, j))
        return ThresholdTable(
            tuple(fractions),
            tuple(mean for mean, _ in rows),
            tuple(self.thresholds[j] for _, j in rows),
            tuple(self.shares[j] for _, j in rows),
        )

    @property
    def low(self) -> float:
        """The first exit's cost: where every frame leaves at once."""
        return self.fractions[0]

    @property
    def high(self) -> float:
        """1: where no frame leaves early."""
        return self.fractions[-1]

    def threshold(self, u: float, k: int) -> float:
        """The threshold of exit k at table coordinate `u`, a share of the full cost."""
        if k == len(self.fractions) - 1 or u <= self.low:
            return ALWAYS
        if u >= self.high:
            return NEVER
        return expit(self.logit_threshold(u, k))

    def logit_threshold(self, u: float, k: int) -> float:
        """The same as a logit, for `u` strictly inside the table's ends and an early exit."""
        j, part = self._place(u)
        logits = self._knots[1]  # type: ignore[attr-defined]
        mixed: float = logits[j - 1][k] + part * (logits[j][k] - logits[j - 1][k])
        return mixed

    def leaving_share(self, u: float, k: int) -> float:
        """Share of the frames that reach exit k that leave there when the mean cost is `u`.

        Between rows exit shares are interpolated, so their mean cost is exactly `u`.
        """
        j, part = self._place(u)
        shares = self._knots[2]  # type: ignore[attr-defined]
        here = shares[j - 1][k] + part * (shares[j][k] - shares[j - 1][k])
        low, high = sum(shares[j - 1][k:]), sum(shares[j][k:])
        reached = low + part * (high - low)
        return here / reached if reached > 0 else 1.0

    def shares_at(self, u: float) -> tuple[float, ...]:
        """[K] exit shares that the policy wants at a mean cost of `u`; see `leaving_share`."""
        shares = self._knots[2]  # type: ignore[attr-defined]
        if not self.low < u < self.high:
            return tuple(shares[0 if u <= self.low else -1])
        j, part = self._place(u)
        return tuple(a + part * (b - a) for a, b in zip(shares[j - 1], shares[j], strict=True))

    def nearest_row(self, u: float) -> int | None:
        """The row whose budget is nearest to `u`; None of a table without rows."""
        j = bisect_right(self.budgets, u)
        around = range(max(j - 1, 0), min(j + 1, len(self.budgets)))
        return min(around, key=lambda i: abs(self.budgets[i] - u), default=None)

    def _place(self, u: float) -> tuple[int, float]:
        """The row above `u`, and how far `u` is on the way there."""
        knots = self._knots[0]  # type: ignore[attr-defined]
        j = bisect_right(knots, u)
        return j, (u - knots[j - 1]) / (knots[j] - knots[j - 1])

    def at(self, u: float) -> tuple[float, ...]:
        """All K thresholds at `u`."""
        return tuple(self.threshold(u, k) for k in range(len(self.fractions)))


def build_table(
    scores: Floats, fractions: Sequence[float], budgets_shares: Sequence[Floats]
) -> ThresholdTable:
    """Solve for each row of shares and make the result monotone in the budget.

    Args:
        scores: [N, K] on calibration data; ties are spread here.
        fractions: [K].
        budgets_shares: Rows of shares [K], for rising budgets.

    A row's budget is the mean cost that its thresholds really cause on the calibration data, not
    the one that was asked for; rows that do not raise it are left out.
    """
    costs = np.asarray(fractions)
    scores = spread_all(scores)
    num_exits = len(costs)
    floor = np.full(num_exits, ALWAYS)
    budgets: list[float] = []
    thresholds: list[tuple[float, ...]] = []
    shares: list[tuple[float, ...]] = []
    for wanted in budgets_shares:
        floor = np.maximum(floor, solve_thresholds(scores, wanted))
        floor[-1] = ALWAYS
        taken = exits_taken(scores, floor)
        mean = float(costs[taken].mean())
        if not (budgets[-1] if budgets else fractions[0]) < mean < fractions[-1]:
            continue
        budgets.append(mean)
        thresholds.append(tuple(float(t) for t in floor[:-1]))
        shares.append(tuple((np.bincount(taken, minlength=num_exits) / len(taken)).tolist()))
    return ThresholdTable(tuple(fractions), tuple(budgets), tuple(thresholds), tuple(shares))


def thresholds_within(table: ThresholdTable, scores: Floats, budget: float) -> Floats:
    """The table's thresholds that spend the most on frames with these scores, up to `budget`.

    Args:
        table: Of a policy.
        scores: [N, K], ties spread.
        budget: Mean cost as a share of the full network's.

    Returns:
        [K] thresholds.

    Raises:
        BudgetError: Below the first exit's cost, which every frame has.
    """
    if not budget >= table.low:
        raise BudgetError(
            f"budget: {budget:g} is out of reach; leaving at the first exit costs {table.low:.4g}"
        )
    costs = np.asarray(table.fractions)
    if budget >= table.high:
        return np.asarray(table.at(table.high))
    low, high = table.low, table.high
    for _ in range(50):
        middle = (low + high) / 2
        cost = costs[exits_taken(scores, np.asarray(table.at(middle)))].mean()
        low, high = (middle, high) if cost <= budget else (low, middle)
    return np.asarray(table.at(low))


def expit(x: float) -> float:
    """1 / (1 + exp(-x)), the inverse of `logit`."""
    return 1 / (1 + math.exp(-x))


def logit(score: float) -> float:
    """log(p / (1 - p)), limited to what float32 can tell apart."""
    if score <= 0:
        return -LOGIT_LIMIT
    if score >= 1:
        return LOGIT_LIMIT
    return max(-LOGIT_LIMIT, min(LOGIT_LIMIT, math.log(score / (1 - score))))
