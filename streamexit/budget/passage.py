"""A frame on its way through the network, as its budget controller sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Passage:
    """See the module.

    Attributes:
        seq: Position among the stream's frames.
        at: Seconds, when it came.
        allowance: What the budget gives for it.
        assumed: What it was expected to cost when it came.
        booked: What it is charged by now.
        shadow: Whether it goes to the last exit whatever its scores say.
        leaves_at: Where it leaves; of a shadow frame where it would have left. None: not yet.
        scores: Of a shadow frame, exit by exit.
        elsewhere: Of a shadow frame: where it would have left at other budgets; see `ShadowFrame`.
    """

    seq: int
    at: float
    allowance: float
    assumed: float
    booked: float
    shadow: bool = False
    leaves_at: int | None = None
    scores: tuple[float, ...] = ()
    elsewhere: tuple[int, ...] = ()
