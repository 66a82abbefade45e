from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from streamexit.calibration import make
from streamexit.calibration.make import (
    DEFAULT_METHODS,
    best_policy,
    fit_policies,
    held_out_quality,
    train_pipeline,
)
from streamexit.calibration.parts import load_part_of
from streamexit.cli.commands import app
from streamexit.errors import ConfigurationError, DataError, InputError, PipelineError
from streamexit.models.pipeline import load_pipeline
from streamexit.scheduling.evidence import Calibration
from streamexit.scheduling.policy import ExitPolicy, fit_policy, load_policy
from streamexit.testing import TOY_LABELS
from streamexit.training.datasets import Part
from streamexit.training.trainer import EpochReport
from tests.scheduling.samples import synthetic
from tests.training.conftest import coloured, write_archive


def write_recipe(folder: Path, root: Path, **sections: Any) -> Path:
    """A recipe over the small archives."""
    content: dict[str, Any] = {
        "name": "small",
        "task": {"kind": "classification", "top_k": 2},
        "network": {"architecture": "streamexit.testing:toy_network", "num_exits": 2},
        "preprocessing": {"width": 8, "height": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        "data": {"dataset": "cifar10", "root": str(root), "calibration_size": 300},
        "optimiser": {
            "epochs": 3,
            "batch_size": 32,
            "peak_learning_rate": 0.1,
            "warmup_epochs": 0,
            "average_decay": 0.9,
        },
        "precision": "float32",
    }
    for name, value in sections.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    folder.mkdir(exist_ok=True)
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    return folder / "train.yaml"


def train(recipe: Path, epochs: int | None = None) -> tuple[dict[str, Any], list[EpochReport]]:
    """(report, epochs seen)."""
    seen: list[EpochReport] = []
    report = train_pipeline(recipe, data=None, device="cpu", epochs=epochs, on_epoch=seen.append)
    return report, seen


def fit(folder: Path, names: list[str] | None, default: str | None) -> dict[str, Any]:
    """Fit on the calibration data that the pipeline names."""
    return fit_policies(folder, names=names, default=default, data=None, device="cpu", seed=0)


def test_from_recipe_to_policies(tmp_path: Path, archives: Path) -> None:
    """A recipe becomes a loadable pipeline that learned, with the usual policies that fit it."""
    recipe = write_recipe(tmp_path / "p", archives)
    report, seen = train(recipe)
    assert len(seen) == 3
    assert report == json.loads((tmp_path / "p" / "training.json").read_text())
    assert (report["train_pictures"], report["test_pictures"]) == (1700, 1000)
    assert min(f["accuracy"] for f in report["test_figures_per_exit"]) > 0.8
    pipeline = load_pipeline(tmp_path / "p")
    assert (pipeline.name, pipeline.labels, pipeline.policies) == ("small", TOY_LABELS, {})

    fitted = fit(tmp_path / "p", None, "eenet")
    assert fitted["calibration_frames"] == 300
    pipeline = load_pipeline(tmp_path / "p")
    assert pipeline.default_policy == "eenet"
    assert set(pipeline.policies) == set(DEFAULT_METHODS)
    for name, file in pipeline.policies.items():
        policy = load_policy(file, pipeline.costs.fractions)
        assert policy.name == name
        assert len(policy.table.budgets) == fitted[name]["table_rows"] > 1
        assert 0 <= fitted[name]["held_out_quality"] <= 1
        assert policy.provenance["held_out_quality"] == fitted[name]["held_out_quality"]
        assert np.isfinite(policy.table.budgets).all()

    (tmp_path / "p" / ".training" / "checkpoint.pt").unlink()
    _, seen = train(recipe, epochs=1)
    assert [(r.epoch, r.epochs) for r in seen] == [(1, 1)]
    assert load_pipeline(tmp_path / "p").policies == {}


def test_commands_say_what_was_reached_and_what_comes_next(tmp_path: Path, archives: Path) -> None:
    """A row per exit, a row per policy with the default marked, no raw dictionaries."""
    recipe = write_recipe(tmp_path / "p", archives)
    trained = CliRunner().invoke(app, ["train", str(recipe), "--epochs", "1"])
    assert trained.exit_code == 0, trained.output
    assert trained.stdout.startswith(
        "1700 pictures to train on, 300 for the exit policies, 1000 to judge by\n"
    )
    assert "small: trained on 1700 pictures, judged on 1000 others:" in trained.stdout
    rows = [line.split() for line in trained.stdout.splitlines()]
    report = json.loads((tmp_path / "p" / "training.json").read_text())
    for k, figures in enumerate(report["test_figures_per_exit"], 1):
        share = report["gflops_per_exit"][k - 1] / report["gflops_per_exit"][-1]
        (row,) = (row for row in rows if row[:2] == [str(k), f"{figures['accuracy']:.2%}"])
        assert row[-1] == f"{share:.1%}"
    fitted = CliRunner().invoke(
        app, ["fit", str(tmp_path / "p"), "--policy", "msdnet", "--policy", "branchynet"]
    )
    assert fitted.exit_code == 0, fitted.output
    assert "policies fitted on 300 frames" in fitted.stdout
    default = load_pipeline(tmp_path / "p").default_policy
    assert f"\n{default} (default)" in fitted.stdout
    assert "{" not in trained.stdout + fitted.stdout


def test_default_can_be_a_policy_that_was_fitted_before(tmp_path: Path, archives: Path) -> None:
    """The default that was asked for is the default, also when only another policy is fitted."""
    train(write_recipe(tmp_path / "p", archives), epochs=1)
    fit(tmp_path / "p", ["direct", "msdnet"], "msdnet")
    fit(tmp_path / "p", ["msdnet"], "direct")
    assert load_pipeline(tmp_path / "p").default_policy == "direct"


@pytest.mark.parametrize(
    "sections",
    [
        {"optimiser": {"epochs": 0}},
        {"optimiser": {"warmup_epochs": 3}},
        {"optimiser": {"kind": "adamw", "momentum": 0.9}},
        {"optimiser": {"average_decay": 1.0}},
        {"optimizer": {}},
        {"precision": "int8"},
        {"data": {"dataset": "cifar11"}},
        {"data": {"calibration_size": 2000}},
        {"network": {"architecture": "no_such"}},
        {"network": {"num_classes": 3}},
        {"network": {"num_classes": 7}},
        {"task": {"kind": "levitation"}},
        {"preprocessing": {"wdith": 8}},
        {"preprocessing": {"width": 0}},
        {"task": {"kind": "segmentation", "top_k": 2}},
        {"augmentation": {"kind": "scenes"}},
    ],
    ids=str,
)
def test_recipe_that_cannot_work_is_refused_before_the_first_epoch(
    tmp_path: Path, archives: Path, sections: dict[str, Any]
) -> None:
    """Whatever would make the pipeline unusable in the end is found before anything is trained."""
    recipe = write_recipe(tmp_path / "p", archives, **sections)
    seen: list[EpochReport] = []
    with pytest.raises(InputError):
        train_pipeline(recipe, data=None, device="cpu", epochs=None, on_epoch=seen.append)
    assert seen == []
    assert not (tmp_path / "p" / "pipeline.yaml").exists()


def test_folder_without_data_is_refused(tmp_path: Path, archives: Path) -> None:
    """The folder given on the command line counts, not the recipe's, and must hold the data."""
    recipe = write_recipe(tmp_path / "p", archives)
    with pytest.raises(DataError, match=str(tmp_path)):
        train_pipeline(recipe, data=tmp_path, device="cpu", epochs=1, on_epoch=lambda report: None)


def test_fitting_what_cannot_be_fitted_is_refused(tmp_path: Path, toy_pipeline: Path) -> None:
    """A pipeline without calibration data is refused."""
    with pytest.raises(PipelineError, match="names no data set, so there is no 'calibration' part"):
        fit(toy_pipeline, ["eenet"], "eenet")


def test_default_that_is_not_fitted_is_refused(tmp_path: Path, archives: Path) -> None:
    """A default that is neither fitted now nor was before is refused by name."""
    train(write_recipe(tmp_path / "p", archives), epochs=1)
    with pytest.raises(PipelineError, match="'mine' is not fitted"):
        fit(tmp_path / "p", ["msdnet"], "mine")
    assert load_pipeline(tmp_path / "p").policies == {}


def test_default_is_entered(tmp_path: Path, archives: Path) -> None:
    """Unless told, `best_policy` says which it is."""
    train(write_recipe(tmp_path / "p", archives), epochs=1)
    fitted = fit(tmp_path / "p", ["msdnet", "branchynet"], None)
    assert fitted["default"] in ("msdnet", "branchynet")
    assert load_pipeline(tmp_path / "p").default_policy == fitted["default"]


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"direct": 0.0, "msdnet": 0.0, "eenet": 0.0}, "direct"),
        ({"msdnet": 0.001, "direct": 0.0}, "direct"),
        ({"direct": 0.0, "msdnet": 0.05, "eenet": 0.1}, "eenet"),
        ({"direct": 0.0, "eenet": -0.1}, "direct"),
        ({"branchynet": 0.0, "gate+search": 0.001}, "branchynet"),
    ],
)
def test_default_is_not_left_to_chance(gains: dict[str, float], expected: str) -> None:
    """The usual one, unless another is better on the same frames by more than noise."""
    random = np.random.default_rng(0)
    base = random.random(600)
    held_out = {name: base + gain + random.normal(0, 0.1, 600) for name, gain in gains.items()}
    assert best_policy(held_out, ordered=False) == expected


