from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from streamexit.errors import PipelineError
from streamexit.models.pipeline import load_pipeline, save_pipeline, sha256
from streamexit.scheduling.policy import load_policy
from streamexit.testing import TOY_LABELS, TOY_POLICIES, toy_network
from tests.conftest import MakeToy

WEIGHTS = "network.safetensors"
POLICY = "policies/eenet.safetensors"
Damage = Callable[[Path], None]


@pytest.fixture
def folder(toy_pipeline: Path, tmp_path: Path) -> Path:
    """A pipeline to damage."""
    shutil.copytree(toy_pipeline, tmp_path / "toy")
    return tmp_path / "toy"


def change(**sections: Any) -> Damage:
    """Set keys of pipeline.yaml; mappings are merged into what is there."""

    def damage(folder: Path) -> None:
        content = yaml.safe_load((folder / "pipeline.yaml").read_text())
        for name, value in sections.items():
            if isinstance(value, dict):
                value = {**content.get(name, {}), **value}
            content[name] = value
        (folder / "pipeline.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    return damage


def remove(file: str) -> Damage:
    """Leave a file out."""
    return lambda folder: (folder / file).unlink()


def flip_last_byte(file: str) -> Damage:
    """Change one bit."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[-1] ^= 1
        (folder / file).write_bytes(content)

    return damage


def weights_of_another_network(folder: Path) -> None:
    """With the right checksum."""
    save_file(toy_network(num_exits=2).state_dict(), folder / WEIGHTS)
    change(weights={"sha256": sha256(folder / WEIGHTS)})(folder)


def weights_cut_short(folder: Path) -> None:
    """With the right checksum."""
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    change(weights={"sha256": sha256(folder / WEIGHTS)})(folder)


def weights_outside(folder: Path) -> None:
    """A real file with the right checksum, one folder up."""
    shutil.copy(folder / WEIGHTS, folder.parent / WEIGHTS)
    change(weights={"file": f"../{WEIGHTS}"})(folder)


def policy_outside(folder: Path) -> None:
    """Through a subfolder and up again."""
    content = yaml.safe_load((folder / "pipeline.yaml").read_text())
    reference = {**content["policies"]["eenet"], "file": "policies/../network.safetensors"}
    change(policies={"eenet": reference})(folder)


def test_saved_pipeline_loads_as_it_was(tmp_path: Path) -> None:
    """What was saved comes back: outputs bit for bit, names, task, costs; in eval mode."""
    torch.manual_seed(3)
    network = toy_network(num_exits=2).eval()
    save_pipeline(
        tmp_path / "deep" / "folder",
        name="mine",
        task={"kind": "classification", "top_k": 2},
        network_spec={"architecture": "streamexit.testing:toy_network", "num_exits": 2},
        network=network,
        labels=TOY_LABELS,
        calibration={"dataset": "cifar10", "root": "data", "calibration_size": 7},
    )
    pipeline = load_pipeline(tmp_path / "deep" / "folder")
    images = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8)
    for one, other in zip(network(images), pipeline.network(images), strict=True):
        assert torch.equal(one.logits, other.logits)
    assert not pipeline.network.training
    assert (pipeline.name, pipeline.labels) == ("mine", TOY_LABELS)
    assert pipeline.task == {"kind": "classification", "top_k": 2}
    assert pipeline.calibration
    assert pipeline.calibration.calibration_size == 7
    assert pipeline.network.preprocessing == network.preprocessing
    assert len(pipeline.costs.per_exit) == 2
    with pytest.raises(PipelineError, match=r"no exit policy yet.*streamexit fit"):
        pipeline.policy_file(None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "My network"}, "name: 'My network'"),
        ({"labels": ("a", "b", "c")}, "labels: 3 labels, but the network has 4 classes"),
        ({"task": {"kind": "levitation"}}, "levitation"),
        ({"calibration": {"dataset": "cifar10"}}, r"calibration\.root"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """The message names the field, and there is no folder."""
    arguments: dict[str, Any] = {
        "name": "mine",
        "task": {"kind": "classification"},
        "network_spec": {"architecture": "streamexit.testing:toy_network"},
        "network": toy_network().eval(),
        "labels": TOY_LABELS,
    }
    with pytest.raises(PipelineError, match=said):
        save_pipeline(tmp_path / "folder", **{**arguments, **changes})
    assert not (tmp_path / "folder").exists()


def test_policies_are_found_by_name_and_default(toy_pipeline: Path) -> None:
    """A policy is found by name, the default without one, and a wrong name gets the nearest."""
    pipeline = load_pipeline(toy_pipeline)
    assert set(pipeline.policies) == set(TOY_POLICIES)
    assert pipeline.policy_file(None).stem == "direct"
    assert pipeline.policy_file("eenet") == toy_pipeline / POLICY
    assert pipeline.policy_file("msdnet").stem == "msdnet"
    with pytest.raises(PipelineError, match=r"no policy 'eenett'; did you mean 'eenet'\?"):
        pipeline.policy_file("eenett")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (remove("pipeline.yaml"), "no pipeline.yaml here; is this a pipeline folder?"),
        (remove(WEIGHTS), f"{WEIGHTS}: missing.*Restore"),
        (remove(POLICY), f"{POLICY}: missing.*Restore"),
        (flip_last_byte(WEIGHTS), f"{WEIGHTS}: its SHA-256.*altered.*Restore it, or train"),
        (flip_last_byte(POLICY), f"{POLICY}: its SHA-256.*altered.*Restore it, or train and fit"),
        (change(weights={"sha256": "0" * 64}), f"{WEIGHTS}: its SHA-256.*another pipeline"),
        (change(weights={"sha256": "abc"}), r"weights\.sha256: 'abc'"),
        (weights_of_another_network, f"{WEIGHTS}: does not fit the network"),
        (weights_cut_short, f"{WEIGHTS}: does not fit the network"),
        (weights_outside, r"weights\.file: '\.\./network"),
        (policy_outside, r"policies\.eenet\.file"),
        (change(weights={"file": "/etc/hostname"}), r"weights\.file: '/etc/hostname'"),
        (change(weights={"file": ".."}), r"weights\.file: '\.\.'"),
        (change(costs={"per_exit": [1e-5, 1e-4, 2e-4]}), r"costs\.per_exit.*is not what this"),
        (change(costs={"per_exit": [1e-5, 2e-4]}), r"costs\.per_exit.*is not what this"),
        (change(costs={"per_exit": [2e-4, 1e-5, 1e-4]}), r"costs\.per_exit.*strictly rising"),
        (change(costs={"unit": "seconds"}), r"costs\.unit: 'seconds'.*'gflops'"),
        (change(labels=["a", "b", "c"]), "labels: 3 labels, but the network has 4 classes"),
        (change(labels=["a"]), "labels: .*at least 2"),
        (change(network={"architecture": "cifar_resnt"}), "did you mean 'cifar_resnet'"),
        (change(network={"num_exit": 3}), r"num_exit\b"),
        (change(network={"num_exits": "three"}), "toy_network"),
        (change(schema="streamexit.pipeline/9"), "schema: 'streamexit.pipeline/9'"),
        (change(preprocessing={"width": 0}), r"preprocessing\.width: 0"),
        (change(preprocessing={"std": [0.0, 0.2, 0.2]}), r"preprocessing\.std"),
        (change(preprocessing={"fit": "squeeze"}), r"preprocessing\.fit: 'squeeze'"),
        (change(sheduler={}), "sheduler: unknown key"),
    ],
)
def test_damaged_pipeline_is_refused(folder: Path, damage: Damage, expected: str) -> None:
    """Each kind of damage is found on loading; the message names the file and the remedy."""
    damage(folder)
    with pytest.raises(PipelineError) as caught:
        load_pipeline(folder)
    message = str(caught.value)
    assert re.search(expected, message), message
    assert str(folder) in message


def test_policy_of_another_network_is_refused(toys: MakeToy, folder: Path) -> None:
    """A policy that was fitted to other costs is refused and asks for a new fit."""
    costs = load_pipeline(toys(num_exits=2)).costs
    with pytest.raises(PipelineError, match="fitted for another cost table; run streamexit fit"):
        load_policy(folder / POLICY, costs.fractions)


@pytest.mark.parametrize("content", [b"", b"not a policy", bytes(100)])
def test_file_that_is_no_policy_is_refused(tmp_path: Path, content: bytes) -> None:
    """Something that is not a policy file is refused and named."""
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(PipelineError, match=r"p\.safetensors: not a readable exit policy"):
        load_policy(tmp_path / "p.safetensors", (0.5, 1.0))
