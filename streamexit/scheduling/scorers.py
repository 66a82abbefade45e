"""Scorers: how likely is this exit's answer good enough?

A scorer runs inside the compiled stage, on the device, so it is a plain `nn.Module` over tensors.
Those of this file are computed from the evidence as it is; the learned ones have files of their own.
N: rows, K: exits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from streamexit.errors import PipelineError
from streamexit.scheduling.evidence import (
    CERTAINTY,
    MAX_PROBABILITY,
    RUN,
    VOTE,
    Calibration,
    Evidence,
)

TIE_BREAK = 1e-3
"""What the largest probability adds where a score has a few values only and would not rank."""


class Scorer(nn.Module):
    """Maps the evidence at exit k to exit scores in [0, 1].

    Attributes:
        kind: Its name in policy files; of a plugin, the name of its entry point.
    """

    kind: str

    @classmethod
    def fit(cls, calibration: Calibration, fractions: Sequence[float], *, seed: int) -> Scorer:
        """Make one for a network; one that learns overrides this, and `config` if it has arguments.

        Args:
            calibration: Evidence of all exits.
            fractions: [K], cost of each exit as a share of the full network's.
            seed: For random initial weights.
        """
        return cls()

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Exit scores [N] at exit k (from 0)."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Keyword arguments that build this scorer again, without its weights."""
        return {}

    def own_thresholds(self, num_exits: int) -> dict[str, list[float]]:
        """Operating points that the method's paper uses by itself, without a budget.

        Returns:
            Name of the point -> [K - 1] thresholds.
        """
        return {}


class MaxProbability(Scorer):
    """The largest class probability (MSDNet, Huang et al., ICLR 2018, section 5)."""

    kind = "max_probability"

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Column `MAX_PROBABILITY`."""
        return evidence.confidence[:, MAX_PROBABILITY]


class Certainty(Scorer):
    """One minus the normalised entropy (BranchyNet, Teerapittayanon et al., ICPR 2016).

    The paper leaves where the entropy is below a threshold; this is the same order, turned round.
    """

    kind = "certainty"

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Column `CERTAINTY`."""
        return evidence.confidence[:, CERTAINTY]


class Vote(Scorer):
    """PABEE in the budgeted form of EENet's comparison: how many exits so far agree on one answer.

    With few exits votes take few values, so the largest probability breaks ties.
    """

    kind = "vote"

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """Column `VOTE` and a thousandth of the largest probability."""
        return _break_ties(evidence.confidence[:, VOTE], evidence)


class Patience(Scorer):
    """PABEE's own counter (Zhou et al., NeurIPS 2020): for how many exits the answer has not changed.

    The score is (counter + a tie-break below 1) / K, so that the paper's rule "leave when the
    counter reaches t" is the threshold t / K, and a budget can rank between two such points.

    Args:
        num_exits: K.
    """

    kind = "patience"

    def __init__(self, *, num_exits: int) -> None:
        super().__init__()
        self._num_exits = num_exits

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """The counter at exit k is 0 where the answer is new, at most k."""
        counter = evidence.confidence[:, RUN] * (k + 1) - 1
        return (counter.round() + 0.999 * evidence.confidence[:, MAX_PROBABILITY]) / self._num_exits

    def config(self) -> dict[str, Any]:
        """K."""
        return {"num_exits": self._num_exits}

    def own_thresholds(self, num_exits: int) -> dict[str, list[float]]:
        """One point per patience."""
        return {f"patience {t}": [t / num_exits] * (num_exits - 1) for t in range(1, num_exits)}


class ConfidenceBranch(Scorer):
    """What the network's own confidence branch says (EENets, Demir and Akbas, arXiv 2409.05336)."""

    kind = "branch"

    def score(self, k: int, evidence: Evidence) -> Tensor:
        """The branch's output.

        Raises:
            PipelineError: The network has no such branch.
        """
        if evidence.branch is None:
            raise PipelineError("policy: the network has no confidence branch to score by")
        return evidence.branch

    def own_thresholds(self, num_exits: int) -> dict[str, list[float]]:
        """The paper leaves where the confidence is above one half."""
        return {"confidence 0.5": [0.5] * (num_exits - 1)}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random initial weights from a seed; whoever calls keeps the random numbers that were to come."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def weigh(linear: nn.Module, x: Tensor) -> Tensor:
    """A small linear layer, [N, F] to [N, outputs], without a matrix product.

    Devices that compute in bf16 do so in matrix products, and in all that leads to one: probabilities
    above 0.996 would be one number. What has no such product before the output stays in float32.
    """
    assert isinstance(linear, nn.Linear)
    return (x[:, None] * linear.weight).sum(2) + linear.bias


def _break_ties(score: Tensor, evidence: Evidence) -> Tensor:
    return (score + TIE_BREAK * evidence.confidence[:, MAX_PROBABILITY]) / (1 + TIE_BREAK)


def score_all_exits(scorer: Scorer, calibration: Calibration) -> Tensor:
    """Scores [N, K] of all frames at all exits, as the running network would compute them."""
    scores = calibration.quality.new_zeros((len(calibration.quality), 0))
    for k in range(calibration.num_exits):
        here = scorer.score(k, calibration.at(k, scores.detach()))
        scores = torch.cat([scores, here[:, None]], dim=1)
    return scores
