"""Making a pipeline folder: train the network from its recipe, then fit policies to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from streamexit.backends.torch_backend import pick_device
from streamexit.calibration.collect import collect_evidence
from streamexit.documents import load_document
from streamexit.errors import ConfigurationError, PipelineError
from streamexit.models.architectures import build_network
from streamexit.models.pipeline import (
    check_classes,
    load_pipeline,
    register_policies,
    save_pipeline,
)
from streamexit.preprocessing import Preprocessing
from streamexit.scheduling.policy import POLICIES, fit_policy, save_policy
from streamexit.tasks.classification import build_task
from streamexit.training.datasets import LabelledImages, load_part
from streamexit.training.recipe import Recipe
from streamexit.training.trainer import EpochReport, Trainer, exit_accuracy

CHECKPOINT = Path(".training/checkpoint.pt")
REPORT = "training.json"


def train_pipeline(
    recipe_file: Path,
    *,
    data: Path | None,
    device: str,
    epochs: int | None,
    on_epoch: Callable[[EpochReport], None],
) -> dict[str, Any]:
    """Train by a recipe and write the pipeline into the recipe's folder.

    Policies that were fitted to an earlier network of the folder are no longer named in it.

    Returns:
        What was done and reached, as also written to `training.json`.

    Raises:
        ConfigurationError: In the recipe.
        DataError: The data set is not there.
    """
    document = load_document(recipe_file, Recipe, error=ConfigurationError)
    recipe = document.value
    if epochs is not None:
        optimiser = recipe.optimiser.model_copy(update={"epochs": epochs})
        recipe = recipe.model_copy(update={"optimiser": optimiser})
    target = pick_device(device)
    _make_deterministic(recipe.seed, target)
    preprocessing = recipe.preprocessing.build()
    network = build_network(recipe.network, preprocessing)
    dataset, root = recipe.data.dataset, data or Path(recipe.data.root)
    size = recipe.data.calibration_size
    pictures = load_part(dataset, root, "train", calibration_size=size)
    test = load_part(dataset, root, "test", calibration_size=size)
    build_task(recipe.task, pictures.classes)
    check_classes(network, len(pictures.classes))
    _check_size(document.where("preprocessing"), preprocessing, pictures)
    folder = recipe_file.parent
    Trainer(
        network, pictures, recipe, device=target, checkpoint=folder / CHECKPOINT, on_epoch=on_epoch
    ).run()
    save_pipeline(
        folder,
        name=recipe.name,
        task=recipe.task,
        network_spec=recipe.network,
        network=network,
        labels=pictures.classes,
        calibration={"dataset": dataset, "root": recipe.data.root, "calibration_size": size},
    )
    report = {
        "pipeline": recipe.name,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"streamexit": version("streamexit"), "torch": torch.__version__},
        "device": target.type,
        "train_pictures": len(pictures.labels),
        "test_pictures": len(test.labels),
        "test_accuracy_per_exit": [round(a, 4) for a in exit_accuracy(network, test)],
        "recipe": recipe.model_dump(mode="json"),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


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
        Per policy: where it was written and how many budgets its table has.

    Raises:
        PipelineError: Unknown policy, or a pipeline that names no calibration data.
    """
    pipeline = load_pipeline(folder)
    wanted = list(names or POLICIES)
    chosen = default or pipeline.default_policy or wanted[0]
    if chosen not in {*wanted, *pipeline.policies}:
        raise PipelineError(f"default: {chosen!r} is not fitted; fitted would be {wanted}")
    spec = pipeline.calibration
    if spec is None:
        raise PipelineError(f"{folder}: pipeline.yaml names no calibration data")
    root = data or Path(spec.root)
    size = spec.calibration_size
    pictures = load_part(spec.dataset, root, "calibration", calibration_size=size)
    _check_size(str(folder), pipeline.network.preprocessing, pictures)
    task = build_task(pipeline.task, pipeline.labels)
    network = pipeline.network.to(pick_device(device))
    evidence = collect_evidence(network, task, pictures.images, pictures.labels)
    report: dict[str, Any] = {"pipeline": pipeline.name, "calibration_frames": len(pictures.labels)}
    files: dict[str, Path] = {}
    for name in wanted:
        with _one_thread():
            policy = fit_policy(name, evidence, pipeline.costs.fractions, seed=seed)
        policy.provenance.update(
            data=spec.model_dump(),
            date=datetime.now(UTC).date().isoformat(),
            version=version("streamexit"),
        )
        file = folder / "policies" / f"{name}.safetensors"
        save_policy(policy, file)
        files[name] = file
        report[name] = {"file": str(file), "table_rows": len(policy.table.budgets)}
    register_policies(folder, files, default=chosen)
    return report


def _check_size(where: str, preprocessing: Preprocessing, pictures: LabelledImages) -> None:
    """Pictures of another size would make the network learn on other pixels than it then sees."""
    height, width = pictures.images.shape[1:3]
    if (height, width) != (preprocessing.height, preprocessing.width):
        raise ConfigurationError(
            f"{where}: {preprocessing.width}x{preprocessing.height} is declared, but the data "
            f"set's pictures are {width}x{height}"
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors of a few kilobytes only lose by being shared between cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _make_deterministic(seed: int, device: torch.device) -> None:
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
