"""What a scorer may look at, and a calibration set of it.

N: frames, K: exits, C: columns of the distribution, F: confidence features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.errors import DataError

Floats = NDArray[np.float64]


MAX_PROBABILITY = 0
"""Column of the confidence features: the largest class probability."""

CERTAINTY = 1
"""1 + sum p log p / log C: 1 for a certain and 0 for a uniform distribution."""

VOTE = 2
"""Share of the exits so far that agree with the most frequent prediction."""

RUN = 3
"""Share of the exits so far that agree with this one without a break, this one included."""


def learnable(confidence: Tensor) -> Tensor:
    """What learned scorers see of the confidence features [..., F]: all but `RUN`, [..., F - 1].

    The counter is PABEE's; EENet's features are the first three, and what a task adds behind them.
    """
    return torch.cat([confidence[..., :RUN], confidence[..., RUN + 1 :]], dim=-1)


class Evidence(NamedTuple):
    """What is known of N frames at one exit. Scorers see this, never pixels.

    Attributes:
        distribution: [N, C]: class probabilities (classification) or class shares (segmentation).
        confidence: [N, F] in [0, 1]; the first four columns are those of `MAX_PROBABILITY`,
            `CERTAINTY`, `VOTE` and `RUN`.
        past_scores: [N, k]: the exit scores at the exits before this one.
        branch: [N] in [0, 1]: what the network's own confidence branch says, if it has one.
    """

    distribution: Tensor
    confidence: Tensor
    past_scores: Tensor
    branch: Tensor | None = None


@dataclass(frozen=True)
class Calibration:
    """Every exit's evidence on frames that nothing else was fitted on.

    Attributes:
        distribution: float32 [N, K, C].
        confidence: float32 [N, K, F].
        quality: float32 [N, K] in [0, 1]: how good exit k's answer is; in classification 1 where it
            is right, else 0. Where the papers' equations have a correctness, this is meant.
        branch: float32 [N, K] in [0, 1], from networks with confidence branches.
        right_probability: float32 [N, K]: the probability that exit k gives the right answer, where
            there is one right answer.
    """

    distribution: Tensor
    confidence: Tensor
    quality: Tensor
    branch: Tensor | None = None
    right_probability: Tensor | None = None

    def __post_init__(self) -> None:
        n, k = self.quality.shape
        if self.distribution.shape[:2] != (n, k) or self.confidence.shape[:2] != (n, k):
            raise DataError(
                f"calibration: {self.distribution.shape = } and {self.confidence.shape = } "
                f"do not match {self.quality.shape = }"
            )
        for name in ("distribution", "confidence", "quality", "branch", "right_probability"):
            values = getattr(self, name)
            if values is not None and not torch.isfinite(values).all():
                raise DataError(f"calibration: {name} holds NaN or infinity")

    @property
    def num_exits(self) -> int:
        """K."""
        return self.quality.shape[1]

    @property
    def likelihood(self) -> Tensor:
        """[N, K]: what the methods that learn from the label's likelihood take for it.

        The quality stands in where no single answer is the right one.
        """
        return self.quality if self.right_probability is None else self.right_probability

    def at(self, k: int, past_scores: Tensor) -> Evidence:
        """What is known at exit k when the exits before gave `past_scores` [N, k]."""
        return Evidence(
            self.distribution[:, k],
            self.confidence[:, k],
            past_scores,
            None if self.branch is None else self.branch[:, k],
        )

    def rows(self, index: Tensor) -> Calibration:
        """The frames at `index`."""
        return Calibration(
            self.distribution[index],
            self.confidence[index],
            self.quality[index],
            None if self.branch is None else self.branch[index],
            None if self.right_probability is None else self.right_probability[index],
        )


def concatenate(parts: Sequence[Calibration]) -> Calibration:
    """All frames of `parts`, in order."""
    branches = [part.branch for part in parts if part.branch is not None]
    right = [part.right_probability for part in parts if part.right_probability is not None]
    return Calibration(
        torch.cat([part.distribution for part in parts]),
        torch.cat([part.confidence for part in parts]),
        torch.cat([part.quality for part in parts]),
        torch.cat(branches) if branches else None,
        torch.cat(right) if right else None,
    )
