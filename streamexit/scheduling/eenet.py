"""EENet's scheduler (Ilhan et al., WACV 2024), in a form that works.

Two parts are fitted on calibration data: the exit scores g_k (`EENetScorer`) and the exit
assignment h_k, which says where each frame should leave. Only the mean of the assignment, K exit
shares, survives into the running system.

What is mended against the published code:
- assignment by stick-breaking, as the published results must have used: a softmax over sigmoids
  limits the shares to a ratio of e to 1 and cannot reach most budgets;
- gradients are zeroed before each step;
- no weight decay on h: with it, the small losses cannot move h at all;
- g ends in a sigmoid (see `EENetScorer`), so no gradient dies and no score leaves [0, 1];
- the entropy is computed from log-probabilities and cannot be NaN;
- the mean shares are bent to the budget exactly, instead of within ten per cent;
- one g serves all budgets: it is fitted together with h at a middle budget, then kept while h is
  fitted anew for each budget of the table.

N: frames, K: exits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from streamexit.scheduling.evidence import Calibration, Floats
from streamexit.scheduling.scorers import EENetScorer, score_all_exits
from streamexit.scheduling.shares import tilt_to_budget

MIDDLE_BUDGET = 0.5
"""Where between the first exit's cost (0) and the full cost (1) g and h are fitted together."""


class ExitAssigner(nn.Module):
    """h: from everything known of a frame to a distribution over exits, by stick-breaking.

    Args:
        widths: Input size at each of the first K - 1 exits.
        hidden_share: Hidden units per input (rho; 0.5 for pictures).
    """

    def __init__(self, widths: Sequence[int], *, hidden_share: float = 0.5) -> None:
        super().__init__()
        self.exits = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, max(1, int(hidden_share * width))),
                nn.Sigmoid(),
                nn.Linear(max(1, int(hidden_share * width)), 1),
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


class EENetFit:
    """Fits g and h; afterwards it is a share rule.

    Args:
        calibration: Evidence that no other step has used.
        fractions: [K], cost of each exit as a share of the full network's.
        seed: Of the initial weights.
        rounds: How often the g phase and the h phase alternate.
        steps: Full-batch Adam steps per phase.
        learning_rate: Of both.
    """

    kind = "eenet"

    KL_WEIGHT = 0.1
    COST_WEIGHT = 1.0

    def __init__(
        self,
        calibration: Calibration,
        fractions: Sequence[float],
        *,
        seed: int = 0,
        rounds: int = 30,
        steps: int = 30,
        learning_rate: float = 0.02,
    ) -> None:
        self._calibration = calibration
        self._costs = torch.tensor(fractions, dtype=torch.float32)
        self._seed = seed
        self._steps = steps
        self._learning_rate = learning_rate
        _, k, c = calibration.distribution.shape
        self.scorer = EENetScorer(
            num_exits=k, num_columns=c, num_features=calibration.confidence.shape[2]
        )
        self._fit_jointly(rounds)

    def shares(self, budget: float) -> Floats:
        """Mean assignment for `budget`, bent to meet it exactly."""
        torch.manual_seed(self._seed)
        scores = self._scores()
        assigner = self._new_assigner()
        optimiser = torch.optim.Adam(assigner.parameters(), lr=self._learning_rate)
        for _ in range(10 * self._steps):
            self._h_step(assigner, optimiser, scores, budget)
        with torch.no_grad():
            mean = assigner(self._inputs(scores)).mean(0).double().numpy()
        return tilt_to_budget(mean, self._costs.double().numpy(), budget)

    def _fit_jointly(self, rounds: int) -> None:
        torch.manual_seed(self._seed)
        low, high = float(self._costs[0]), float(self._costs[-1])
        budget = low + MIDDLE_BUDGET * (high - low)
        assigner = self._new_assigner()
        h_optimiser = torch.optim.Adam(assigner.parameters(), lr=self._learning_rate)
        g_optimiser = torch.optim.Adam(self.scorer.parameters(), lr=self._learning_rate)
        for _ in range(rounds):
            with torch.no_grad():
                pi = assigner(self._inputs(self._scores()))
            for _ in range(self._steps):
                self._g_step(g_optimiser, pi)
            scores = self._scores()
            for _ in range(self._steps):
                self._h_step(assigner, h_optimiser, scores, budget)
        self.scorer.requires_grad_(False)

    def _g_step(self, optimiser: torch.optim.Optimizer, pi: Tensor) -> None:
        """L_g: cross-entropy of score against correctness, weighted by who leaves where."""
        scores = score_all_exits(self.scorer, self._calibration)
        loss = functional.binary_cross_entropy(scores, self._calibration.quality, reduction="none")
        weighted = (pi / pi.sum(0, keepdim=True) * loss).sum() / pi.shape[1]
        optimiser.zero_grad()
        weighted.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def _h_step(
        self,
        assigner: ExitAssigner,
        optimiser: torch.optim.Optimizer,
        scores: Tensor,
        budget: float,
    ) -> None:
        """L_h: stay near the frame's own normalised scores, and meet the budget."""
        pi = assigner(self._inputs(scores))
        target = scores / scores.sum(1, keepdim=True)
        kl = functional.kl_div(pi.clamp_min(1e-8).log(), target, reduction="batchmean")
        cost = (pi.mean(0) @ self._costs - budget).abs() / budget
        optimiser.zero_grad()
        (self.KL_WEIGHT * kl + self.COST_WEIGHT * cost).backward()
        optimiser.step()

    def _scores(self) -> Tensor:
        with torch.no_grad():
            return score_all_exits(self.scorer, self._calibration)

    def _inputs(self, scores: Tensor) -> list[Tensor]:
        c = self._calibration
        return [
            torch.cat([c.distribution[:, k], c.confidence[:, k], scores[:, :k]], dim=1)
            for k in range(c.num_exits - 1)
        ]

    def _new_assigner(self) -> ExitAssigner:
        return ExitAssigner([x.shape[1] for x in self._inputs(self._scores())])


def table_budgets(fractions: Sequence[float], *, rows: int = 17) -> Floats:
    """Evenly spaced budgets strictly between the first exit's cost and the full one."""
    return np.linspace(fractions[0], fractions[-1], rows + 2)[1:-1]
