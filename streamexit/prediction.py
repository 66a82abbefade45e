"""What a frame's answer is, per task, once it is back on the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer of a classification network.

    Attributes:
        label: Name of the most probable class.
        index: Its index.
        probability: In [0, 1].
        top: The most probable classes with their probabilities, falling; the first is `label`.
    """

    label: str
    index: int
    probability: float
    top: tuple[tuple[str, float], ...]


Prediction = Classification
"""Any task's answer."""
