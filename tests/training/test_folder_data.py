"""Folders of pictures: from files to a pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from streamexit.cli.commands import app
from streamexit.errors import DataError
from streamexit.preprocessing import Preprocessing
from streamexit.training.datasets import load_part

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
SIZE = Preprocessing(16, 12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), fit="crop")


def paint(folder: Path, count: int, *, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """Noisy pictures of one colour each, of several sizes and formats."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            rgb = np.full((20 + i % 3, 40, 3), COLOURS[name], np.int64)
            noisy = (rgb * 0.6 + random.integers(0, 100, rgb.shape)).clip(0, 255).astype(np.uint8)
            suffix = ("png", "jpg")[i % 2]
            cv2.imwrite(str(folder / name / f"{i}.{suffix}"), noisy[..., ::-1])
    return folder


def load(folder: Path, part: str, size: int | None = 10) -> tuple[set[str], list[int]]:
    """A part's names and labels."""
    found = load_part("folder", folder, part, calibration_size=size, preprocessing=SIZE)  # type: ignore[arg-type]
    assert found.images.shape[1:] == (12, 16, 3)
    assert found.classes == tuple(COLOURS)
    brightest = found.images.reshape(len(found.labels), -1, 3).sum(1).argmax(1)
    assert [2 - k for k in brightest] == found.labels.tolist()
    return set(found.names), found.labels.tolist()


PARTS = ("train", "calibration", "test")


def test_an_undivided_folder_is_divided(tmp_path: Path) -> None:
    """About a fifth is the test part; parts share nothing, make up all, and are the same each time."""
    paint(tmp_path, 100)
    parts = {part: load(tmp_path, part) for part in PARTS}
    sizes = {part: len(labels) for part, (_, labels) in parts.items()}
    assert sizes["calibration"] == 10
    assert 40 <= sizes["test"] <= 80
    assert sum(sizes.values()) == 300
    assert len(set.union(*(names for names, _ in parts.values()))) == 300
    assert load(tmp_path, "calibration") == parts["calibration"]


def test_pictures_stay_in_their_part(tmp_path: Path) -> None:
    """When others come, none that was tested or calibrated on was ever trained on."""
    paint(tmp_path, 40)
    before = {part: load(tmp_path, part)[0] for part in PARTS}
    for i in range(25):
        shutil.copy(tmp_path / "red" / "0.png", tmp_path / "red" / f"new-{i}.png")
    after = {part: load(tmp_path, part)[0] for part in PARTS}
    assert before["test"] <= after["test"]
    assert before["train"] <= after["train"]
    assert not after["calibration"] & before["train"]
    assert len(set.union(*after.values())) == 145


def test_a_divided_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """With folders train and test."""
    paint(tmp_path / "train", 20)
    paint(tmp_path / "test", 3)
    assert len(load(tmp_path, "test")[1]) == 9
    assert len(load(tmp_path, "train")[1]) == 50


def test_what_is_no_such_folder_is_said(tmp_path: Path) -> None:
    """With what was expected."""
    with pytest.raises(DataError, match="is no folder; name another one with --data"):
        load(tmp_path / "absent", "train")
    paint(tmp_path / "one", 5, classes=("red",))
    with pytest.raises(DataError, match="holds 1 folders; expected one per class"):
        load(tmp_path / "one", "train")
    paint(tmp_path / "two" / "train", 5)
    paint(tmp_path / "two" / "test", 5, classes=("red", "blue"))
    with pytest.raises(DataError, match="train/ and test/ differ in the class 'green'"):
        load(tmp_path / "two", "train")
    few = paint(tmp_path / "few", 5)
    for file in (few / "green").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no training picture of class 'green'"):
        load(few, "train")
    broken = paint(tmp_path / "broken", 10)
    (broken / "red" / "0.png").write_text("no picture")
    with pytest.raises(DataError, match=r"0\.png is not a picture"):
        [load(broken, part) for part in ("train", "test")]


def test_from_a_folder_to_a_pipeline(tmp_path: Path) -> None:
    """Recipe, training, policies, and the accuracy of a replay of the same pictures."""
    paint(tmp_path / "pictures", 40)
    recipe = {
        "name": "mine",
        "task": {"kind": "classification"},
        "network": {"architecture": "cifar_resnet", "depth": 8, "exits": [1, 3], "num_classes": 3},
        "preprocessing": {
            "width": 16,
            "height": 16,
            "fit": "crop",
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        },
        "data": {
            "dataset": "folder",
            "root": str(tmp_path / "pictures"),
            "calibration_size": 30,
        },
        "optimiser": {
            "epochs": 12,
            "batch_size": 16,
            "warmup_epochs": 1,
            "peak_learning_rate": 0.1,
            "average_decay": 0.9,
        },
        "augmentation": {"padding": 2},
        "precision": "float32",
        "seed": 0,
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.yaml").write_text(yaml.safe_dump(recipe))
    run = CliRunner()
    commands = (
        ["train", str(tmp_path / "mine" / "train.yaml"), "--device", "cpu"],
        ["fit", str(tmp_path / "mine"), "--policy", "msdnet", "--device", "cpu"],
    )
    for command in commands:
        done = run.invoke(app, command)
        assert done.exit_code == 0, done.stderr
    report = json.loads((tmp_path / "mine" / "training.json").read_text())
    assert len(report["gflops_per_exit"]) == len(report["test_figures_per_exit"])
    done = run.invoke(
        app,
        [
            "replay",
            f"images:{tmp_path / 'pictures'}",
            "--pipeline",
            str(tmp_path / "mine"),
            "--budget",
            "fraction=0.9",
            "--json",
        ],
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["against_truth"]["accuracy"] > 0.9

    red = tmp_path / "pictures" / "red"
    for i in range(5):
        shutil.copy(red / "0.png", red / f"added-{i}.png")
    said = ("trained on other pictures", "holds other training pictures of folder than mine")
    for command, words in zip(commands, said, strict=True):
        done = run.invoke(app, command)
        assert done.exit_code == 2
        assert words in done.stderr
    for i in range(5):
        (red / f"added-{i}.png").unlink()
    assert run.invoke(app, commands[1]).exit_code == 0
