"""Looking for better exit shares in a stream's own shadow frames.

A policy's shares were searched on calibration pictures. A camera shows something else; from its shadow
frames, with the last exit's answers as the truth, they can be searched again. Few frames and many
candidates find a winner by luck, so one half of the frames searches and the other half judges.

K: exits, n: frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamexit.budget.shadow import ShadowFrame
from streamexit.errors import PipelineError
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.search import SearchShares
from streamexit.scheduling.thresholds import (
    ThresholdTable,
    build_table,
    exits_taken,
    solve_thresholds,
    spread_all,
)

FEWEST = 200
"""Shadow frames that a search takes."""

EVERY = 100
"""New shadow frames between two searches."""

SURE = 1.645
"""Standard errors by which the new shares must be better: a chance of 5% to be fooled."""


@dataclass(frozen=True)
class Finding:
    """What a search came to.

    Attributes:
        table: With the shares that were found; None keeps the one there is.
        before: [K] shares at the budget until now.
        after: [K] that were found.
        gain: Agreement gained on the frames that judge.
        error: Standard error of the gain.
        judged: How many frames judged.
    """

    table: ThresholdTable | None
    before: tuple[float, ...]
    after: tuple[float, ...]
    gain: float
    error: float
    judged: int

    def sentence(self) -> str:
        """For the log."""
        shares = " -> ".join(
            "/".join(f"{100 * share:.0f}" for share in row) for row in (self.before, self.after)
        )
        verdict = "adopted" if self.table else "kept as they are"
        return (
            f"exit shares {shares}%: agreement {100 * self.gain:+.2f} +- {100 * self.error:.2f} points "
            f"on {self.judged} held-out shadow frames; {verdict}"
        )


def search_again(
    frames: Sequence[ShadowFrame], table: ThresholdTable, budget: float
) -> Finding | None:
    """Search shares on every second shadow frame, judge them on the others.

    Args:
        frames: At least `FEWEST`.
        table: In use.
        budget: Share of the full network's cost, inside the table.

    Returns:
        None where the frames give no table (all alike).
    """
    scores = np.array([frame.scores for frame in frames])
    agreement = np.array([frame.agreement for frame in frames])
    rule = SearchShares(scores[::2], agreement[::2], table.fractions)
    try:
        found = build_table(scores[::2], table.fractions, rule.rows())
    except PipelineError:
        return None
    if not found.budgets:
        return None
    judges = spread_all(scores[1::2])
    new, old = (_answers(judges, agreement[1::2], t, budget) for t in (found, table))
    difference = new - old
    gain, error = float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
    better = gain > max(SURE * error, 0.0)
    return Finding(
        found if better else None,
        table.shares_at(budget),
        found.shares_at(budget),
        gain,
        error,
        len(difference),
    )


def _answers(scores: Floats, agreement: Floats, table: ThresholdTable, budget: float) -> Floats:
    """[n] agreement at the exits taken; both tables spend the same, up to rounding."""
    taken = exits_taken(scores, solve_thresholds(scores, np.array(table.shares_at(budget))))
    return np.asarray(agreement[np.arange(len(taken)), taken])
