from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from streamexit.calibration.collect import exit_figures
from streamexit.errors import ConfigurationError
from streamexit.models.architectures import build_network
from streamexit.models.network import MultiExitNetwork
from streamexit.tasks.classification import ClassificationTask
from streamexit.testing import TOY_LABELS, TOY_PREPROCESSING, toy_network
from streamexit.training.labelled import LabelledImages
from streamexit.training.recipe import Recipe
from streamexit.training.trainer import EpochReport, Trainer

MakeData = Callable[..., LabelledImages]
Weights = dict[str, Tensor]


class Stop(Exception):
    """As if the process had been killed."""


def recipe(**optimiser: Any) -> Recipe:
    """A recipe in which only the training matters."""
    settings = {"epochs": 4, "batch_size": 32, "peak_learning_rate": 0.1, "warmup_epochs": 1}
    return Recipe.model_validate(
        {
            "name": "toy",
            "task": {"kind": "classification"},
            "network": {},
            "preprocessing": {
                "width": 8,
                "height": 8,
                "mean": [0.5, 0.5, 0.5],
                "std": [0.25, 0.25, 0.25],
            },
            "data": {"dataset": "cifar10", "root": ".", "calibration_size": 1},
            "optimiser": {**settings, "average_decay": 0.9, **optimiser},
            "augmentation": {"padding": 1},
            "precision": "float32",
        }
    )


TASK = ClassificationTask(labels=TOY_LABELS)


def train(
    data: LabelledImages,
    checkpoint: Path,
    plan: Recipe,
    *,
    initial: int = 0,
    stop_after: int | None = None,
    build: Callable[[], MultiExitNetwork] = toy_network,
) -> tuple[Weights, list[EpochReport]]:
    """(final weights, epochs seen) of a run from `initial` weights."""
    torch.manual_seed(initial)
    network = build()
    reports: list[EpochReport] = []

    def note(report: EpochReport) -> None:
        reports.append(report)
        if report.epoch == stop_after:
            raise Stop

    trainer = Trainer(
        network, TASK, data, plan, device=torch.device("cpu"), checkpoint=checkpoint, on_epoch=note
    )
    if stop_after:
        with pytest.raises(Stop):
            trainer.run()
    else:
        trainer.run()
        assert not network.training
    return {k: v.clone() for k, v in network.state_dict().items()}, reports


def same(one: Weights, other: Weights) -> bool:
    """Whether all weights are bit-identical."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def pictures(make_coloured: MakeData) -> LabelledImages:
    """200 learnable pictures: the last batch is not full."""
    return make_coloured(200, size=8, seed=3)


def test_same_seed_gives_the_same_weights(tmp_path: Path, pictures: LabelledImages) -> None:
    """Two runs of one recipe give bit-identical weights; another seed gives others."""
    one, _ = train(pictures, tmp_path / "1.pt", recipe())
    two, _ = train(pictures, tmp_path / "2.pt", recipe())
    other, _ = train(pictures, tmp_path / "3.pt", recipe().model_copy(update={"seed": 1}))
    assert same(one, two)
    assert not same(one, other)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_run_ends_as_if_never_stopped(
    tmp_path: Path, pictures: LabelledImages, stop_after: int
) -> None:
    """Stopped and started again, even from other initial weights, a run gives identical weights."""
    whole, reports = train(pictures, tmp_path / "whole.pt", recipe())
    train(pictures, tmp_path / "cut.pt", recipe(), stop_after=stop_after)
    resumed, rest = train(pictures, tmp_path / "cut.pt", recipe(), initial=99)
    assert same(whole, resumed)
    assert [(r.epoch, r.loss) for r in rest] == [(r.epoch, r.loss) for r in reports[stop_after:]]


def dropping_network() -> MultiExitNetwork:
    """The toy network, a third of whose features is dropped in training."""
    network = toy_network()
    for stage in network.stages:
        stage.trunk.append(nn.Dropout(0.3))  # type: ignore[operator, union-attr]
    return network


def test_resumed_run_with_dropout_ends_as_if_never_stopped(
    tmp_path: Path, pictures: LabelledImages
) -> None:
    """What a network draws for itself is drawn anew from each epoch's seed."""
    whole, _ = train(pictures, tmp_path / "whole.pt", recipe(), build=dropping_network)
    plain, _ = train(pictures, tmp_path / "plain.pt", recipe())
    assert not same(whole, plain)
    train(pictures, tmp_path / "cut.pt", recipe(), stop_after=2, build=dropping_network)
    torch.rand(7)
    resumed, _ = train(pictures, tmp_path / "cut.pt", recipe(), initial=99, build=dropping_network)
    assert same(whole, resumed)


