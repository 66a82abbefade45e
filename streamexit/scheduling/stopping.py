"""The learned stopping posterior of "Learning to Stop While Learning to Predict" (MAML-Stop).

Chen et al., ICML 2020. A policy pi_k, the chance of stopping at exit k having come that far, gives
a stopping time q_k = pi_k prod_{j<k} (1 - pi_j). Its target is the oracle posterior: with the
predictions fixed, p_k proportional to the likelihood of the true label at exit k (their equation
for beta = 1). q is fitted by the forward divergence, the cross-entropy of q under p.

Differences: the published code takes the largest probability in place of the label's likelihood,
which needs no labels and is not what the paper says; here it is the paper's. Frames are ranked by
pi_k, so that a budget can be met; the paper has no budget, and its own rule, the largest q_k, has
to run all exits before it can say which.

N: frames, K: exits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamexit.scheduling.evidence import VOTE, Calibration, Evidence, learnable
from streamexit.scheduling.scorers import Scorer, seeded, weigh

HIDDEN = 16


class StoppingScorer(Scorer):
    """pi_k: one small network for all exits, which is told the exit as a one-hot vector.

    Args:
        num_exits: K.
        num_columns: C.
        num_features: How many confidence features there are to learn from; see `learnable`.
    """

    kind = "stopping"

    def __init__(self, *, num_exits: int, num_columns: int, num_features: int = VOTE + 1) -> None:
        super().__init__()
        self._config = {
            "num_exits": num_exits,
            "num_columns": num_columns,
            "num_features": num_features,
        }
        self._num_exits = num_exits
        self.layers = nn.Sequential(
            nn.Linear(num_columns + num_features + num_exits, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, 1),
        )

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Chance of stopping at exit k, from its probabilities and confidence features."""
        n = len(evidence.distribution)
        where = evidence.confidence.new_zeros((n, self._num_exits))
        where[:, k] = 1
        seen = (evidence.distribution, learnable(evidence.confidence), where)
        first, squash, last = self.layers
        hidden = squash(weigh(first, torch.cat(seen, dim=1)))
        return torch.sigmoid(weigh(last, hidden).squeeze(1))

    def config(self) -> dict[str, Any]:
        """Sizes."""
        return dict(self._config)


def oracle_posterior(likelihood: Tensor) -> Tensor:
    """p_k [N, K], proportional to the likelihood of the true label at exit k."""
    return likelihood / likelihood.sum(1, keepdim=True).clamp_min(1e-12)


def stopping_time(stop: Tensor) -> Tensor:
    """Stopping times q [N, K] from the chances pi [N, K] of stopping at each exit; the last takes all that come."""
    going_on = torch.cumprod(1 - stop[:, :-1], dim=1)
    reached = torch.cat([torch.ones_like(stop[:, :1]), going_on], dim=1)
    return reached * torch.cat([stop[:, :-1], torch.ones_like(stop[:, :1])], dim=1)


def fit_stopping_scorer(
    calibration: Calibration,
    *,
    seed: int = 0,
    steps: int = 600,
    learning_rate: float = 0.01,
) -> StoppingScorer:
    """Fit pi by full-batch Adam.

    Args:
        calibration: Evidence, with the likelihood.
        seed: Of the initial weights.
        steps: Of Adam.
        learning_rate: Adam's.
    """
    _, k, c = calibration.distribution.shape
    features = learnable(calibration.confidence).shape[2]
    with seeded(seed):
        scorer = StoppingScorer(num_exits=k, num_columns=c, num_features=features)
    optimiser = torch.optim.Adam(scorer.parameters(), lr=learning_rate)
    target = oracle_posterior(calibration.likelihood)
    nothing = calibration.quality.new_zeros((len(target), 0))
    for _ in range(steps):
        stop = torch.stack([scorer.score(i, calibration.at(i, nothing)) for i in range(k)], 1)
        loss = -(target * stopping_time(stop).clamp_min(1e-8).log()).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return scorer.requires_grad_(False)