def test_neighbours_do_not_make_a_default_sure() -> None:
    """What is better in one stretch of a drive only is not better."""
    gain = np.zeros(300)
    gain[100:130] = 0.5
    held_out = {"direct": np.full(300, 0.5), "msdnet": 0.5 + gain}
    assert best_policy(held_out, ordered=False) == "msdnet"
    assert best_policy(held_out, ordered=True) == "direct"


@pytest.mark.parametrize("ordered", [False, True])
def test_held_out_frames_are_not_fitted_on(monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    """Each frame is judged once, by a policy of the others; in time order, by those of other times."""
    evidence, _ = synthetic(300, seed=1)
    number = torch.arange(300.0)[:, None, None].expand_as(evidence.confidence[..., :1])
    marked = replace(evidence, confidence=torch.cat([evidence.confidence, number], 2))
    fitted: list[set[int]] = []

    def fit_and_note(name: str, given: Calibration, *rest: Any, **more: Any) -> ExitPolicy:
        fitted.append({int(i) for i in given.confidence[:, 0, -1]})
        return fit_policy(name, given, *rest, **more)

    monkeypatch.setattr(make, "fit_policy", fit_and_note)
    found = held_out_quality("msdnet", marked, (0.25, 0.6, 1.0), 0, ordered=ordered)
    assert found.shape == (300,)
    held_out = [set(range(300)) - rows for rows in fitted]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 300
    stretches = [max(rows) - min(rows) == len(rows) - 1 for rows in held_out]
    assert all(stretches) if ordered else not any(stretches)


def test_fewer_epochs_than_warm_up_takes_are_refused(tmp_path: Path, archives: Path) -> None:
    """Also where the command line asks for them."""
    recipe = write_recipe(tmp_path / "p", archives, optimiser={"warmup_epochs": 2})
    with pytest.raises(ConfigurationError, match="--epochs: 1 must be more than"):
        train(recipe, epochs=1)


@pytest.mark.parametrize("part", ["train", "calibration"])
def test_other_pictures_than_those_trained_on_are_refused(
    tmp_path: Path, archives: Path, part: Part
) -> None:
    """The same set in another order is another cut: what was trained on would calibrate."""
    train(write_recipe(tmp_path / "p", archives), epochs=1)
    pipeline = load_pipeline(tmp_path / "p")
    assert len(load_part_of(pipeline, "calibration", archives).labels) == 300
    data = coloured(2000, size=8, seed=1)
    (tmp_path / "turned").mkdir()
    turned = data.subset(np.arange(2000)[::-1])
    write_archive(tmp_path / "turned" / "cifar10_train.zip", turned)
    with pytest.raises(DataError, match=r"turned: holds other training pictures of cifar10"):
        load_part_of(pipeline, part, tmp_path / "turned")


def test_unknown_policy_is_refused(tmp_path: Path, archives: Path) -> None:
    """A policy that the library does not have lists those that it has, and nothing is registered."""
    train(write_recipe(tmp_path / "p", archives), epochs=1)
    with pytest.raises(PipelineError, match=r"'magic' is unknown; known are branchynet, msdnet"):
        fit(tmp_path / "p", ["magic"], "magic")
    assert load_pipeline(tmp_path / "p").policies == {}
