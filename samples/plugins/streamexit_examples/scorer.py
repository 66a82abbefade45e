"""A scorer: how far the most probable class is ahead of the second."""

from torch import Tensor

from streamexit import Evidence, Scorer


class Margin(Scorer):
    """Has nothing to learn; one that has overrides `fit` and `config`, and keeps its weights in parameters."""

    kind = "margin"

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Exit scores [N] in [0, 1] of N frames at exit k."""
        best = evidence.distribution.topk(2, dim=1).values
        return best[:, 0] - best[:, 1]
