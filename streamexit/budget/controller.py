"""The budget controller: one per stream, keeps the mean cost per frame at the budget.

K: exits, W: window in frames, n: scores in a window. Costs are shares of the full network's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from streamexit.budget.ledger import WindowLedger
from streamexit.budget.pace import SHORTEST_PACE, Pace
from streamexit.budget.passage import Passage
from streamexit.budget.recent import RecentExits
from streamexit.budget.score_window import ScoreWindow
from streamexit.budget.shadow import grid, is_shadow
from streamexit.budget.status import BudgetState, BudgetStatus
from streamexit.budget.terms import Terms
from streamexit.errors import BudgetError
from streamexit.exits import ALWAYS
from streamexit.scheduling.thresholds import ThresholdTable, expit, logit, spread_ties

ETA_FRAMES = 24
"""eta times W: a debt of W / 24 full frames moves u by one full cost."""

TRIM_FRAMES = 3
"""The trim's time constant is a third of a window."""

DEBT_SHARE = 0.012
"""D_max, as a share of one window's budget."""

ON_BUDGET_SHARE = 0.05
"""What a window may be off and still be called on budget."""

PRIOR_SCORES = 32
"""The calibration data count as much as so many scores of the stream."""

STRICT_SHARE = 0.01
"""A strict budget is aimed at from so far below, so that the ledger seldom has to say no."""


