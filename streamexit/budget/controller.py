"""The budget controller: one per stream, keeps the mean cost per frame at the budget.

K: exits, W: window in frames. Costs are shares of the full network's cost.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from streamexit.errors import BudgetError
from streamexit.exits import ALWAYS
from streamexit.scheduling.thresholds import ThresholdTable, spread_ties

BudgetState = Literal["on_budget", "saturated", "unreachable", "not_binding"]
"""on_budget: over the last W frames, spending is within 5% of a window's budget (or one full frame).
saturated: it is not, although the controller does what it can.
unreachable: the budget is below the cost of the first exit; every frame leaves there.
not_binding: the budget is the full network's cost or more; every frame goes all the way."""


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """What a controller has to say.

    Attributes:
        state: See `BudgetState`.
        target: The budget, as a share of the full network's cost.
        mean: Over the last W frames (or as many as there were); None before the first.
        frames: How many frames `mean` is over.
        exit_shares: [K], over the same frames.
        thresholds: [K], now.
        version: Rises with every change of the thresholds.
        debt: Overspent (or, negative, spared) so far, in units of one full frame.
    """

    state: BudgetState
    target: float
    mean: float | None
    frames: int
    exit_shares: tuple[float, ...]
    thresholds: tuple[float, ...]
    version: int
    debt: float


ETA_FRAMES = 24
"""eta times W: how many windows' worth of debt moves the thresholds by one full cost."""

TRIM_FRAMES = 3
"""The trim's time constant is a third of a window."""

DEBT_SHARE = 0.018
"""D_max, as a share of one window's budget."""


ON_BUDGET_SHARE = 0.05
"""What a window may be off and still be called on budget."""


