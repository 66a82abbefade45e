"""Making a pipeline folder: train the network from its recipe, then fit policies to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamexit.backends.devices import pick_device
from streamexit.calibration.collect import collect_evidence, exit_figures
from streamexit.calibration.outcomes import block_starts, interval
from streamexit.calibration.parts import check_size, load_part_of
from streamexit.calibration.threads import one_thread
from streamexit.documents import Document, load_document
from streamexit.errors import ConfigurationError, PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork
from streamexit.models.pipeline import (
    check_classes,
    load_pipeline,
    register_policies,
    save_pipeline,
)
from streamexit.scheduling.evidence import Calibration, Floats
from streamexit.scheduling.methods import find_method
from streamexit.scheduling.policy import ExitPolicy, fit_policy, save_policy
from streamexit.scheduling.scorers import score_all_exits
from streamexit.scheduling.thresholds import exits_taken, spread_all, thresholds_within
from streamexit.tasks.kinds import build_task
from streamexit.tasks.readout import Task
from streamexit.training.datasets import IN_TIME_ORDER, load_part
from streamexit.training.initial_weights import load_initial_weights
from streamexit.training.labelled import LabelledImages
from streamexit.training.recipe import Recipe, Scenes
from streamexit.training.trainer import EpochReport, Trainer

CHECKPOINT = Path(".training/checkpoint.pt")
REPORT = "training.json"

DEFAULT_METHODS = ("direct", "msdnet", "eenet")
"""What `fit` enters into a pipeline unless told. The first becomes the default, or the best one that is
better on held-out frames by more than chance. A network with confidence branches gets direct search on those as well."""

FOLDS = 3
HELD_OUT_BUDGETS = 9


def train_pipeline(
    recipe_file: Path,
    *,
    data: Path | None,
    device: str,
    epochs: int | None,
    on_begin: Callable[[str], None] = lambda sentence: None,
    on_epoch: Callable[[EpochReport], None],
) -> dict[str, Any]:
    """Train by a recipe and write the pipeline into the recipe's folder.

    Policies that were fitted to an earlier network of the folder are no longer named in it.

    Args:
        recipe_file: A train.yaml.
        data: Instead of the recipe's root.
        device: Where to.
        epochs: Instead of the recipe's.
        on_begin: Called with a sentence: what the pictures are used for.
        on_epoch: Called after each.

    Returns:
        What was done and reached, as also written to `training.json`.

    Raises:
        ConfigurationError: In the recipe.
        DataError: The data set is not there.
    """
    document = load_document(recipe_file, Recipe, error=ConfigurationError)
    recipe = document.value if epochs is None else _for_epochs(document.value, epochs)
    target = pick_device(device)
    _make_deterministic(recipe.seed, target)
    preprocessing = recipe.preprocessing.build()
    network = build_network(recipe.network, preprocessing)
    load_initial_weights(recipe.initial_weights, network, recipe.network)
    dataset, root = recipe.data.dataset, data or Path(recipe.data.root)
    size = recipe.data.calibration_size
    how: dict[str, Any] = {"calibration_size": size, "preprocessing": preprocessing}
    pictures = load_part(dataset, root, "train", **how)
    test = load_part(dataset, root, "test", **how)
    task = build_task(recipe.task, pictures.classes, preprocessing)
    _check_fit(document, network, task, pictures)
    folder = recipe_file.parent
    aside = f"{size} for the exit policies, " if size else ""
    on_begin(f"{len(pictures.labels)} pictures to train on, {aside}{len(test.labels)} to judge by")
    Trainer(
        network,
        task,
        pictures,
        recipe,
        device=target,
        checkpoint=folder / CHECKPOINT,
        on_epoch=on_epoch,
    ).run()
    save_pipeline(
        folder,
        name=recipe.name,
        task=recipe.task,
        network_spec=recipe.network,
        network=network,
        labels=pictures.classes,
        calibration={**recipe.data.model_dump(exclude_none=True), "trained_on": pictures.digest()},
    )
    report = {
        **_circumstances(recipe, target),
        "train_pictures": len(pictures.labels),
        "test_pictures": len(test.labels),
        "gflops_per_exit": [round(cost, 9) for cost in gflops_per_exit(network)],
        "test_figures_per_exit": exit_figures(network, task, test),
        "recipe": recipe.model_dump(mode="json"),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _circumstances(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    return {
        "pipeline": recipe.name,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"streamexit": version("streamexit"), "torch": torch.__version__},
        "device": device.type,
    }


def _for_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with another number of them."""
    if recipe.optimiser.warmup_epochs and recipe.optimiser.warmup_epochs >= epochs:
        raise ConfigurationError(
            f"--epochs: {epochs} must be more than optimiser.warmup_epochs of the recipe, "
            f"{recipe.optimiser.warmup_epochs:g}; ask for more, or leave that field out"
        )
    optimiser = recipe.optimiser.model_copy(update={"epochs": epochs})
    return recipe.model_copy(update={"optimiser": optimiser})


