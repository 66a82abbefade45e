"""What a scorer may look at, and a calibration set of it.

N: frames, K: exits, C: columns of the distribution, F: confidence features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.errors import DataError

Floats = NDArray[np.float64]


class Evidence(NamedTuple):
    """What is known of N frames at one exit. Scorers see this, never pixels.

    Attributes:
        distribution: [N, C]: class probabilities.
        confidence: [N, F] in [0, 1]; the first column is the largest probability.
        past_scores: [N, k]: the exit scores at the exits before this one.
    """

    distribution: Tensor
    confidence: Tensor
    past_scores: Tensor


@dataclass(frozen=True)
class Calibration:
    """Every exit's evidence on frames that nothing else was fitted on.

    Attributes:
        distribution: float32 [N, K, C].
        confidence: float32 [N, K, F].
        quality: float32 [N, K] in [0, 1]: 1 where exit k's answer is right.
    """

    distribution: Tensor
    confidence: Tensor
    quality: Tensor

    def __post_init__(self) -> None:
        n, k = self.quality.shape
        if self.distribution.shape[:2] != (n, k) or self.confidence.shape[:2] != (n, k):
            raise DataError(
                f"calibration: {self.distribution.shape = } and {self.confidence.shape = } "
                f"do not match {self.quality.shape = }"
            )
        if n < k:
            raise DataError(f"calibration: {n} frames are too few for {k} exits")
        if not torch.isfinite(self.distribution).all():
            raise DataError("calibration: probabilities hold NaN or infinity")

    @property
    def num_exits(self) -> int:
        """K."""
        return self.quality.shape[1]
