"""The gates of JEI-DNN (Chataoui et al., "Jointly-Learned Exit and Inference", ICLR 2024).

At each exit a logistic function of four uncertainty features of the softmax says "leave". Its
target: the exit with the least cross-entropy plus lambda times cost, and every exit after it. The
paper alternates between gates and classifiers; here, as in every comparison on traces, the
classifiers stay as they are and the gates alone are fitted, at one lambda in the middle of the
range; other budgets rank by the gate's value.

N: frames, K: exits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.scheduling.evidence import CERTAINTY, MAX_PROBABILITY, Calibration, Evidence
from streamexit.scheduling.scorers import Scorer, seeded, weigh

MAX_POSITIVE_WEIGHT = 5.0
COST_WEIGHT = 0.5
"""Lambda, in nats of cross-entropy per full network."""


class GateScorer(Scorer):
    """Logistic gates.

    Args:
        num_exits: K.
    """

    kind = "gate"

    def __init__(self, *, num_exits: int) -> None:
        super().__init__()
        self._num_exits = num_exits
        self.exits = nn.ModuleList(nn.Linear(4, 1) for _ in range(num_exits))

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """The gate's value at exit k."""
        return torch.sigmoid(weigh(self.exits[k], gate_features(evidence)).squeeze(1))

    def config(self) -> dict[str, Any]:
        """K."""
        return {"num_exits": self._num_exits}

    def own_thresholds(self, num_exits: int) -> dict[str, list[float]]:
        """The paper leaves where the gate says yes."""
        return {"gate 0.5": [0.5] * (num_exits - 1)}


def gate_features(evidence: Evidence) -> Tensor:
    """[N, 4]: largest probability, certainty, margin, certainty of the softmax made sharper.

    The paper's entropies appear as certainties (one minus the normalised entropy), which only turns
    a weight's sign round; sharper means squared and normalised again.
    """
    p = evidence.distribution
    top = p.topk(2, dim=1).values
    squared = p.square()
    sharper = squared / squared.sum(1, keepdim=True).clamp_min(1e-12)
    entropy = -(sharper * sharper.clamp_min(1e-30).log()).sum(1) / math.log(p.shape[1])
    return torch.stack(
        [
            evidence.confidence[:, MAX_PROBABILITY],
            evidence.confidence[:, CERTAINTY],
            top[:, 0] - top[:, 1],
            1 - entropy,
        ],
        dim=1,
    )


def target_exits(likelihood: Tensor, fractions: Sequence[float], cost_weight: float) -> Tensor:
    """int64 [N]: argmin_k of -log likelihood_k + cost_weight * cost_k."""
    losses = -likelihood.clamp_min(1e-8).log() + cost_weight * torch.tensor(fractions)
    return losses.argmin(1)


def fit_gates(
    calibration: Calibration,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    steps: int = 400,
    learning_rate: float = 0.05,
) -> GateScorer:
    """Fit the gates by full-batch Adam.

    Args:
        calibration: Evidence, with the likelihood.
        fractions: [K].
        seed: Of the initial weights.
        steps: Of Adam.
        learning_rate: Adam's.
    """
    k = calibration.num_exits
    with seeded(seed):
        scorer = GateScorer(num_exits=k)
    optimiser = torch.optim.Adam(scorer.parameters(), lr=learning_rate)
    targets = target_exits(calibration.likelihood, fractions, COST_WEIGHT)
    leave = (torch.arange(k) >= targets[:, None]).float()
    positive = leave.mean(0)
    weight = ((1 - positive) / positive.clamp_min(1e-6)).clamp(max=MAX_POSITIVE_WEIGHT)
    none = calibration.quality.new_zeros((len(targets), 0))
    features = [gate_features(calibration.at(i, none)) for i in range(k)]
    for _ in range(steps):
        logits = torch.cat([scorer.exits[i](features[i]) for i in range(k)], dim=1)
        loss = functional.binary_cross_entropy_with_logits(logits, leave, pos_weight=weight)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return scorer.requires_grad_(False)