def fit_policies(
    folder: Path,
    *,
    names: Sequence[str] | None,
    default: str | None,
    data: Path | None,
    device: str,
    seed: int,
) -> dict[str, Any]:
    """Fit policies on the calibration part of the pipeline's data and enter them into the folder.

    Returns:
        The default, and per policy: where it was written, how many budgets its table has, and its
        mean quality on held-out frames over all budgets.

    Raises:
        PipelineError: Unknown policy, or a pipeline that names no calibration data.
    """
    pipeline = load_pipeline(folder)
    for name in names or ():
        find_method(name)
    pictures = load_part_of(pipeline, "calibration", data)
    assert pipeline.calibration
    task = pipeline.build_task()
    evidence = collect_evidence(pipeline.network.to(pick_device(device)), task, pictures)
    branch = ("branch+search",) if evidence.branch is not None else ()
    wanted = list(names or (*DEFAULT_METHODS, *branch))
    if default and default not in {*wanted, *pipeline.policies}:
        raise PipelineError(f"default: {default!r} is not fitted; fitted would be {wanted}")
    fractions = pipeline.costs.fractions
    ordered = pipeline.calibration.dataset in IN_TIME_ORDER
    with one_thread():
        policies = [fit_policy(name, evidence, fractions, seed=seed) for name in wanted]
        held_out = {
            name: held_out_quality(name, evidence, fractions, seed, ordered=ordered)
            for name in wanted
        }
    files: dict[str, Path] = {}
    for policy in policies:
        policy.provenance.update(
            data=pipeline.calibration.model_dump(exclude_none=True),
            held_out_quality=round(float(held_out[policy.name].mean()), 5),
            date=datetime.now(UTC).date().isoformat(),
            version=version("streamexit"),
        )
        files[policy.name] = folder / "policies" / f"{policy.name.replace('+', '-')}.safetensors"
        save_policy(policy, files[policy.name])
    chosen = default or (pipeline.default_policy if names else None)
    chosen = chosen or best_policy(held_out, ordered=ordered)
    register_policies(folder, files, default=chosen)
    return {
        "pipeline": pipeline.name,
        "calibration_frames": len(pictures.labels),
        "default": chosen,
        **{p.name: _summary(p, files[p.name]) for p in policies},
    }


def held_out_quality(
    name: str,
    evidence: Calibration,
    fractions: tuple[float, ...],
    seed: int,
    *,
    ordered: bool = False,
) -> Floats:
    """[N]: each frame's quality, mean over budgets, where policies were fitted on the other folds.

    Args:
        name: Of the method.
        evidence: Calibration frames.
        fractions: [K].
        seed: Of the method, and of the folds.
        ordered: Whether frames are like their neighbours, so that folds are stretches of time.
    """
    n = len(evidence.quality)
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    fold = torch.arange(n) * FOLDS // n if ordered else shuffled % FOLDS
    budgets = np.linspace(fractions[0], 1, HELD_OUT_BUDGETS + 2)[1:-1].tolist()
    found = np.zeros(n)
    for i in range(FOLDS):
        policy = fit_policy(
            name, evidence.rows(torch.nonzero(fold != i)[:, 0]), fractions, seed=seed
        )
        held_out = torch.nonzero(fold == i)[:, 0]
        rest = evidence.rows(held_out)
        scores = spread_all(score_all_exits(policy.scorer, rest).double().numpy())
        quality = rest.quality.double().numpy()
        for budget in budgets:
            taken = exits_taken(scores, thresholds_within(policy.table, scores, budget))
            found[held_out.numpy()] += quality[range(len(taken)), taken] / len(budgets)
    return found


def best_policy(held_out: dict[str, Floats], *, ordered: bool) -> str:
    """The usual one, unless another is better by more than chance.

    Args:
        held_out: Name -> `held_out_quality`.
        ordered: Whether frames are like their neighbours.
    """
    usual = next((name for name in DEFAULT_METHODS if name in held_out), next(iter(held_out)))
    count = len(held_out[usual])
    starts = block_starts(count, np.zeros(count, int) if ordered else None)
    sizes = np.diff(starts, append=count).astype(float)
    better = [
        name
        for name, quality in held_out.items()
        if interval(np.add.reduceat(quality - held_out[usual], starts), sizes)[0] > 0
    ]
    return max(better, key=lambda name: held_out[name].mean(), default=usual)


def _summary(policy: ExitPolicy, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "table_rows": len(policy.table.budgets),
        "held_out_quality": policy.provenance["held_out_quality"],
    }


def _check_fit(
    document: Document[Recipe], network: MultiExitNetwork, task: Task, pictures: LabelledImages
) -> None:
    """A recipe whose network, task, data set and augmentation do not belong together cannot be trained."""
    check_classes(network, len(pictures.classes))
    check_size(document.where("preprocessing"), network.preprocessing, pictures)
    recipe, maps = document.value, pictures.labels.ndim == 3
    if task.gives_maps != maps:
        raise ConfigurationError(
            f"{document.where('task')}: {task.kind} cannot be learned from {recipe.data.dataset}, "
            f"which has one label per {'pixel' if maps else 'picture'}"
        )
    if isinstance(recipe.augmentation, Scenes) != maps:
        raise ConfigurationError(
            f"{document.where('augmentation')}: {recipe.augmentation.kind} does not fit labels per "
            f"{'pixel; use kind: scenes' if maps else 'picture; use kind: crop_and_flip'}"
        )


def _make_deterministic(seed: int, device: torch.device) -> None:
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
