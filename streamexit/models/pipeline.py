"""A pipeline: the deployable folder of a network, its labels, its costs and its exit policies.

pipeline.yaml names every other file with its SHA-256, so that a missing, altered or mismatched
file is found when the pipeline is loaded, not when a result is wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from streamexit.documents import did_you_mean, load_document
from streamexit.errors import PipelineError
from streamexit.exits import CostTable
from streamexit.models.architectures import build_network
from streamexit.models.cost import gflops_per_exit
from streamexit.models.network import MultiExitNetwork
from streamexit.preprocessing import Preprocessing
from streamexit.tasks.kinds import build_task
from streamexit.tasks.readout import Task

FILE = "pipeline.yaml"
WEIGHTS = "network.safetensors"


Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFinite = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """Knows its keys, and stays as it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PreprocessingSection(Strict):
    """See `Preprocessing`."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    mean: tuple[Finite, Finite, Finite]
    std: tuple[PositiveFinite, PositiveFinite, PositiveFinite]
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"

    def build(self) -> Preprocessing:
        """The checked value."""
        return Preprocessing(**self.model_dump())


class FileReference(Strict):
    """A file of the folder."""

    file: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CostSection(Strict):
    """See `CostTable`."""

    unit: Literal["gflops"]
    per_exit: list[float]


class CalibrationSection(Strict):
    """Which pictures the scheduler may be fitted on: a part that training left out."""

    dataset: str
    root: str
    calibration_size: int | None = Field(default=None, gt=0)
    trained_on: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")
    """Digest of the training part, so that other pictures are noticed; see `LabelledImages.digest`."""


class QuantisedSection(Strict):
    """Stages in 8-bit integers, and what came out when they were judged."""

    files: list[FileReference]
    report: dict[str, Any]


class PipelineFile(Strict):
    """What `pipeline.yaml` says."""

    format: Literal["streamexit.pipeline/1"] = Field(alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    task: dict[str, Any]
    network: dict[str, Any]
    preprocessing: PreprocessingSection
    labels: list[str] = Field(min_length=2)
    costs: CostSection
    weights: FileReference
    calibration: CalibrationSection | None = None
    default_policy: str | None = None
    policies: dict[str, FileReference] = {}
    quantised: QuantisedSection | None = None


@dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline.

    Attributes:
        folder: Where it lies.
        name: Its name on the wire.
        task: The task mapping; see `build_task`.
        labels: Class names in index order.
        network: In eval mode, on the CPU.
        costs: GFLOPs per exit, checked against the network.
        calibration: Which data the scheduler may be fitted on (data set, size of the split).
        policies: Name -> policy file, checksums already checked.
        default_policy: The one used when none is named.
        quantised: OpenVINO's files of the stages in 8-bit integers, in order; empty if there are none.
    """

    folder: Path
    name: str
    task: dict[str, Any]
    labels: tuple[str, ...]
    network: MultiExitNetwork
    costs: CostTable
    calibration: CalibrationSection | None
    policies: dict[str, Path]
    default_policy: str | None
    quantised: tuple[Path, ...] = ()

    def build_task(self) -> Task:
        """What reads this network's answers."""
        return build_task(self.task, self.labels, self.network.preprocessing)

    def policy_file(self, name: str | None) -> Path:
        """The file of policy `name`, or of the default one.

        Raises:
            PipelineError: No such policy, or none at all.
        """
        wanted = name or self.default_policy
        if wanted is None:
            raise PipelineError(
                f"{self.folder}: has no exit policy yet; make one with: streamexit fit {self.folder}"
            )
        if wanted not in self.policies:
            raise PipelineError(
                f"{self.folder}: has no policy {wanted!r}; {did_you_mean(wanted, self.policies)}"
            )
        return self.policies[wanted]


