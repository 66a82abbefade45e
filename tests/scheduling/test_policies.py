from __future__ import annotations

import functools
import math
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
from streamexit.scheduling.gate import fit_gates
from streamexit.scheduling.methods import (
    METHODS,
    SCORER_FITS,
    SHARE_RULES,
    find_method,
    methods_for,
)
from streamexit.scheduling.policy import ExitPolicy, fit_policy, load_policy, save_policy
from streamexit.scheduling.scorers import MaxProbability, Scorer, score_all_exits
from streamexit.scheduling.stopping import fit_stopping_scorer
from streamexit.scheduling.thresholds import (
    build_table,
    exits_taken,
    spread_all,
    thresholds_within,
)
from tests.scheduling.samples import synthetic

COSTS = (0.25, 0.6, 1.0)


FRAMES, _ = synthetic(1500)
SMALL, _ = synthetic(300, seed=4)


@pytest.fixture
def calibration() -> Calibration:
    """Frames of varying difficulty, with a confidence branch: deeper exits are better."""
    return FRAMES


@functools.cache
def fitted_policy(name: str) -> ExitPolicy:
    """Fitted once."""
    return fit_policy(name, FRAMES, COSTS)


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
    ranked = ours[calibration.confidence[:, 0, 0].argsort()]
    assert torch.all(ranked.diff() >= 0)
    assert len(set(ranked.tolist())) > 1000


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
    shares = EENetShares(calibration, score_all_exits(MaxProbability(), calibration), COSTS).shares(
        budget
    )
    assert shares.sum() == pytest.approx(1)
    assert shares @ np.array(COSTS) == pytest.approx(budget, abs=1e-6)


def test_fitting_learns_to_tell_right_from_wrong(calibration: Calibration) -> None:
    """The fitted score is higher on frames that the exit gets right."""
    scores = score_all_exits(fit_eenet_scorer(calibration, COSTS), calibration)
    right = calibration.quality.bool()
    assert (scores[right].mean() - scores[~right].mean()).item() > 0.05


@pytest.mark.parametrize("name", METHODS)
def test_policy_meets_its_budgets(calibration: Calibration, name: str) -> None:
    """Thresholds of every budget cost about that budget on the calibration data."""
    policy = fitted_policy(name)
    scores = spread_all(score_all_exits(policy.scorer, calibration).double().numpy())
    for budget in (0.35, 0.5, 0.75):
        taken = exits_taken(scores, np.array(policy.table.at(budget)))
        assert np.array(COSTS)[taken].mean() == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize("name", METHODS)
def test_policy_survives_the_disk(calibration: Calibration, name: str, tmp_path: Path) -> None:
    """A loaded policy scores and decides as the saved one."""
    policy = fitted_policy(name)
    save_policy(policy, tmp_path / "p.safetensors")
    loaded = load_policy(tmp_path / "p.safetensors", COSTS)
    assert loaded.table == policy.table
    assert loaded.provenance == policy.provenance
    assert torch.equal(
        score_all_exits(loaded.scorer, calibration), score_all_exits(policy.scorer, calibration)
    )


def test_fitting_is_reproducible() -> None:
    """The same data and seed give the same policy; another seed gives another."""
    one, same, other = (fit_policy("maml-stop", SMALL, COSTS, seed=s).table for s in (3, 3, 4))
    assert one == same != other
    scores = score_all_exits(MaxProbability(), SMALL)
    shares = [EENetShares(SMALL, scores, COSTS, seed=s, steps=9).shares(0.5) for s in (3, 3, 4)]
    assert np.array_equal(shares[0], shares[1])
    assert not np.array_equal(shares[0], shares[2])
    first, second = (fit_eenet_scorer(SMALL, COSTS, seed=3, rounds=2) for _ in range(2))
    assert torch.equal(score_all_exits(first, SMALL), score_all_exits(second, SMALL))


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


