"""Stages in 8-bit integers, from the command line to a running backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.calibration import quantise
from streamexit.cli.commands import app
from streamexit.errors import ConfigurationError, PipelineError
from streamexit.models.pipeline import FILE, Pipeline, load_pipeline
from streamexit.scheduling.policy import load_policy
from streamexit.testing import toy_pictures
from tests.conftest import MakeToy


def scores(pipeline: Pipeline, precision: str, batch: int = 4) -> np.ndarray:
    """[K, N] of some pictures."""
    scorer = load_policy(pipeline.policy_file("eenet"), pipeline.costs.fractions).scorer
    backend = open_backend(
        pipeline, scorer, BackendOptions("openvino", "cpu", precision, batch=batch)
    )
    states: Sequence[Any] = [np.asarray(p.image) for p in toy_pictures(10, seed=3)]
    found = []
    for k in range(backend.num_stages):
        result = backend.submit(k, states).result()
        found.append(result.scores)
        states = result.states
    return np.array(found)


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_quantised_stages_are_bound_to_their_pipeline(toys: MakeToy, kind: str) -> None:
    """A pipeline without them refuses int8 and names the command."""
    pipeline = load_pipeline(toys(kind))
    assert pipeline.quantised == ()
    with pytest.raises(ConfigurationError, match=r"precision: int8 needs .* streamexit quantise"):
        scores(pipeline, "int8")


def test_quantise_from_the_command_line(toy_pipeline: Path, tmp_path: Path, archives: Path) -> None:
    """Files with checksums, figures per exit before and after, and scores that stay near."""
    folder = Path(shutil.copytree(toy_pipeline, tmp_path / "toy"))
    content = yaml.safe_load((folder / FILE).read_text())
    content["calibration"] = {"dataset": "cifar10", "root": str(archives), "calibration_size": 300}
    (folder / FILE).write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["quantise", str(folder), "--pictures", "60", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["pictures"] == 60
    before, after = report["test_figures_float32"], report["test_figures_int8"]
    assert len(before) == len(after) == 3
    assert np.abs(np.array(before) - np.array(after)).max() < 0.05
    pipeline = load_pipeline(folder)
    assert [file.name for file in pipeline.quantised] == [f"stage{k}.xml" for k in range(3)]
    for batch in (1, 4):
        moved = np.abs(scores(pipeline, "int8", batch) - scores(pipeline, "float32", batch))
        assert 0 < moved.max() < 0.2
    pipeline.quantised[1].with_suffix(".bin").write_bytes(b"altered")
    with pytest.raises(PipelineError, match=r"int8/stage1.bin: its SHA-256"):
        load_pipeline(folder)


def test_what_was_not_judged_is_not_entered(
    toy_pipeline: Path, tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When judging stops, the folder is as it was."""
    folder = Path(shutil.copytree(toy_pipeline, tmp_path / "toy"))
    content = yaml.safe_load((folder / FILE).read_text())
    content["calibration"] = {"dataset": "cifar10", "root": str(archives), "calibration_size": 300}
    (folder / FILE).write_text(yaml.safe_dump(content))
    before = sorted(folder.rglob("*")), (folder / FILE).read_bytes()

    def stops(*_: object, precision: str) -> list[float]:
        if precision == "int8":
            raise KeyboardInterrupt
        return [0.5]

    def writes(_: Pipeline, __: Sequence[Any], place: Path) -> list[Path]:
        (place / "stage0.xml").write_text("quantised")
        return [place / "stage0.xml"]

    monkeypatch.setattr(quantise, "_write", writes)
    monkeypatch.setattr(quantise, "figures_per_exit", stops)
    with pytest.raises(KeyboardInterrupt):
        quantise.quantise_pipeline(folder, data=None, pictures=10)
    assert (sorted(folder.rglob("*")), (folder / FILE).read_bytes()) == before


def test_a_node_refuses_int8_without_quantised_stages(toy_pipeline: Path, tmp_path: Path) -> None:
    """The message names file, line and field, and the command that helps."""
    config = tmp_path / "node.yaml"
    config.write_text(
        f"engine: {{device: cpu, precision: int8}}\npipelines: {{toy: {toy_pipeline}}}\n"
        "streams: [{id: a, source: 'synthetic:', pipeline: toy, budget: {fraction: 0.9}}]\n"
    )
    done = CliRunner().invoke(app, ["check", str(config)])
    assert done.exit_code == 2
    assert f"{config}, line 1, engine.precision: int8 needs" in done.stderr
    assert f"streamexit quantise {toy_pipeline}" in done.stderr


def test_a_pipeline_without_calibration_data_is_refused(toy_pipeline: Path) -> None:
    """There is nothing to measure value ranges on."""
    done = CliRunner().invoke(app, ["quantise", str(toy_pipeline)])
    assert done.exit_code == 2
    assert "names no data set" in done.stderr