def load_pipeline(folder: str | Path) -> Pipeline:
    """Load and check a pipeline folder.

    Raises:
        PipelineError: Anything missing, altered or mismatched; the message says what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PipelineError(
            f"{folder}: there is no such folder; a pipeline is one with {FILE} in it"
        )
    if not (folder / FILE).is_file():
        raise PipelineError(f"{folder}: no {FILE} here; is this a pipeline folder?")
    document = load_document(folder / FILE, PipelineFile, error=PipelineError)
    spec = document.value
    try:
        network = build_network(spec.network, spec.preprocessing.build())
        costs = CostTable(spec.costs.unit, tuple(spec.costs.per_exit))
        build_task(spec.task, spec.labels, network.preprocessing)
    except PipelineError as error:
        raise PipelineError(f"{folder / FILE}: {error}") from error
    _load_weights(network, _checked(folder, spec.weights))
    _check_costs(document.where("costs", "per_exit"), costs, network)
    try:
        check_classes(network, len(spec.labels))
    except PipelineError as error:
        raise PipelineError(f"{document.where('labels')}: {error}") from error
    policies = {name: _checked(folder, ref) for name, ref in spec.policies.items()}
    quantised = [_checked(folder, ref) for ref in spec.quantised.files] if spec.quantised else []
    return Pipeline(
        folder,
        spec.name,
        spec.task,
        tuple(spec.labels),
        network.eval(),
        costs,
        spec.calibration,
        policies,
        spec.default_policy,
        tuple(file for file in quantised if file.suffix == ".xml"),
    )


def save_pipeline(
    folder: str | Path,
    *,
    name: str,
    task: dict[str, Any],
    network_spec: dict[str, Any],
    network: MultiExitNetwork,
    labels: Sequence[str],
    calibration: dict[str, Any] | None = None,
) -> None:
    """Write a folder that `load_pipeline` reads: weights, cost table, checksums; no policies yet.

    Args:
        folder: Made if need be.
        name: Of the pipeline, on the wire.
        task: {"kind": "classification"} or {"kind": "segmentation"}, with the task's options.
        network_spec: What builds the network again; see `build_network`.
        network: In eval mode; its weights are kept, its costs counted.
        labels: Class names in index order.
        calibration: Which pictures `fit` takes: {"dataset": ..., "root": ...}; see a recipe's `data`.

    Raises:
        PipelineError: `load_pipeline` would refuse it; nothing is written.
    """
    folder = Path(folder)
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    weights = save(state)
    p = network.preprocessing
    content = {
        "schema": "streamexit.pipeline/1",
        "name": name,
        "task": task,
        "network": network_spec,
        "preprocessing": {
            "width": p.width,
            "height": p.height,
            "fit": p.fit,
            "mean": list(p.mean),
            "std": list(p.std),
        },
        "labels": list(labels),
        "costs": {"unit": "gflops", "per_exit": [round(c, 9) for c in gflops_per_exit(network)]},
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
        "calibration": calibration,
        "policies": {},
    }
    _check_content(content, network)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    _write(folder, content)


def register_policies(folder: Path, files: dict[str, Path], *, default: str) -> None:
    """Enter policy files of the folder into `pipeline.yaml`, by name, and say which is the default."""
    content = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
    for name, file in files.items():
        reference = {"file": file.relative_to(folder).as_posix(), "sha256": sha256(file)}
        content["policies"][name] = reference
    content["default_policy"] = default
    _write(folder, content)


def register_quantised(folder: Path, files: Sequence[Path], report: dict[str, Any]) -> None:
    """Enter quantised stages, and how good they are, into `pipeline.yaml`."""
    content = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
    references = [
        {"file": file.relative_to(folder).as_posix(), "sha256": sha256(file)} for file in files
    ]
    content["quantised"] = {"files": references, "report": report}
    _write(folder, content)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_content(content: dict[str, Any], network: MultiExitNetwork) -> None:
    try:
        spec = PipelineFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where, value = ".".join(map(str, first["loc"])), first["input"]
        raise PipelineError(f"{where}: {value!r}: {first['msg']}") from error
    build_task(spec.task, spec.labels, network.preprocessing)
    try:
        check_classes(network, len(spec.labels))
    except PipelineError as error:
        raise PipelineError(f"labels: {error}") from error


def _write(folder: Path, content: dict[str, Any]) -> None:
    unfinished = folder / f"{FILE}.partial"
    unfinished.write_text(yaml.safe_dump(content, sort_keys=False, width=100), encoding="utf-8")
    unfinished.replace(folder / FILE)


def _checked(folder: Path, reference: FileReference) -> Path:
    path = folder / reference.file
    if not path.is_file():
        raise PipelineError(f"{path}: missing; {folder / FILE} names it. Restore the folder")
    if sha256(path) != reference.sha256:
        raise PipelineError(
            f"{path}: its SHA-256 is not the one in {folder / FILE}; the file was altered or "
            "belongs to another pipeline. Restore it, or train and fit again"
        )
    return path


def _load_weights(network: MultiExitNetwork, path: Path) -> None:
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise PipelineError(f"{path}: does not fit the network in {FILE}: {reason}") from error


def _check_costs(where: str, costs: CostTable, network: MultiExitNetwork) -> None:
    counted = gflops_per_exit(network)
    close = len(counted) == len(costs.per_exit) and all(
        abs(a - b) <= 1e-6 * a for a, b in zip(counted, costs.per_exit, strict=True)
    )
    if not close:
        raise PipelineError(
            f"{where}: {list(costs.per_exit)} is not what this network costs, "
            f"{[round(c, 9) for c in counted]}"
        )


def check_classes(network: MultiExitNetwork, count: int) -> None:
    """Check that the network tells as many classes apart as there are labels.

    Raises:
        PipelineError: It does not.
    """
    p = network.preprocessing
    with torch.inference_mode():
        network.eval()
        where = network.normalise.scale.device
        outputs = network(torch.zeros(1, p.height, p.width, 3, dtype=torch.uint8, device=where))
    classes = outputs[-1].logits.shape[1]
    if classes != count:
        raise PipelineError(f"{count} labels, but the network has {classes} classes")
