"""What a frame's answer is, per task, once it is back on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VOID = 255
"""In maps: a pixel that belongs to no class, or of which nothing is seen; it counts nowhere."""


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

    @property
    def headline(self) -> tuple[str, float]:
        """What to show where there is room for one class, and how sure or how much."""
        return self.label, self.probability


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The answer of a segmentation network.

    Attributes:
        shares: Every class with its share of the frame, in index order; they sum to 1.
        mask: uint8 [H, W], class index of each pixel, at the network's input size; 255 where the
            input shows nothing of the frame.
    """

    shares: tuple[tuple[str, float], ...]
    mask: NDArray[np.uint8]

    @property
    def headline(self) -> tuple[str, float]:
        """The class that covers most of the picture, and its share."""
        return max(self.shares, key=lambda item: item[1])


Prediction = Classification | Segmentation
"""Any task's answer."""
