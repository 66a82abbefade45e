"""What a replay finds: gathered answer by answer, and told at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streamexit.budget.shadow import Estimate, ShadowLog, agreement_now
from streamexit.budget.status import BudgetState
from streamexit.budget.terms import Terms
from streamexit.budget.windows import worst_window_error
from streamexit.exits import CostTable
from streamexit.metrics import StreamCounters
from streamexit.prediction import Prediction
from streamexit.tasks.readout import Target, Task


@dataclass(slots=True)
class StreamReport:
    """What a replay found for one stream, or for all together.

    Costs are in the pipeline's unit. `against_truth` and `against_full` hold `Tally.figures` of the
    answers, compared with the true labels and with the full network's answers; None where there are
    no labels, and where the comparison was not asked for. `estimated` is what shadow frames say of the
    latter.
    """

    frames: int
    answered: int
    dropped: dict[str, int]
    mean_cost: float | None
    full_cost: float
    worst_window_error: float | None
    exit_shares: tuple[float, ...]
    against_truth: dict[str, Any] | None
    against_full: dict[str, Any] | None
    estimated: Estimate | None
    budget_state: BudgetState | None
    error: str | None


class Judgement:
    """How good answers were, as far as that can be known.

    Args:
        task: Compares them.
    """

    def __init__(self, task: Task) -> None:
        self._truth, self._full = task.tally(), task.tally()
        self._labelled = self._compared = False

    def with_truth(self, prediction: Prediction, target: Target) -> None:
        """Compare an answer with the true label."""
        self._labelled = True
        self._truth.add(prediction, target)

    def with_full(self, prediction: Prediction, target: Target) -> None:
        """Compare an answer with the full network's."""
        self._compared = True
        self._full.add(prediction, target)

    @property
    def against_truth(self) -> dict[str, Any] | None:
        """See `StreamReport`."""
        return self._truth.figures() if self._labelled else None

    @property
    def against_full(self) -> dict[str, Any] | None:
        """See `StreamReport`."""
        return self._full.figures() if self._compared else None


@dataclass(slots=True)
class Findings:
    """What was found of one stream so far.

    Attributes:
        counters: Of its frames.
        shadow: What its shadow frames showed.
        judgement: Of its answers.
        exits: Where they left, in order.
        error: Why its source broke, if it did.
    """

    counters: StreamCounters
    shadow: ShadowLog
    judgement: Judgement
    exits: list[int] = field(default_factory=list)
    error: str | None = None


def report(
    streams: Sequence[Findings],
    judgement: Judgement,
    *,
    costs: CostTable,
    terms: Terms,
    state: BudgetState | None,
) -> StreamReport:
    """What there is to tell of one stream, or of several together.

    Args:
        streams: Which.
        judgement: Of all their answers.
        costs: Per exit.
        terms: That each stream's budget was held by.
        state: Of the budget, where there is one stream.
    """
    exits = [k for stream in streams for k in stream.exits]
    dropped: Counter[str] = Counter()
    for stream in streams:
        dropped.update(stream.counters.dropped)
    windows = [_worst_window(stream.exits, costs, terms) for stream in streams]
    n = len(exits)
    return StreamReport(
        frames=sum(stream.counters.frames for stream in streams),
        answered=n,
        dropped=dict(sorted(dropped.items())),
        mean_cost=sum(costs.per_exit[k] for k in exits) / n if n else None,
        full_cost=costs.full,
        worst_window_error=max((w for w in windows if w is not None), default=None),
        exit_shares=tuple(exits.count(k) / n if n else 0.0 for k in range(len(costs.per_exit))),
        against_truth=judgement.against_truth,
        against_full=judgement.against_full,
        estimated=agreement_now(
            [frame for stream in streams for frame in stream.shadow.frames], costs.fractions
        ),
        budget_state=state,
        error="; ".join(stream.error for stream in streams if stream.error) or None,
    )


def _worst_window(exits: Sequence[int], costs: CostTable, terms: Terms) -> float | None:
    """Of budgets per frame with a window in frames."""
    if terms.per == "second" or terms.window_seconds is not None:
        return None
    return worst_window_error([costs.fractions[k] for k in exits], terms.amount, terms.window)