def test_checkpoint_of_other_pictures_is_kept(tmp_path: Path, pictures: LabelledImages) -> None:
    """Pictures that were added, or labelled otherwise, are neither trained on nor passed over in silence."""
    train(pictures, tmp_path / "a.pt", recipe())
    kept = (tmp_path / "a.pt").read_bytes()
    fewer = pictures.subset(slice(0, 199))
    turned = replace(pictures, labels=pictures.labels[::-1].copy())
    renamed = replace(pictures, names=tuple(map(str, range(200))))
    for other in (fewer, turned, renamed):
        with pytest.raises(ConfigurationError, match=r"on other pictures .* delete the checkpoint"):
            train(other, tmp_path / "a.pt", recipe())
    assert (tmp_path / "a.pt").read_bytes() == kept


def test_training_that_came_apart_is_not_saved(tmp_path: Path, pictures: LabelledImages) -> None:
    """A loss that is no number is an error with the field to change, not weights."""
    with pytest.raises(ConfigurationError, match=r"peak_learning_rate: 1e\+12: the loss of epoch"):
        train(pictures, tmp_path / "a.pt", recipe(peak_learning_rate=1e12, warmup_epochs=0))
    if (tmp_path / "a.pt").is_file():
        state = torch.load(tmp_path / "a.pt", weights_only=True)["network"]
        assert all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point())


def weights_by(plan: Recipe, path: Path, data: LabelledImages, heads: str) -> Weights:
    """What a small network with batch normalisation becomes."""
    torch.manual_seed(0)
    network = build_network(
        {"architecture": "cifar_resnet", "depth": 8, "exits": [1, 3], "num_classes": 4}
        | ({"heads": heads} if heads else {}),
        TOY_PREPROCESSING,
    )
    Trainer(
        network,
        TASK,
        data,
        plan,
        device=torch.device("cpu"),
        checkpoint=path,
        on_epoch=lambda report: None,
    ).run()
    return network.state_dict()


def changed(plan: Recipe, **sections: dict[str, Any]) -> Recipe:
    """The recipe with other values in its sections."""
    content = plan.model_dump(exclude_unset=True)
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    return Recipe.model_validate(content)


@pytest.mark.parametrize(
    ("sections", "base", "heads"),
    [
        ({"optimiser": {"kind": "adamw"}}, {}, ""),
        ({"optimiser": {"momentum": 0.5}}, {}, ""),
        ({"optimiser": {"weight_decay": 0.1}}, {}, ""),
        ({"optimiser": {"peak_learning_rate": 0.05}}, {}, ""),
        ({"optimiser": {"warmup_epochs": 0}}, {}, ""),
        ({"optimiser": {"average_decay": 0.5}}, {}, ""),
        ({"optimiser": {"batch_size": 16}}, {}, ""),
        ({"loss": {"kind": "joint", "exit_weights": "equal"}}, {}, ""),
        ({"loss": {"kind": "joint", "class_weights": "rare"}}, {}, ""),
        ({"distillation": {"weight": 0.1}}, {}, ""),
        ({"distillation": {"temperature": 1.0}}, {}, ""),
        ({"distillation": {"starts_at": 1.0}}, {}, ""),
        ({"augmentation": {"padding": 0}}, {}, ""),
        ({"loss": {"v0_epochs": 1}}, {"loss": {"kind": "cost_aware"}}, "confidence"),
        ({"loss": {"version": "v1"}}, {"loss": {"kind": "cost_aware"}}, "confidence"),
        ({"loss": {"cost_weight": 0.1}}, {"loss": {"kind": "cost_aware"}}, "confidence"),
    ],
    ids=str,
)
def test_every_key_of_a_recipe_counts(
    tmp_path: Path,
    make_coloured: MakeData,
    sections: dict[str, dict[str, Any]],
    base: dict[str, dict[str, Any]],
    heads: str,
) -> None:
    """Another value, other weights: nothing that a recipe says is passed over."""
    data = make_coloured(60, size=8, seed=3)
    plan = changed(recipe(epochs=2), **base)
    one = weights_by(plan, tmp_path / "a.pt", data, heads)
    other = weights_by(changed(plan, **sections), tmp_path / "b.pt", data, heads)
    assert not same(one, other)


def test_norms_and_biases_do_not_decay(tmp_path: Path, make_coloured: MakeData) -> None:
    """Weight decay pulls at matrices and kernels only."""
    data = make_coloured(40, size=8, seed=3)
    torch.manual_seed(0)
    network = build_network(
        {"architecture": "cifar_resnet", "depth": 8, "exits": [1, 3], "num_classes": 4},
        TOY_PREPROCESSING,
    )
    trainer = Trainer(
        network,
        TASK,
        data,
        recipe(),
        device=torch.device("cpu"),
        checkpoint=tmp_path / "a.pt",
        on_epoch=lambda report: None,
    )
    decays = {
        id(p): g["weight_decay"] for g in trainer._optimiser.param_groups for p in g["params"]
    }
    assert len(decays) == len(list(network.parameters()))
    for parameter in network.parameters():
        assert decays[id(parameter)] == (5e-4 if parameter.ndim > 1 else 0)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optimiser": {"average_decay": 1.0}}, "average_decay"),
        ({"optimiser": {"warmup_epochs": 4}}, "warmup_epochs: 4 must be fewer than epochs, 4"),
        ({"optimiser": {"kind": "adamw", "momentum": 0.9}}, "momentum: 0.9 is not for kind: adamw"),
        (
            {"loss": {"kind": "cost_aware"}, "distillation": {"weight": 0.5}},
            "distillation: has no place in loss.kind: cost_aware",
        ),
    ],
)
def test_recipes_that_would_be_half_ignored_are_refused(
    sections: dict[str, dict[str, Any]], said: str
) -> None:
    """With the field, its value and what to do."""
    with pytest.raises(ValidationError, match=said):
        changed(recipe(), **sections)


