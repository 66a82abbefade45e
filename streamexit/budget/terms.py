"""What a stream may spend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from streamexit.errors import BudgetError
from streamexit.exits import DEFAULT_WINDOW, Budget, CostTable


@dataclass(frozen=True, slots=True)
class Terms:
    """A budget and the window that it holds over. Costs are shares of the full network's.

    Attributes:
        amount: Mean cost per frame, or cost per second.
        per: Which of both.
        window: Frames; not used where `window_seconds` is given.
        window_seconds: The window in time, if it is.
        strict: No window may cost more than its budget, not even by a little.

    Raises:
        BudgetError: Names the field, the value and what would be right.
    """

    amount: float
    per: Literal["frame", "second"] = "frame"
    window: int = DEFAULT_WINDOW
    window_seconds: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise BudgetError(f"budget: {self.amount} must be a positive number")
        if self.window < 1:
            raise BudgetError(f"window: {self.window} must be at least 1 frame")
        if self.window_seconds is not None and not 0 < self.window_seconds < math.inf:
            raise BudgetError(f"window_s: {self.window_seconds} must be a positive number")
        if self.strict and (self.per == "second" or self.window_seconds is not None):
            raise BudgetError(
                "strict: true counts frames; give the budget per frame (fraction, gflops_per_frame or "
                "milliseconds_per_frame) and the window in frames, or leave strict out"
            )

    @classmethod
    def of(
        cls,
        budget: Budget,
        costs: CostTable,
        *,
        window: int = DEFAULT_WINDOW,
        window_seconds: float | None = None,
        strict: bool = False,
    ) -> Terms:
        """From a budget in some unit and the costs that it is held by."""
        per: Literal["frame", "second"] = "second" if budget.per_second else "frame"
        return cls(budget.as_fraction(costs), per, window, window_seconds, strict)