class BudgetController:
    """Integral control on a coordinate of the policy's threshold table.

    The table maps a coordinate u (a mean cost) to thresholds; at or below its lower end every
    frame leaves at the first exit, at or above its upper end none leaves early. After each frame
    of cost c under budget B the debt D grows by c - B, and

        u = B + trim - f(D),    f(D) = eta D + range (D / D_max)^3,    range = u_hi - u_lo.

    The first term of f is the integral law u <- u - eta (c - B); the cubic term is negligible for
    small debts and overwhelming at D_max, so small fluctuations do not disturb the exit mix and
    large debts are paid back at once. The trim, a slow integral of f, takes over whatever offset
    unfamiliar content needs, so that the debt returns to zero instead of resting at the offset.

    **Bound**, for frames that are decided one after the other. The trim keeps B + trim inside
    [u_lo, u_hi]. If D >= D_max when a frame comes, f(D) > range, so u < u_lo and it leaves at the
    first exit at c_1 <= B: D does not grow. If D <= -D_max, u > u_hi and it stays at the first
    exit; what it is booked there may lift D above -D_max and let it leave at a later exit, which
    takes back less than c_K - c_1 from there; else it goes all the way and D does not shrink. From
    anywhere between, one frame moves D by less than c_K - c_1. Hence |D| stays below D_max + (c_K - c_1), and since the sum of c - B over any
    frames is a difference of two debts, for ANY content and ANY W consecutive frames

        | mean - B | <= 2 (D_max + c_K - c_1) / W.

    D_max = max(1, 0.018 W B), in full frames; while the second is the larger (W B > 56), the bound
    is 3.6% of the budget plus two frames' worth. The constants are a
    compromise: a tighter limit holds windows closer and moves the thresholds more, which costs
    accuracy (docs/budgets.md has the figures).

    **Delay.** A frame's cost is only known when it leaves, which may be many frames later when
    late stages wait for full batches. So the cost is booked when it is decided: a frame that stays
    is charged what frames staying there cost on average, and corrected when it leaves. Decisions
    are taken frame by frame, each seeing the debt that the one before left. That is why the loop
    can be fast without ringing. What remains is the error of that estimate: with d frames in
    flight beyond the first exit, at most d (c_K - c_2) / W more on either side of the bound.

    Args:
        table: From the stream's exit policy.
        budget: Share of the full network's cost.
        window: W, in frames.

    Raises:
        BudgetError: A budget that is not a positive number, or an empty window.
    """

    def __init__(self, table: ThresholdTable, *, budget: float, window: int = 300) -> None:
        if not 0 < budget < math.inf:
            raise BudgetError(f"budget: {budget} must be a positive number")
        if window < 1:
            raise BudgetError(f"window: {window} must be at least 1 frame")
        self._table = table
        self._costs = table.fractions
        self._budget = budget
        self._eta = ETA_FRAMES / window
        self._trim_rate = TRIM_FRAMES / window
        self._debt_limit = max(1.0, DEBT_SHARE * window * budget)
        self._range = max(table.high - table.low, 1e-9)
        self._binding = table.low <= budget < table.high
        self._staying = _mean_cost_of_staying(table, budget)
        self._debt = 0.0
        self._trim = 0.0
        self._version = 0
        self._decisions = 0.0
        self._recent: deque[int] = deque(maxlen=window)
        self._window = window

    def leaves(self, k: int, score: float) -> bool:
        """Decide whether a frame leaves at exit k, and book what that costs.

        Call it for the frames of a stream one by one, for each exit that a frame reaches. A NaN
        score leaves early only where everything does, so that it cannot break a budget.
        """
        threshold = self._table.threshold(self.coordinate, k)
        leaving = spread_ties(score, k, self._decisions) >= threshold or threshold == ALWAYS
        self._decisions += 1
        if self._binding:
            already = self._staying[k - 1] if k else self._budget
            self._owe((self._costs[k] if leaving else self._staying[k]) - already)
        return leaving

    def answered(self, k: int) -> None:
        """Note the exit of the next frame in frame order; what the status tells is over these."""
        self._recent.append(k)

    @property
    def coordinate(self) -> float:
        """u: where in the table the thresholds are read now."""
        return self._budget + self._trim - self._correction

    @property
    def status(self) -> BudgetStatus:
        """See `BudgetStatus`."""
        n = len(self._recent)
        counts = [self._recent.count(k) for k in range(len(self._costs))]
        spent = sum(c * m for c, m in zip(self._costs, counts, strict=True))
        return BudgetStatus(
            state=self._state(spent - n * self._budget),
            target=self._budget,
            mean=spent / n if n else None,
            frames=n,
            exit_shares=tuple(m / n if n else 0.0 for m in counts),
            thresholds=self._table.at(self.coordinate),
            version=self._version,
            debt=self._debt,
        )

    def _state(self, overspent: float) -> BudgetState:
        if self._budget < self._table.low:
            return "unreachable"
        if self._budget >= self._table.high:
            return "not_binding"
        allowed = max(ON_BUDGET_SHARE * self._window * self._budget, 1.0)
        return "on_budget" if abs(overspent) <= allowed else "saturated"

    @property
    def _correction(self) -> float:
        return self._eta * self._debt + self._range * (self._debt / self._debt_limit) ** 3

    def _owe(self, amount: float) -> None:
        self._debt += amount
        lowest, highest = self._table.low - self._budget, self._table.high - self._budget
        wanted = self._trim - self._trim_rate * self._correction
        self._trim = min(max(wanted, lowest), highest)
        self._version += 1


def _mean_cost_of_staying(table: ThresholdTable, budget: float) -> list[float]:
    """What frames that stay at exit k cost in the end, on calibration data at this budget."""
    costs = table.fractions
    rows = len(table.budgets)
    nearest = min(range(rows), key=lambda j: abs(table.budgets[j] - budget), default=None)
    shares = table.shares[nearest] if nearest is not None else (0.0,) * len(costs)
    means: list[float] = []
    for k in range(len(costs)):
        left = sum(shares[k + 1 :])
        deeper = sum(s * c for s, c in zip(shares[k + 1 :], costs[k + 1 :], strict=True))
        means.append(deeper / left if left > 0 else costs[min(k + 1, len(costs) - 1)])
    return means