class BudgetController:
    """Integral control on a coordinate of the policy's threshold table.

    The coordinate u is a mean cost. At or below its lower end every frame leaves at the first exit,
    at or above its upper end none leaves early. Between, the table says which share of the frames
    that reach exit k should leave there so that the mean cost is u. The threshold is the score that
    this share of the stream's recent scores reaches, mixed with the table's own threshold, which
    counts as `PRIOR_SCORES` scores. So the mix of exits stays what the policy wants when scores
    drift, and the mean cost stays near u.

    After each frame of cost c under budget B the debt D grows by c - B, and

        u = B + trim - f(D),    f(D) = eta D + range (D / D_max)^3,    range = u_hi - u_lo.

    The first term of f is the integral law u <- u - eta (c - B); the cubic term is negligible for
    small debts and overwhelming at D_max, so small fluctuations do not disturb the exit mix and
    large debts are paid back at once. The trim, a slow integral of f, takes over whatever offset
    unfamiliar content needs, so that the debt returns to zero instead of resting at the offset.

    **Bound**, for frames that are decided one after the other. The trim keeps B + trim inside
    [u_lo, u_hi]. If D >= D_max when a frame comes, f(D) > range, so u < u_lo and it leaves at the
    first exit: D does not grow, because c_1 <= B. If D <= -D_max, u > u_hi and it goes all the way: D
    does not shrink. From between, a frame adds at most c_K - B and takes at most B - c_1. So D stays
    inside [-D_max - (B - c_1), D_max + (c_K - B)], and the sum of c - B over any frames is the
    difference of two debts: for ANY content and ANY W consecutive frames

        | mean - B | <= (2 D_max + c_K - c_1) / W = (u_hi - u_lo + h (c_K - c_1)) / (h W)

    with h = range / (2 D_max), the slope of a straight line through both ends of f: the bound of the
    integral law of gain h. D_max = max(1, 0.012 W B), in full frames. Scores do not occur in it, so
    neither scene changes nor NaN can break it; and while no frames come, nothing moves.

    **Delay.** A frame's cost is only known when it leaves, which may be many frames later when
    late stages wait for full batches. So the cost is booked when it is decided: a frame that stays
    is charged what frames staying there cost on average, and corrected when it leaves. Decisions
    are taken frame by frame, each seeing the debt that the others left. That is why the loop
    can be fast without ringing. What remains is the error of that estimate: with d frames in
    flight beyond the first exit, at most d (c_K - c_2) / W more on either side of the bound.

    **Per second.** B is then what the time since the frame before allows, but no more than ten times
    the usual. Neither debt nor what was saved up grows beyond D_max + range.

    **Strict.** A `WindowLedger` has the last word: who may not stay leaves. What is spared that way is
    not saved up beyond that either. When the budget changes, frames that are inside may reserve nothing
    more; a shadow frame has reserved all it takes. **Shadow** frames go to the end and are charged for it; none is
    taken at D >= D_max, so the bound holds.

    Args:
        table: From the stream's exit policy.
        terms: The budget.
        shadow: Share of frames that go all the way whatever their scores say.
        stream_id: Which frames are chosen for that depends on it and on their number alone.
    """

    def __init__(
        self, table: ThresholdTable, terms: Terms, *, shadow: float = 0.0, stream_id: str = ""
    ) -> None:
        self._shadow = shadow
        self._stream_id = stream_id
        self._windows = [ScoreWindow() for _ in table.fractions[:-1]]
        self._debt = 0.0
        self._trim = 0.0
        self._version = 0
        self._entered = 0
        self._books_from = 0
        self._binding = False
        self._decisions = 0.0
        self._pace = Pace()
        self._recent = RecentExits(len(table.fractions))
        self.table = table
        self.terms = terms
        self._ledger: WindowLedger | None = None
        self.change(terms=terms, table=table)

    def change(self, *, terms: Terms | None = None, table: ThresholdTable | None = None) -> None:
        """Go on under other terms or by another table; what was learned of the stream stays."""
        before, after = self.terms, terms or self.terms
        if not after.strict:
            self._ledger = None
        elif self._ledger is None:
            self._ledger = WindowLedger(after.window, self._entered)
        elif after != before:
            self._ledger = self._ledger.under_another_budget(after.window)
        self.terms, self.table = after, table or self.table
        self._low, self._high = self.table.low, self.table.high
        self._range = max(self._high - self._low, 1e-9)
        bound = self._binding
        self._row: int | None = None
        self._tune()
        if not bound:  # of what is inside nothing was booked, so nothing is to be corrected
            self._books_from = self._entered
        if self._binding:
            self._debt = min(max(self._debt, -self._debt_limit), self._debt_limit)
            self._trim = self._inside(self._trim)
        else:
            self._debt = self._trim = 0.0

    def enter(self, at: float) -> Passage:
        """A frame comes, at `at` seconds on any clock. Call it in frame order."""
        seq, self._entered = self._entered, self._entered + 1
        allowance = self._allowance(at)
        assumed = min(max(self._aim, self._low), self._high)
        shadow = self._shadow > 0 and is_shadow(self._stream_id, seq, self._shadow)
        if self._ledger:
            self._ledger.enter(seq, self._low - self.terms.amount)
        if self._binding:
            self._trim = self._inside(self._trim - self._trim_rate * self._correction(self._debt))
            before = self._debt
            self._owe(assumed - allowance)
            allowance = assumed - (self._debt - before)  # less what cannot be saved up
        return Passage(seq, at, allowance, assumed, assumed, shadow)

    def leaves(self, passage: Passage, k: int, score: float) -> bool:
        """Decide whether a frame leaves at exit k, and book what that costs.

        Call it for each exit that a frame reaches. A NaN score leaves early only where everything
        does, so that it cannot break a budget.
        """
        debt = self._debt - (passage.booked - passage.assumed)
        spread = spread_ties(score, k, self._decisions)
        self._decisions += 1
        leaving = self._would_leave(passage, k, spread, self._coordinate(debt))
        if passage.shadow and k == 0:
            passage.shadow = (
                debt < self._debt_limit
                and self._per_frame >= self._low
                and self._reserved(passage, self._high - self._low)
            )
        if passage.shadow:
            self._try_elsewhere(passage, k, score, spread)
            leaving = k == len(self._windows)
        elif not leaving:
            costs = self.table.fractions
            leaving = not self._reserved(passage, costs[k + 1] - costs[k])
        if self._books(passage):
            staying = self._high if passage.shadow else self._staying[k]
            cost = self.table.fractions[k] if leaving else staying
            self._owe(cost - passage.booked)
            passage.booked = cost
        return leaving

    def walk(self, at: float, scores: Iterable[float]) -> tuple[Passage, int]:
        """A frame whose scores at all exits are known, as in a simulation: it comes, and leaves.

        Returns:
            Its passage, and where it left. It is not settled yet.
        """
        passage = self.enter(at)
        return passage, next(k for k, s in enumerate(scores) if self.leaves(passage, k, s))

    def withdrawn(self, passage: Passage, k: int) -> None:
        """Note that a frame was dropped behind exit k: it spent what gets there, and nothing more."""
        if self._books(passage):
            self._owe(self.table.fractions[k] - passage.booked)
            passage.booked = self.table.fractions[k]

    def settled(self, passage: Passage, k: int) -> None:
        """Note that a frame went behind exit k, answered or withdrawn, in frame order.

        What the status tells is over these.
        """
        timed = self.terms.window_seconds is not None or self.terms.per == "second"
        self._recent.add(k, passage.allowance, passage.at if timed else None)
        self._recent.shorten(self.terms)

    def memory(self) -> dict[str, Any]:
        """What was learned of the stream, for JSON; see `remember`."""
        return {
            "trim": round(self._trim, 6),
            "pace": round(self._pace.seconds, 6),
            "scores": [[round(score, 6) for score in w.scores] for w in self._windows],
        }

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Begin with what another run learned; its debt is forgiven.

        Raises:
            BudgetError: Not a memory, or one of a network with another number of exits.
        """
        try:
            trim, pace = float(memory["trim"]), float(memory["pace"])
            scores = [[float(score) for score in row] for row in memory["scores"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BudgetError(f"memory of a stream: {error!r}") from error
        if not all(map(math.isfinite, chain([trim, pace], *scores))) or pace < SHORTEST_PACE:
            raise BudgetError("memory of a stream: holds something that is no number")
        if len(scores) != len(self._windows):
            raise BudgetError("memory of a stream: made by a network with other exits")
        self._windows = [ScoreWindow(row) for row in scores]
        self._pace.remember(pace)
        self._tune()
        self._trim = self._inside(trim)

    def threshold(self, u: float, k: int) -> float:
        """The threshold of exit k at table coordinate `u`, a share of the full cost."""
        if k == len(self._windows) or not self._low < u < self._high or not self._windows[k]:
            return self.table.threshold(u, k)
        prior, share = self.table.logit_threshold(u, k), self.table.leaving_share(u, k)
        window = self._windows[k]
        own = logit(window.reached_by(share)) if 0 < share < 1 else logit(1 - share)
        weight = len(window) / (len(window) + PRIOR_SCORES)
        return expit(prior + weight * (own - prior))

    @property
    def coordinate(self) -> float:
        """u: where in the table the thresholds are read now."""
        return self._coordinate(self._debt)

    @property
    def status(self) -> BudgetStatus:
        """See `BudgetStatus`."""
        recent, u = self._recent, self.coordinate
        n = len(recent)
        spent = sum(c * m for c, m in zip(self.table.fractions, recent.counts, strict=True))
        per_second = None
        if self.terms.per == "second" and (seconds := recent.seconds):
            per_second = spent / (seconds + self._pace.seconds)
        return BudgetStatus(
            state=self._state(spent, recent.allowed),
            target=self._per_frame,
            mean=spent / n if n else None,
            frames=n,
            exit_shares=tuple(m / n if n else 0.0 for m in recent.counts),
            thresholds=tuple(self.threshold(u, k) for k in range(len(self.table.fractions))),
            version=self._version,
            per_second=per_second,
        )

    def _would_leave(self, passage: Passage, k: int, spread: float, u: float) -> bool:
        """By its score alone; the score is noted for later thresholds."""
        threshold = self.threshold(u, k)
        leaving = spread >= threshold or threshold == ALWAYS
        if passage.leaves_at is None:
            if k < len(self._windows) and not math.isnan(spread):
                self._windows[k].add(spread)
            if leaving:
                passage.leaves_at = k
        return leaving

    def _try_elsewhere(self, passage: Passage, k: int, score: float, spread: float) -> None:
        passage.scores = (*passage.scores, score)
        others = grid(self.table)
        so_far = passage.elsewhere or (len(self._windows),) * len(others)
        passage.elsewhere = tuple(
            min(left, k) if spread >= self.threshold(other + self._trim, k) else left
            for left, other in zip(so_far, others, strict=True)
        )

    def _reserved(self, passage: Passage, more: float) -> bool:
        return self._ledger is None or self._ledger.reserve(passage.seq, more)

    def _books(self, passage: Passage) -> bool:
        """Whether what a frame costs is owed by the budget there is now."""
        return self._binding and passage.seq >= self._books_from

    def _allowance(self, at: float) -> float:
        """What the budget gives for a frame that comes now."""
        since = self._pace.came(at)
        if self.terms.per == "second" or self.terms.window_seconds is not None:
            self._tune()
        return self.terms.amount * since if self.terms.per == "second" else self._aim

    def _tune(self) -> None:
        """Gains and limits, from the budget per frame and the window in frames."""
        terms = self.terms
        self._per_frame = terms.amount * (self._pace.seconds if terms.per == "second" else 1.0)
        self._binding = terms.per == "second" or self._low <= self._per_frame < self._high
        held_back = STRICT_SHARE if terms.strict and self._binding else 0.0
        self._aim = self._per_frame * (1 - held_back)
        for_others = (self._aim - self._shadow) / (1 - self._shadow) if self._shadow < 1 else 0.0
        self._center = min(max(for_others, self._low), self._high)
        window = float(terms.window)
        if terms.window_seconds is not None:
            window = max(1.0, terms.window_seconds / self._pace.seconds)
        self._eta = ETA_FRAMES / window
        self._trim_rate = TRIM_FRAMES / window
        self._debt_limit = max(1.0, DEBT_SHARE * window * min(self._aim, self._high))
        row = self.table.nearest_row(self._aim)
        if self._row != row or self._row is None:
            self._row, self._staying = row, _mean_cost_of_staying(self.table, row)

    def _coordinate(self, debt: float) -> float:
        return self._center + self._trim - self._correction(debt)

    def _correction(self, debt: float) -> float:
        return self._eta * debt + self._range * (debt / self._debt_limit) ** 3

    def _inside(self, trim: float) -> float:
        return min(max(trim, self._low - self._center), self._high - self._center)

    def _owe(self, amount: float) -> None:
        self._debt += amount
        self._version += 1
        if self.terms.per == "second" or self.terms.strict:  # nothing else keeps it from growing
            most = self._debt_limit + self._range
            self._debt = min(max(self._debt, -most), most)

    def _state(self, spent: float, allowed: float) -> BudgetState:
        if self._per_frame < self._low:
            return "unreachable"
        if self._per_frame >= self._high:
            return "not_binding"
        tolerance = max(ON_BUDGET_SHARE * allowed, 1.0)
        return "on_budget" if abs(spent - allowed) <= tolerance else "saturated"


def _mean_cost_of_staying(table: ThresholdTable, row: int | None) -> list[float]:
    """What frames that stay at exit k cost in the end, on calibration data at a row's budget."""
    costs = table.fractions
    shares = table.shares[row] if row is not None else (0.0,) * len(costs)
    means: list[float] = []
    for k in range(len(costs)):
        left = sum(shares[k + 1 :])
        deeper = sum(s * c for s, c in zip(shares[k + 1 :], costs[k + 1 :], strict=True))
        means.append(deeper / left if left > 0 else costs[min(k + 1, len(costs) - 1)])
    return means
