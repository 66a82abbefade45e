"""Each method against a small case worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from streamexit.errors import PipelineError
from streamexit.scheduling.evidence import Calibration, Evidence
from streamexit.scheduling.gate import GateScorer, fit_gates, gate_features, target_exits
from streamexit.scheduling.scorers import (
    Certainty,
    ConfidenceBranch,
    MaxProbability,
    Patience,
    Vote,
    score_all_exits,
)
from streamexit.scheduling.shares import GeometricShares
from streamexit.scheduling.stopping import (
    StoppingScorer,
    fit_stopping_scorer,
    oracle_posterior,
    stopping_time,
)
from streamexit.scheduling.thresholds import exits_taken, spread_all
from streamexit.tasks.classification import ClassificationTask
from tests.scheduling.samples import synthetic


def read(probabilities: list[list[list[float]]]) -> Calibration:
    """Calibration from probabilities [N][K][C] through the real task; quality is all 1."""
    p = torch.tensor(probabilities)
    task = ClassificationTask(labels=[str(i) for i in range(p.shape[2])])
    carry: Tensor | None = None
    confidence = []
    for k in range(p.shape[1]):
        readout = task.read(p[:, k].log(), carry)
        carry = readout.carry
        confidence.append(readout.confidence)
    return Calibration(p, torch.stack(confidence, 1), torch.ones(p.shape[:2]))


def answers(winners: list[list[int]], peak: float = 0.6) -> Calibration:
    """Frames whose exits answer `winners` [N][K] out of three classes, each with `peak`."""
    rest = (1 - peak) / 2
    return read([[[peak if c == w else rest for c in range(3)] for w in row] for row in winners])


# 1/2, 1/4, 1/4 has 1.5 bits of log2(3) = 1.58496; an even pair out of three has 1 bit.
HALF = [0.5, 0.25, 0.25]
SURE = [0.98, 0.01, 0.01]


def test_branchynet_score() -> None:
    """BranchyNet's certainty of (1/2, 1/4, 1/4) is 1 - 1.5 / log2(3)."""
    scores = score_all_exits(Certainty(), read([[HALF, SURE]] * 2))
    assert scores[0, 0].item() == pytest.approx(0.05360, abs=1e-5)
    bits = -(0.98 * math.log2(0.98) + 0.02 * math.log2(0.01))
    assert scores[0, 1].item() == pytest.approx(1 - bits / math.log2(3), abs=1e-5)


def test_msdnet_score() -> None:
    """MSDNet's score is the largest probability, at each exit its own."""
    scores = score_all_exits(MaxProbability(), read([[HALF, SURE]] * 2))
    assert scores[0].tolist() == pytest.approx([0.5, 0.98])


def test_msdnet_shares() -> None:
    """At costs 1/4, 1/2, 1: 4/7, 2/7, 1/7 cost 3/7; equal shares 7/12; 1/7, 2/7, 4/7 cost 3/4."""
    rule = GeometricShares((0.25, 0.5, 1.0))
    assert rule.shares(3 / 7) == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=1e-9)
    assert rule.shares(7 / 12) == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-9)
    assert rule.shares(3 / 4) == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=1e-9)


def test_pabee_vote() -> None:
    """The vote over answers a, b, b is 1, 1/2, 2/3, and 0.6 of a thousandth breaks ties."""
    scores = score_all_exits(Vote(), answers([[0, 1, 1]] * 3))
    expected = [(vote + 0.0006) / 1.001 for vote in (1, 1 / 2, 2 / 3)]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_pabee_counter() -> None:
    """The counter over answers a, a, b, b, b is 0, 1, 0, 1, 2; 0.999 * 0.6 lies between."""
    scores = score_all_exits(Patience(num_exits=5), answers([[0, 0, 1, 1, 1]] * 5))
    expected = [(counter + 0.5994) / 5 for counter in (0, 1, 0, 1, 2)]
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)


def patience_rule(winners: list[int], patience: int) -> int:
    """Where PABEE's algorithm 1 leaves."""
    counter = 0
    for k, winner in enumerate(winners):
        counter = counter + 1 if k and winner == winners[k - 1] else 0
        if counter == patience:
            return k
    return len(winners) - 1


@pytest.mark.parametrize("peak", [0.34, 0.6, 0.999999])
def test_patience_thresholds_are_the_papers_rule(peak: float) -> None:
    """Over all 81 answer sequences of four exits, threshold t / K leaves where patience t does."""
    winners = [[a, b, c, d] for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
    scorer = Patience(num_exits=4)
    scores = spread_all(score_all_exits(scorer, answers(winners, peak)).double().numpy())
    points = scorer.own_thresholds(4)
    assert list(points) == ["patience 1", "patience 2", "patience 3"]
    for patience, limits in enumerate(points.values(), 1):
        taken = exits_taken(scores, np.array([*limits, -np.inf]))
        assert taken.tolist() == [patience_rule(row, patience) for row in winners]


def test_oracle_posterior() -> None:
    """Likelihoods 0.1, 0.3, 0.6 and 0.2, 0.1, 0.1 become posteriors with sum one."""
    posterior = oracle_posterior(torch.tensor([[0.1, 0.3, 0.6], [0.2, 0.1, 0.1], [0, 0, 0]]))
    assert posterior[0].tolist() == pytest.approx([0.1, 0.3, 0.6])
    assert posterior[1].tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert posterior[2].tolist() == [0, 0, 0]


def test_stopping_time() -> None:
    """Chances 1/2, 1/4, 9/10 stop at 1/2, 1/8 and, as the last takes all, 3/8."""
    q = stopping_time(torch.tensor([[0.5, 0.25, 0.9], [0.0, 1.0, 0.0]]))
    assert q[0].tolist() == pytest.approx([0.5, 0.125, 0.375])
    assert q[1].tolist() == [0, 1, 0]


def test_stopping_score() -> None:
    """One network serves all exits: with its first layer on the exit's one-hot the score follows."""
    scorer = StoppingScorer(num_exits=2, num_columns=3)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.zero_()
        scorer.get_parameter("layers.0.weight")[0, 3 + 3 + 1] = 0.5  # probabilities, features, exit
        scorer.get_parameter("layers.2.weight")[0, 0] = 2.0
    scores = score_all_exits(scorer, read([[HALF, SURE]] * 2))
    assert scores[0].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2 * math.tanh(0.5)))])


