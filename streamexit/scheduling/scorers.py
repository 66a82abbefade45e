"""Scorers: how likely is this exit's answer good enough?

A scorer runs inside the compiled stage, on the device, so it is a plain `nn.Module` over tensors.
N: rows, K: exits, C: columns of the distribution, F: confidence features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamexit.errors import PipelineError
from streamexit.scheduling.evidence import Calibration, Evidence


class Scorer(nn.Module):
    """Maps the evidence at exit k to exit scores in [0, 1]."""

    kind: str

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Exit scores [N] at exit k (from 0)."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Keyword arguments that build this scorer again, without its weights."""
        return {}

    def forward(self, k: int, evidence: Evidence) -> Tensor:
        """The same as `score`."""
        return self.score(k, evidence)


class MaxProbability(Scorer):
    """The largest class probability (MSDNet, Huang et al., ICLR 2018, section 5)."""

    kind = "max_probability"

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Column 0 of the confidence features."""
        return evidence.confidence[:, 0]


class EENetScorer(Scorer):
    """EENet's learned exit score g_k (Ilhan et al., WACV 2024, section 3.2).

    A linear function per exit of the class probabilities, the confidence features and the scores
    at earlier exits. Published, it is clamped to [0, 1]; here a sigmoid bounds it, which ranks
    frames the same way and has a gradient everywhere.

    Args:
        num_exits: K; the last exit accepts always and its score only serves reporting.
        num_columns: C.
        num_features: F.
    """

    kind = "eenet"

    def __init__(self, *, num_exits: int, num_columns: int, num_features: int) -> None:
        super().__init__()
        self._config = {
            "num_exits": num_exits,
            "num_columns": num_columns,
            "num_features": num_features,
        }
        self.exits = nn.ModuleList(
            nn.Linear(num_columns + num_features + k, 1) for k in range(num_exits)
        )
        for linear in self.exits:
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
            with torch.no_grad():
                linear.weight[0, num_columns] = 1.0  # start as the largest probability

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Sigmoid of a linear function of everything seen so far."""
        return torch.sigmoid(self.exits[k](torch.cat(evidence, dim=1)).squeeze(1))

    def config(self) -> dict[str, Any]:
        """Sizes."""
        return dict(self._config)


SCORERS: dict[str, type[Scorer]] = {s.kind: s for s in (MaxProbability, EENetScorer)}


def build_scorer(kind: str, config: dict[str, Any]) -> Scorer:
    """Build a scorer by name.

    Raises:
        PipelineError: Unknown name.
    """
    if kind not in SCORERS:
        raise PipelineError(f"policy.scorer: {kind!r} is unknown; known are {', '.join(SCORERS)}")
    return SCORERS[kind](**config)


def score_all_exits(scorer: Scorer, calibration: Calibration) -> Tensor:
    """Scores [N, K] of all frames at all exits, as the running network would compute them."""
    scores = calibration.quality.new_zeros((len(calibration.quality), 0))
    for k in range(calibration.num_exits):
        evidence = Evidence(
            calibration.distribution[:, k], calibration.confidence[:, k], scores.detach()
        )
        scores = torch.cat([scores, scorer.score(k, evidence)[:, None]], dim=1)
    return scores
