"""EENet's scheduler (Ilhan et al., WACV 2024), in a form that works.

Two parts are fitted on calibration data: the exit scores g_k (`EENetScorer`) and the exit
assignment h_k, which says where each frame should leave. Only the mean of the assignment, K exit
shares, survives into the running system.

What is mended against the published code:
- assignment by stick-breaking, as the published results must have used: a softmax over sigmoids
  limits the shares to a ratio of e to 1 and cannot reach most budgets;
- gradients are zeroed before each step;
- no weight decay on h: with it, the small losses cannot move h at all;
- g ends in a sigmoid, so no gradient dies and no score leaves [0, 1]: published, the scores that
  later exits see are clamped in training and unclamped in use, and a frame whose last score is
  below 0 never leaves;
- probabilities are bounded from below in the entropy, which cannot be NaN;
- the vote, which the paper lists and the code leaves out, is a feature;
- the mean shares are bent to the budget exactly, instead of within ten per cent;
- one fit, no choice among restarts by the data that is then reported on; thresholds come from
  un-augmented pictures;
- one g serves all budgets: it is fitted together with h at a middle budget, then kept while h is
  fitted anew for each budget of the table.

N: frames, K: exits, C: columns of the distribution, F: confidence features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.scheduling.evidence import VOTE, Calibration, Evidence, Floats, learnable
from streamexit.scheduling.scorers import Scorer, score_all_exits, seeded, weigh
from streamexit.scheduling.shares import table_budgets, tilt_to_budget

MIDDLE_BUDGET = 0.5
"""Where between the first exit's cost (0) and the full cost (1) g and h are fitted together."""

FEATURES = VOTE + 1
"""EENet's confidence features: largest probability, certainty, vote."""

ROWS = 13
"""Of a table; each takes a fit of h."""

KL_WEIGHT = 0.1
COST_WEIGHT = 1.0


class EENetScorer(Scorer):
    """EENet's learned exit score g_k (Ilhan et al., WACV 2024, section 3.2).

    A linear function per exit of the class probabilities, the confidence features and the scores
    at earlier exits, through a sigmoid.

    Args:
        num_exits: K; the last exit accepts always and its score only serves reporting.
        num_columns: C.
        num_features: How many confidence features there are to learn from; see `learnable`.
    """

    kind = "eenet"

    def __init__(self, *, num_exits: int, num_columns: int, num_features: int = FEATURES) -> None:
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
        seen = (
            evidence.distribution,
            learnable(evidence.confidence),
            evidence.past_scores,
        )
        return torch.sigmoid(weigh(self.exits[k], torch.cat(seen, dim=1)).squeeze(1))

    def config(self) -> dict[str, Any]:
        """Sizes."""
        return dict(self._config)


HIDDEN_SHARE = 0.5
"""Hidden units per input of h (rho in the paper; 0.5 for pictures)."""


class ExitAssigner(nn.Module):
    """h: from everything known of a frame to a distribution over exits, by stick-breaking.

    Args:
        widths: Input size at each of the first K - 1 exits.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.exits = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, max(1, int(HIDDEN_SHARE * width))),
                nn.Sigmoid(),
                nn.Linear(max(1, int(HIDDEN_SHARE * width)), 1),
            )
            for width in widths
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Pi [N, K]: pi_k = r_k prod_{j<k} (1 - r_j), the last takes what is left."""
        left = torch.ones(len(inputs[0]), 1)
        parts: list[Tensor] = []
        for layer, x in zip(self.exits, inputs, strict=True):
            r = torch.sigmoid(layer(x))
            parts.append(left * r)
            left = left * (1 - r)
        return torch.cat([*parts, left], dim=1)