def test_methods_are_found_by_name_and_by_pair() -> None:
    """A pair of scorer and rule is a method; half a pair, or a wrong one, is refused."""
    assert (find_method("msdnet").scorer, find_method("msdnet").share_rule) == (
        "max-probability",
        "geometric",
    )
    pair = find_method("certainty+search")
    assert (pair.scorer, pair.share_rule) == ("certainty", "search")
    for wrong in ("certainty+", "+search", "certainty+magic", "magic+search", ""):
        with pytest.raises(PipelineError, match="SCORER"):
            find_method(wrong)


def test_branch_methods_need_a_branch(calibration: Calibration) -> None:
    """Without a confidence branch EENets is not on offer, and fitting it says why."""
    assert set(METHODS) - set(methods_for(branch=False)) == {"eenets"}
    assert methods_for(branch=True) == list(METHODS)
    bare = Calibration(calibration.distribution, calibration.confidence, calibration.quality)
    with pytest.raises(PipelineError, match="no confidence branch"):
        fit_policy("eenets", bare, COSTS)


@functools.cache
def scorer_on_small(name: str) -> Scorer:
    """Fitted once."""
    return SCORER_FITS[name](SMALL, COSTS, 0)


@pytest.mark.parametrize("scorer", SCORER_FITS)
@pytest.mark.parametrize("rule", SHARE_RULES)
def test_any_scorer_goes_with_any_share_rule(scorer: str, rule: str, tmp_path: Path) -> None:
    """Every pair fits, meets budgets from 0.3 to 0.8 within 2%, and survives the disk."""
    fitted = scorer_on_small(scorer)
    scores = score_all_exits(fitted, SMALL)
    if rule == "eenet":  # h trains for each row, so not for long
        rows = EENetShares(SMALL, scores, COSTS, steps=20).rows()
    else:
        rows = SHARE_RULES[rule](SMALL, scores, COSTS, 0).rows()
    table = build_table(scores.double().numpy(), COSTS, rows)
    policy = ExitPolicy(f"{scorer}+{rule}", fitted, table, {})
    save_policy(policy, tmp_path / "p.safetensors")
    loaded = load_policy(tmp_path / "p.safetensors", COSTS)
    assert loaded.table == policy.table
    assert torch.equal(score_all_exits(loaded.scorer, SMALL), scores)
    spread = spread_all(scores.double().numpy())
    for budget in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        taken = exits_taken(spread, thresholds_within(loaded.table, spread, budget))
        mean = float(np.array(COSTS)[taken].mean())
        assert mean <= budget + 1e-9
        assert mean == pytest.approx(budget, rel=0.02)


@pytest.mark.parametrize("name", ["direct", "eenet", "jei-dnn"])
def test_one_exit_leaves_nothing_to_decide(name: str) -> None:
    """With K = 1 every method gives a policy whose only exit takes all."""
    p, f, q = torch.ones(5, 1, 2) / 2, torch.ones(5, 1, 4), torch.ones(5, 1)
    policy = fit_policy(name, Calibration(p, f, q), (1.0,))
    assert policy.table.at(1.0) == (-math.inf,)


def test_fitting_takes_nobodys_random_numbers() -> None:
    """Methods that learn begin with weights of their own seed, and leave the caller's numbers alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    fit_gates(SMALL, COSTS, steps=1)
    fit_stopping_scorer(SMALL, steps=1)
    scorer = fit_eenet_scorer(SMALL, COSTS, rounds=1, steps=1)
    EENetShares(SMALL, score_all_exits(scorer, SMALL), COSTS, steps=1).shares(0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_calibration_must_be_usable() -> None:
    """Too few frames, NaN and mismatched shapes are refused."""
    p, f, q = torch.ones(5, 3, 2) / 2, torch.ones(5, 3, 3), torch.ones(5, 3)
    with pytest.raises(DataError, match="2 frames of 3 exits"):
        fit_policy("msdnet", Calibration(p[:2], f[:2], q[:2]), COSTS)
    with pytest.raises(DataError, match="NaN"):
        Calibration(p * float("nan"), f, q)
    with pytest.raises(DataError, match="do not match"):
        Calibration(p[:, :2], f, q)
