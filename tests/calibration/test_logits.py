"""Traces of logits in NumPy files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from streamexit.calibration.collect import read_exits
from streamexit.calibration.logits import ROWS, trace_logits
from streamexit.calibration.trace import Trace
from streamexit.cli.commands import app
from streamexit.models.pipeline import load_pipeline
from streamexit.testing import toy_pictures

COSTS = "0.2,0.5,1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Logits of three exits that get better, and labels."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 1500)
    logits = random.normal(size=(1500, 3, 5)).astype(np.float32)
    for k, strength in enumerate((1.0, 2.0, 4.0)):
        logits[np.arange(1500), k, labels] += strength
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path


def run(folder: Path, *arguments: str, logits: str = "logits.npy") -> tuple[int, str, str]:
    """`streamexit import-logits` there."""
    files = [str(folder / a) if a.endswith(".npy") else a for a in arguments]
    command = ["import-logits", str(folder / logits), *files, "--out", str(folder / "trace.npz")]
    done = CliRunner().invoke(app, [*command, "--json"])
    return done.exit_code, done.stdout, done.stderr


def test_logits_become_a_trace_that_compares(folder: Path) -> None:
    """From two NumPy files to a comparison of policies."""
    code, said, _ = run(folder, "--labels", "labels.npy", "--costs", COSTS)
    report = json.loads(said)
    assert code == 0
    logits, labels = np.load(folder / "logits.npy"), np.load(folder / "labels.npy")
    right = (logits.argmax(2) == labels[:, None]).mean(0)
    assert report["accuracy_per_exit"] == [round(a, 4) for a in right.tolist()]
    assert report["cost_per_exit"] == [0.2, 0.5, 1.0]
    assert (report["frames"], report["label_source"]) == (1500, "truth")
    command = ["compare", str(folder / "trace.npz"), "--methods", "msdnet", "--budgets", "0.5"]
    done = CliRunner().invoke(app, [*command, "--seeds", "1", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["comparisons"]


def test_rows_of_a_recording_are_said_to_be_one(folder: Path) -> None:
    """With --kind stream, neighbours are taken for alike."""
    code, said, _ = run(folder, "--kind", "stream", "--costs", COSTS)
    assert code == 0
    assert json.loads(said)["kind"] == "stream"


def test_a_trace_is_that_of_the_network(toy_pipeline: Path, tmp_path: Path) -> None:
    """Reading logits from a file gives what reading them from the network gives."""
    pipeline = load_pipeline(toy_pipeline)
    pictures = torch.from_numpy(np.stack([p.image for p in toy_pictures(ROWS + 7)]))
    with torch.inference_mode():
        logits = torch.stack([output.logits for output in pipeline.network(pictures)], 1)
    np.save(tmp_path / "logits.npy", logits.numpy())
    trace = trace_logits(tmp_path / "logits.npy", None, (0.2, 0.5, 1), tmp_path / "trace.npz")
    wanted = read_exits(pipeline.network, pipeline.build_task(), pictures, None)
    assert trace.header.label_source == "last exit"
    assert np.array_equal(trace.quality, wanted.evidence.quality.numpy())
    assert np.allclose(trace.confidence, wanted.evidence.confidence.numpy(), atol=1e-6)
    assert len(Trace.open(tmp_path / "trace.npz")) == ROWS + 7


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--costs", "0.5,1"), "has 3 exits, and costs are given for 2"),
        (("--costs", "1,0.5,2"), "must be positive and strictly rising"),
        (("--costs", "a,b"), "--costs: 'a,b' is not of the form"),
        (("--costs", COSTS, "--labels", "absent.npy"), "absent.npy: cannot be read: No such file"),
        (("--costs", COSTS, "--labels", "short.npy"), "labels are whole numbers [1500]"),
        (("--costs", COSTS, "--labels", "large.npy"), "holds 0 .. 9; classes are 0 .. 4"),
        (("--costs", COSTS, "--labels", "text.npy"), "not an array of numpy.save"),
    ],
)
def test_what_does_not_fit_is_said(folder: Path, arguments: tuple[str, ...], expected: str) -> None:
    """With the file, what it holds, and what would be right."""
    np.save(folder / "short.npy", np.zeros(3, np.int64))
    np.save(folder / "large.npy", np.arange(1500) % 10)
    (folder / "text.npy").write_text("no array")
    code, _, said = run(folder, *arguments)
    assert code == 2
    assert expected in said
    assert not (folder / "trace.npz").exists()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((4, 3)), "logits are floats [frames, exits, classes]"),
        (np.zeros((4, 3, 5), np.int64), "is int64 [4, 3, 5]"),
        (np.full((4, 3, 5), np.nan), "hold NaN or infinity"),
        (np.zeros((0, 3, 5)), "nothing to record"),
    ],
)
def test_logits_that_are_none(folder: Path, array: np.ndarray, expected: str) -> None:
    """Likewise."""
    np.save(folder / "bad.npy", array)
    code, _, said = run(folder, "--costs", COSTS, logits="bad.npy")
    assert code == 2
    assert expected in said