def test_checkpoint_of_another_recipe_is_kept(tmp_path: Path, pictures: LabelledImages) -> None:
    """A changed recipe neither goes on from another one's checkpoint nor overwrites it in silence."""
    train(pictures, tmp_path / "a.pt", recipe(), stop_after=2)
    kept = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(ConfigurationError, match="delete the checkpoint to start anew"):
        train(pictures, tmp_path / "a.pt", recipe(peak_learning_rate=0.05))
    assert (tmp_path / "a.pt").read_bytes() == kept


def test_finished_run_is_not_trained_again(tmp_path: Path, pictures: LabelledImages) -> None:
    """Running a finished recipe again gives its weights without another epoch."""
    weights, _ = train(pictures, tmp_path / "a.pt", recipe())
    again, reports = train(pictures, tmp_path / "a.pt", recipe(), initial=99)
    assert reports == []
    assert same(weights, again)


def test_network_learns_and_reports(tmp_path: Path, pictures: LabelledImages) -> None:
    """On a learnable set the loss falls, every exit learns, and the reports count and estimate."""
    torch.manual_seed(0)
    network = toy_network()
    reports: list[EpochReport] = []
    Trainer(
        network,
        TASK,
        pictures,
        recipe(epochs=12),
        device=torch.device("cpu"),
        checkpoint=tmp_path / "new" / "a.pt",
        on_epoch=reports.append,
    ).run()
    assert [(r.epoch, r.epochs) for r in reports] == [(i, 12) for i in range(1, 13)]
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert all(len(r.exit_accuracy) == 3 for r in reports)
    assert all(0 <= a <= 1 for r in reports for a in r.exit_accuracy)
    assert min(reports[-1].exit_accuracy) > 0.7
    assert min(f["accuracy"] for f in exit_figures(network, TASK, pictures)) > 0.7
    assert all(r.seconds > 0 for r in reports)
    assert reports[-1].seconds_left == 0 < reports[0].seconds_left


def test_average_is_what_ships(tmp_path: Path, pictures: LabelledImages) -> None:
    """The averaged weights lag behind the last step's: other decay, other weights, same losses."""
    slow, one = train(pictures, tmp_path / "a.pt", recipe(average_decay=0.99))
    fast, two = train(pictures, tmp_path / "b.pt", recipe(average_decay=0.0))
    assert [r.loss for r in one] == [r.loss for r in two]
    last = torch.load(tmp_path / "b.pt", weights_only=True)["network"]
    assert same(fast, last)
    assert not same(slow, last)


def test_accuracy_is_counted_by_hand(make_coloured: MakeData) -> None:
    """Accuracy is the share of right answers per exit, also over an incomplete last batch."""
    data = make_coloured(50, size=8, seed=8)
    torch.manual_seed(2)
    network = toy_network().eval()
    with torch.inference_mode():
        answers = [o.logits.argmax(1) for o in network(torch.from_numpy(data.images))]
    truth = torch.from_numpy(data.labels)
    expected = [float((a == truth).double().mean()) for a in answers]
    figures = exit_figures(network, TASK, data, rows=16)
    assert [f["accuracy"] for f in figures] == pytest.approx(expected)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_few_steps_leave_true_statistics(
    tmp_path: Path, pictures: LabelledImages, batch_size: int
) -> None:
    """Batch normalisation keeps what the pictures are, though its running mean had no time to find it."""
    torch.manual_seed(0)
    network = build_network(
        {"architecture": "cifar_resnet", "depth": 8, "exits": [1, 3], "num_classes": 4},
        TOY_PREPROCESSING,
    )
    Trainer(
        network,
        TASK,
        pictures,
        recipe(epochs=1, batch_size=batch_size, warmup_epochs=0),
        device=torch.device("cpu"),
        checkpoint=tmp_path / "a.pt",
        on_epoch=lambda report: None,
    ).run()
    layer = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        network(torch.from_numpy(pictures.images))
    assert layer.running_mean is not None
    torch.testing.assert_close(layer.running_mean, seen[0].mean((0, 2, 3)), atol=0.05, rtol=0)
    assert layer.momentum == 0.1
