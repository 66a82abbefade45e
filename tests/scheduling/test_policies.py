from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from streamexit.errors import DataError, PipelineError
from streamexit.scheduling.eenet import (
    EENetScorer,
    EENetShares,
    ExitAssigner,
    fit_eenet_scorer,
)
from streamexit.scheduling.evidence import Calibration, Evidence
from streamexit.scheduling.methods import METHODS, find_method
from streamexit.scheduling.policy import fit_policy, load_policy, save_policy
from streamexit.scheduling.scorers import MaxProbability, score_all_exits
from streamexit.scheduling.thresholds import exits_taken, spread_all, thresholds_within

COSTS = (0.25, 0.6, 1.0)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Frames of varying difficulty: surer is more often right, deeper is better."""
    random = np.random.default_rng(0)
    n, k, c = 1500, 3, 4
    ease = random.random((n, 1)) + np.array([0.0, 0.25, 0.5])
    logits = random.normal(0, 0.3, (n, k, c))
    logits[:, :, 0] += 3 * ease
    p = torch.softmax(torch.tensor(logits), dim=2).float()
    quality = torch.tensor(random.random((n, k)) < np.clip(ease, 0, 1)).float()
    entropy = 1 + (p * p.log()).sum(2) / np.log(c)
    return Calibration(p, torch.stack([p.amax(2), entropy, torch.ones(n, k)], 2), quality)


def test_max_probability_is_the_largest(calibration: Calibration) -> None:
    """The scorer of MSDNet gives the largest class probability."""
    scores = score_all_exits(MaxProbability(), calibration)
    assert torch.equal(scores, calibration.distribution.amax(2))


def test_eenet_score_worked_by_hand() -> None:
    """The score g is a sigmoid of a linear function of probabilities, confidence and earlier scores."""
    scorer = EENetScorer(num_exits=2, num_columns=2, num_features=1)
    with torch.no_grad():
        scorer.get_parameter("exits.1.weight").copy_(torch.tensor([[1.0, -1.0, 2.0, 0.5]]))
        scorer.get_parameter("exits.1.bias").fill_(-0.25)
    evidence = Evidence(torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5]]), torch.tensor([[0.5]]))
    expected = torch.sigmoid(torch.tensor(0.75 - 0.25 + 2 * 0.5 + 0.5 * 0.5 - 0.25))
    assert scorer.score(1, evidence).item() == pytest.approx(expected.item())


def test_untrained_eenet_ranks_like_max_probability(calibration: Calibration) -> None:
    """The scorer starts as the largest probability."""
    scorer = EENetScorer(num_exits=3, num_columns=4, num_features=3)
    ours = score_all_exits(scorer, calibration)[:, 0].detach()
    assert torch.equal(ours.argsort(), calibration.confidence[:, 0, 0].argsort())


def test_stick_breaking_worked_by_hand() -> None:
    """pi_k = r_k prod (1 - r_j), the last exit takes what is left, and they sum to one."""
    assigner = ExitAssigner([1, 1])
    for k, r in enumerate((0.5, 0.25)):
        torch.nn.init.zeros_(assigner.get_parameter(f"exits.{k}.2.weight"))
        bias = assigner.get_parameter(f"exits.{k}.2.bias")
        torch.nn.init.constant_(bias, float(torch.logit(torch.tensor(r))))
    pi = assigner([torch.zeros(1, 1), torch.zeros(1, 1)])
    assert pi[0].tolist() == pytest.approx([0.5, 0.125, 0.375])


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_learned_shares_meet_the_budget(calibration: Calibration, budget: float) -> None:
    """Unlike the published code, h can move, and its mean shares cost the budget."""
    shares = EENetFit(calibration, COSTS).shares(budget)
    assert shares.sum() == pytest.approx(1)
    assert shares @ np.array(COSTS) == pytest.approx(budget, abs=1e-6)


def test_fitting_learns_to_tell_right_from_wrong(calibration: Calibration) -> None:
    """The fitted score is higher on frames that the exit gets right."""
    scores = score_all_exits(EENetFit(calibration, COSTS).scorer, calibration)
    right = calibration.quality.bool()
    assert (scores[right].mean() - scores[~right].mean()).item() > 0.05


@pytest.mark.parametrize("name", POLICIES)
def test_policy_meets_its_budgets(calibration: Calibration, name: str) -> None:
    """Thresholds of every budget cost about that budget on the calibration data."""
    policy = fit_policy(name, calibration, COSTS)
    scores = score_all_exits(policy.scorer, calibration).detach().double().numpy()
    for budget in (0.3, 0.5, 0.75):
        taken = exits_taken(scores, np.array(policy.table.at(budget)))
        assert np.array(COSTS)[taken].mean() == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_survives_the_disk(calibration: Calibration, name: str, tmp_path: Path) -> None:
    """A loaded policy scores and decides as the saved one."""
    policy = fit_policy(name, calibration, COSTS)
    save_policy(policy, tmp_path / "p.safetensors")
    loaded = load_policy(tmp_path / "p.safetensors", COSTS)
    assert loaded.table == policy.table
    assert loaded.provenance == policy.provenance
    assert torch.equal(
        score_all_exits(loaded.scorer, calibration), score_all_exits(policy.scorer, calibration)
    )


def test_fitting_is_reproducible(calibration: Calibration) -> None:
    """The same data and seed give the same policy."""
    one, other = (fit_policy("eenet", calibration, COSTS, seed=3) for _ in range(2))
    assert one.table == other.table


@pytest.mark.parametrize("costs", [(0.2, 0.6, 1.0), (0.25, 1.0)])
def test_policy_of_another_network_is_refused(
    calibration: Calibration, tmp_path: Path, costs: tuple[float, ...]
) -> None:
    """A policy fitted for other costs says what to do."""
    save_policy(fit_policy("msdnet", calibration, COSTS), tmp_path / "p.safetensors")
    with pytest.raises(PipelineError, match="streamexit fit"):
        load_policy(tmp_path / "p.safetensors", costs)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x02\0\0\0\0\0\0\0{}"])
def test_damaged_policy_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no policy gives a clear error."""
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(PipelineError, match="not a readable exit policy"):
        load_policy(tmp_path / "p.safetensors", COSTS)


def test_unknown_policy_names_the_known() -> None:
    """A policy that the library does not have is refused with the ones it has."""
    few = Calibration(torch.ones(3, 3, 2) / 2, torch.ones(3, 3, 3), torch.ones(3, 3))
    with pytest.raises(PipelineError, match="msdnet"):
        fit_policy("magic", few, COSTS)


def test_calibration_must_be_usable() -> None:
    """Too few frames, NaN and mismatched shapes are refused."""
    p, f, q = torch.ones(5, 3, 2) / 2, torch.ones(5, 3, 3), torch.ones(5, 3)
    with pytest.raises(DataError, match="too few"):
        Calibration(p[:2], f[:2], q[:2])
    with pytest.raises(DataError, match="NaN"):
        Calibration(p * float("nan"), f, q)
    with pytest.raises(DataError, match="do not match"):
        Calibration(p[:, :2], f, q)
