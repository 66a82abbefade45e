"""Exits, what they cost, and the record of a frame that left at one.

K: exits. Exits count from 0 inside the program and from 1 on the wire.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from streamexit.errors import BudgetError, PipelineError
from streamexit.frame import FrameInfo
from streamexit.prediction import Prediction

NEVER = float("inf")
"""A threshold that no score reaches."""

ALWAYS = float("-inf")
"""A threshold that every score reaches; the last exit's."""


DEFAULT_WINDOW = 300
"""Frames that a stream's mean cost is held over."""


@dataclass(frozen=True, slots=True)
class CostTable:
    """Cumulative cost to leave at each exit, heads of passed exits included.

    Attributes:
        unit: What the numbers are; "gflops" counts one multiply-add as 2 FLOPs; "milliseconds" are
            those of a profiled device.
        per_exit: [K], positive and strictly rising.
    """

    unit: Literal["gflops", "milliseconds"]
    per_exit: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.per_exit, self.per_exit[1:], strict=False))
        finite = all(map(math.isfinite, self.per_exit))
        if not finite or not self.per_exit or self.per_exit[0] <= 0 or not rising:
            raise PipelineError(
                f"costs.per_exit: {list(self.per_exit)} must be positive and strictly rising"
            )

    @property
    def full(self) -> float:
        """Cost of a frame that goes all the way."""
        return self.per_exit[-1]

    def of_stage(self, k: int) -> float:
        """Cost of stage k alone."""
        return self.per_exit[k] - (self.per_exit[k - 1] if k else 0.0)

    @property
    def fractions(self) -> tuple[float, ...]:
        """`per_exit` as shares of the full network; the last is 1."""
        return tuple(cost / self.full for cost in self.per_exit)


@dataclass(frozen=True, slots=True)
class Budget:
    """The average cost that a stream may have over its window.

    Attributes:
        amount: In `unit`, positive; a fraction is at most 1.
        unit: "fraction" (of the full network's GFLOPs), "gflops_per_frame" or
            "milliseconds_per_frame" (of a profiled device); "gflops_per_second" or
            "milliseconds_per_second" for streams whose frame rate varies.
    """

    amount: float
    unit: str = "fraction"

    UNITS = (
        "fraction",
        "gflops_per_frame",
        "milliseconds_per_frame",
        "gflops_per_second",
        "milliseconds_per_second",
    )

    def __post_init__(self) -> None:
        if self.unit not in self.UNITS:
            raise BudgetError(
                f"budget: unit {self.unit!r} is unknown; use one of {', '.join(self.UNITS)}"
            )
        if not 0 < self.amount < float("inf"):
            raise BudgetError(f"budget.{self.unit}: {self.amount} must be a positive number")
        if self.unit == "fraction" and self.amount > 1:
            raise BudgetError(
                f"budget.fraction: {self.amount:g} is above 1, which is the full network; 40% is 0.4"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "fraction=0.4" or "gflops_per_frame=0.05".

        Raises:
            BudgetError: Another form, unit or number.
        """
        unit, equals, number = text.partition("=")
        try:
            amount = float(number)
        except ValueError:
            equals = ""
            amount = 0.0
        if not equals:
            raise BudgetError(f"budget: {text!r} is not of the form fraction=0.4")
        return cls(amount, unit.strip())

    @property
    def cost_unit(self) -> str:
        """Unit of the cost table that this budget is held by."""
        return "milliseconds" if self.unit.startswith("milliseconds") else "gflops"

    @property
    def per_second(self) -> bool:
        """Whether it is per second, not per frame."""
        return self.unit.endswith("_per_second")

    def as_fraction(self, costs: CostTable) -> float:
        """As a share of the full network's cost (per frame or per second), in a table of `cost_unit`."""
        return self.amount if self.unit == "fraction" else self.amount / costs.full


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """One answered frame.

    Attributes:
        frame: Which frame.
        seq: Position among the stream's answers, from 0; a gap seen downstream is a loss.
        exit: Where it left, from 0.
        score: The exit score there, in [0, 1].
        cost: In the cost table's unit.
        prediction: The answer.
        answered_at: Engine time in seconds when the answer was known.
        latency_seconds: From admission to the engine until then.
    """

    frame: FrameInfo
    seq: int
    exit: int
    score: float
    cost: float
    prediction: Prediction
    answered_at: float
    latency_seconds: float
