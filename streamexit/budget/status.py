"""What a budget controller has to say.

K: exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BudgetState = Literal["on_budget", "saturated", "unreachable", "not_binding"]
"""on_budget: over the last window, spending is within 5% of what it was allowed (or one full frame).
saturated: it is not, although the controller does what it can.
unreachable: the budget is below the cost of the first exit; every frame leaves there.
not_binding: the budget is the full network's cost or more; every frame goes all the way."""


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """What a controller has to say.

    Attributes:
        state: See `BudgetState`.
        target: The budget per frame, as a share of the full network's cost; of a budget per second,
            what it comes to at the present frame rate.
        mean: Over the last window (or as much of it as there was), frames that expired on their way
            included; None before the first.
        frames: How many frames `mean` is over.
        exit_shares: [K], over the same frames.
        thresholds: [K], now.
        version: Rises with every change of the thresholds.
        per_second: Of a budget per second: what was spent per second over the window; else None.
    """

    state: BudgetState
    target: float
    mean: float | None
    frames: int
    exit_shares: tuple[float, ...]
    thresholds: tuple[float, ...]
    version: int
    per_second: float | None = None