def test_stopping_learns_where_to_stop() -> None:
    """Where the first exit knows the easy frames only, stopping there is likely for those alone."""
    easy = torch.arange(200) % 2 == 0
    p = torch.full((200, 2, 3), 0.01)
    p[easy, 0, 0], p[~easy, 0], p[:, 1, 0] = 0.98, torch.tensor([0.34, 0.33, 0.33]), 0.98
    p = p / p.sum(2, keepdim=True)
    confidence = torch.stack([p.amax(2), p.amax(2), torch.ones(200, 2), torch.ones(200, 2)], 2)
    likelihood = p[:, :, 0].clone()
    likelihood[easy, 1] = 0.01
    evidence = Calibration(p, confidence, torch.ones(200, 2), None, likelihood)
    scorer = fit_stopping_scorer(evidence)
    scores = score_all_exits(scorer, evidence)
    assert ((scores[:, 0] > 0.5) == easy).all()
    assert torch.equal(stopping_time(scores).argmax(1) == 0, easy)  # the paper's own rule
    assert scorer.own_thresholds(2) == {}  # it has to run all exits before it can say which


def test_gate_targets() -> None:
    """With lambda 1 and costs 0.2, 0.5, 1: -log 0.5 + 0.2 < -log 0.6 + 0.5; -log 0.9 + 1 < 2.50."""
    likelihood = torch.tensor([[0.5, 0.6, 0.9], [0.1, 0.1, 0.9], [0.1, 0.5, 0.6], [0.0, 0.0, 0.0]])
    # exit losses: .893 1.011 1.105 | 2.503 2.803 1.105 | 2.503 1.193 1.511 | least cost
    assert target_exits(likelihood, (0.2, 0.5, 1.0), 1.0).tolist() == [0, 2, 1, 0]
    assert target_exits(likelihood, (0.2, 0.5, 1.0), 0.0)[:3].tolist() == [2, 2, 2]


def test_gate_features() -> None:
    """Of (1/2, 1/4, 1/4): largest, certainty, margin 1/4, and the certainty of (4, 1, 1) / 6."""
    features = gate_features(read([[HALF, SURE]] * 2).at(0, torch.zeros(2, 0)))
    sharper = -(4 / 6 * math.log(4 / 6) + 2 / 6 * math.log(1 / 6))
    expected = [0.5, 0.05360, 0.25, 1 - sharper / math.log(3)]
    assert features[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_gate_score() -> None:
    """The gate is the sigmoid of a linear function of the features."""
    scorer = GateScorer(num_exits=2)
    with torch.no_grad():
        scorer.get_parameter("exits.1.weight").copy_(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
        scorer.get_parameter("exits.1.bias").fill_(-1.0)
    scores = score_all_exits(scorer, read([[HALF, HALF]] * 2))
    assert scores[0, 1].item() == pytest.approx(0.5, abs=1e-6)  # 0.5 + 2 * 0.25 - 1 = 0
    assert scorer.own_thresholds(3) == {"gate 0.5": [0.5, 0.5]}


def test_gates_learn_their_targets() -> None:
    """Fitted gates open more readily where the target is to leave."""
    evidence, _ = synthetic(400, seed=1)
    fractions = (0.25, 0.6, 1.0)
    scores = score_all_exits(fit_gates(evidence, fractions), evidence)
    leave = target_exits(evidence.likelihood, fractions, 0.5) <= 0
    assert float(scores[leave, 0].mean()) > float(scores[~leave, 0].mean()) + 0.1


def test_confidence_branch_score() -> None:
    """EENets' score is the branch's output; a network without one is refused."""
    evidence = Evidence(torch.tensor([HALF]), torch.ones(1, 4), torch.zeros(1, 0))
    branch = torch.tensor([0.7])
    assert torch.equal(ConfidenceBranch().score(0, evidence._replace(branch=branch)), branch)
    assert ConfidenceBranch().own_thresholds(3) == {"confidence 0.5": [0.5, 0.5]}
    with pytest.raises(PipelineError, match="no confidence branch"):
        ConfidenceBranch().score(0, evidence)


def test_likelihood_falls_back_on_quality() -> None:
    """Where no answer is the one right answer, quality stands in for the likelihood."""
    evidence = read([[HALF, SURE]] * 2)
    assert torch.equal(evidence.likelihood, evidence.quality)