class EENetShares:
    """h as a share rule, for scores of any scorer: one h is fitted per budget.

    Args:
        calibration: Evidence that the scorer may share, and no other step.
        scores: [N, K] of the scorer.
        fractions: [K], cost of each exit as a share of the full network's.
        seed: Of the initial weights.
        steps: Full-batch Adam steps per budget.
        learning_rate: Adam's.
    """

    def __init__(
        self,
        calibration: Calibration,
        scores: Tensor,
        fractions: Sequence[float],
        *,
        seed: int = 0,
        steps: int = 300,
        learning_rate: float = 0.02,
    ) -> None:
        self._inputs = _assigner_inputs(calibration, scores)
        self._scores = scores
        self._costs = torch.tensor(fractions, dtype=torch.float32)
        self._seed = seed
        self._steps = steps
        self._learning_rate = learning_rate

    def shares(self, budget: float) -> Floats:
        """Mean assignment for `budget`, bent to meet it exactly."""
        with seeded(self._seed):
            assigner = ExitAssigner([x.shape[1] for x in self._inputs])
        optimiser = torch.optim.Adam(assigner.parameters(), lr=self._learning_rate)
        for _ in range(self._steps):
            _h_step(assigner, optimiser, self._inputs, self._scores, self._costs, budget)
        with torch.no_grad():
            mean = assigner(self._inputs).mean(0).double().numpy()
        return tilt_to_budget(mean, self._costs.double().numpy(), budget)

    def rows(self) -> list[Floats]:
        """See `ShareRule`."""
        budgets = table_budgets(self._costs.double().numpy(), rows=ROWS)
        return [self.shares(float(budget)) for budget in budgets]


def fit_eenet_scorer(
    calibration: Calibration,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    rounds: int = 30,
    steps: int = 30,
    learning_rate: float = 0.02,
) -> EENetScorer:
    """Fit g, together with an h at the middle budget that weights its frames.

    Args:
        calibration: Evidence that nothing else was fitted on.
        fractions: [K].
        seed: Of the initial weights.
        rounds: How often the g phase and the h phase alternate.
        steps: Full-batch Adam steps per phase.
        learning_rate: Of both.
    """
    costs = torch.tensor(fractions, dtype=torch.float32)
    budget = fractions[0] + MIDDLE_BUDGET * (fractions[-1] - fractions[0])
    with seeded(seed):
        scorer = EENetScorer(
            num_exits=calibration.num_exits,
            num_columns=calibration.distribution.shape[2],
            num_features=learnable(calibration.confidence).shape[2],
        )
        with torch.no_grad():
            scores = score_all_exits(scorer, calibration)
        inputs = _assigner_inputs(calibration, scores)
        assigner = ExitAssigner([x.shape[1] for x in inputs])
    h_optimiser = torch.optim.Adam(assigner.parameters(), lr=learning_rate)
    g_optimiser = torch.optim.Adam(scorer.parameters(), lr=learning_rate)
    for _ in range(rounds):
        with torch.no_grad():
            pi = assigner(inputs)
        for _ in range(steps):
            _g_step(scorer, g_optimiser, calibration, pi)
        with torch.no_grad():
            scores = score_all_exits(scorer, calibration)
        inputs = _assigner_inputs(calibration, scores)
        for _ in range(steps):
            _h_step(assigner, h_optimiser, inputs, scores, costs, budget)
    return scorer.requires_grad_(False)


def _g_step(
    scorer: EENetScorer, optimiser: torch.optim.Optimizer, calibration: Calibration, pi: Tensor
) -> None:
    """L_g: cross-entropy of score against correctness, weighted by who leaves where."""
    scores = score_all_exits(scorer, calibration)
    loss = functional.binary_cross_entropy(scores, calibration.quality, reduction="none")
    weighted = (pi / pi.sum(0, keepdim=True).clamp_min(1e-8) * loss).sum() / pi.shape[1]
    optimiser.zero_grad()
    weighted.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def _h_step(
    assigner: ExitAssigner,
    optimiser: torch.optim.Optimizer,
    inputs: list[Tensor],
    scores: Tensor,
    costs: Tensor,
    budget: float,
) -> None:
    """L_h: stay near the frame's own normalised scores, and meet the budget."""
    pi = assigner(inputs)
    target = scores / scores.sum(1, keepdim=True).clamp_min(1e-8)
    kl = functional.kl_div(pi.clamp_min(1e-8).log(), target, reduction="batchmean")
    cost = (pi.mean(0) @ costs - budget).abs() / budget
    optimiser.zero_grad()
    (KL_WEIGHT * kl + COST_WEIGHT * cost).backward()
    optimiser.step()


def _assigner_inputs(calibration: Calibration, scores: Tensor) -> list[Tensor]:
    return [
        torch.cat(
            [
                calibration.distribution[:, k],
                learnable(calibration.confidence[:, k]),
                scores[:, :k],
            ],
            dim=1,
        )
        for k in range(calibration.num_exits - 1)
    ]
