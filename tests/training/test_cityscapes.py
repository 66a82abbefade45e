from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from streamexit.calibration.make import train_pipeline
from streamexit.errors import DataError
from streamexit.models.pipeline import load_pipeline
from streamexit.prediction import VOID
from streamexit.training.datasets import load_part
from streamexit.training.decoded import CACHE
from streamexit.training.segmentation_data import TRAIN_CLASSES, load_cityscapes
from tests.conftest import ROOT

CITIES = {"train": ("aachen", "ulm"), "val": ("munster",), "test": ("bonn",)}


def write(file: Path, image: NDArray[np.uint8]) -> None:
    """As PNG; three channels are RGB."""
    file.parent.mkdir(parents=True, exist_ok=True)
    flat = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    file.write_bytes(cv2.imencode(".png", flat)[1].tobytes())


def files(root: Path, part: str, city: str, frame: int) -> tuple[Path, Path]:
    """Where a picture and its labels lie."""
    name = f"{city}_000000_{frame:06d}"
    return (
        root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png",
        root / "gtFine" / part / city / f"{name}_gtFine_labelIds.png",
    )


def label_ids() -> NDArray[np.uint8]:
    """[32, 64]: 8 x 8 pixels per label id, 0 to 31, row by row."""
    return np.kron(np.arange(32, dtype=np.uint8).reshape(4, 8), np.ones((8, 8), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two frames in each city, 64 x 32 pixels; a picture's red is its label id times 8."""
    for part, cities in CITIES.items():
        for city in cities:
            for frame in (1, 2):
                picture, labels = files(tmp_path, part, city, frame)
                rgb = np.zeros((32, 64, 3), np.uint8)
                rgb[..., 0] = label_ids() * 8
                write(picture, rgb)
                write(labels, label_ids())
                polygons = labels.name.replace("labelIds.png", "instanceIds.png")
                write(labels.with_name(polygons), label_ids())
    return tmp_path


def test_pairs_are_found_in_the_data_sets_own_layout(root: Path) -> None:
    """Every picture of every city, with its own labels; `val` is the test part."""
    train = load_cityscapes(root, test=False, size=(64, 32))
    assert train.images.shape == (4, 32, 64, 3)
    assert train.labels.shape == (4, 32, 64)
    assert len(load_cityscapes(root, test=True, size=(64, 32)).labels) == 2
    assert len(train.classes) == 19
    assert (train.classes[0], train.classes[13], train.classes[18]) == ("road", "car", "bicycle")


def test_label_ids_become_train_ids(root: Path) -> None:
    """The benchmark's 19 classes get 0 to 18, every other label id and every odd byte 255."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for frame in (1, 2):
        picture, labels = files(root, "val", "munster", frame)
        write(labels, every)
        write(picture, np.zeros((16, 16, 3), np.uint8))
    train_ids = load_cityscapes(root, test=True, size=(16, 16)).labels[0]
    expected = dict(enumerate([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]))
    found = {int(t): int(i) for t, i in zip(train_ids.ravel(), every.ravel(), strict=True)}
    assert {t: i for t, i in found.items() if t != VOID} == expected
    assert (train_ids == VOID).sum() == 256 - 19


def test_picture_and_labels_stay_on_top_of_each_other(root: Path) -> None:
    """At half the size every pixel still has its own label, and no label is made up in between."""
    full = load_cityscapes(root, test=False, size=(64, 32))
    half = load_cityscapes(root, test=False, size=(32, 16))
    assert half.images.dtype == half.labels.dtype == np.uint8
    np.testing.assert_array_equal(half.labels, full.labels[:, ::2, ::2])
    inner = np.ix_([0], [1, 2, 5, 6, 9, 10, 13, 14], [1, 2, 5, 6, 9, 10, 13, 14, 17, 18])
    difference = half.images[inner].astype(int) - full.images[:, ::2, ::2][inner].astype(int)
    assert np.abs(difference).max() <= 2
    assert half.images[..., 0].max() > 200
    assert half.images[..., 2].max() <= 2


def test_parts_are_disjoint_views(root: Path) -> None:
    """The calibration part is cut from the training pictures; nothing is copied from disk."""
    for i, city in enumerate(("aachen", "ulm")):
        for frame in (1, 2):
            picture, _ = files(root, "train", city, frame)
            write(picture, np.full((32, 64, 3), 50 * (2 * i + frame), np.uint8))
    parts = [
        load_part("cityscapes", root, part, calibration_size=1) for part in ("train", "calibration")
    ]
    assert [len(part.labels) for part in parts] == [3, 1]
    assert all(isinstance(part.images, np.memmap) for part in parts)
    seen = sorted(int(p[0, 0, 0]) for part in parts for p in part.images)
    assert seen == [50, 100, 150, 200]


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("leftImg8bit", r"leftImg8bit/val is missing; .*/val/<city>/\*_leftImg8bit\.png.*--data"),
        ("gtFine/val", r"gtFine/val is missing; .*<city>/\*_gtFine_labelIds\.png"),
        ("leftImg8bit/val/munster", r"no pictures; expected .*_leftImg8bit\.png"),
        ("gtFine/val/munster", r"has no labels; expected .*munster_000000_000001_gtFine_labelIds"),
    ],
)
def test_missing_folders_are_named(root: Path, missing: str, expected: str) -> None:
    """What is missing is named, together with the layout that is expected."""
    shutil.rmtree(root / missing)
    with pytest.raises(DataError, match=expected):
        load_cityscapes(root, test=True)


def test_damaged_pair_is_refused(root: Path) -> None:
    """Labels of another size, of colours, or no picture at all are named; nothing stays behind."""
    picture, labels = files(root, "val", "munster", 1)

    def refused(expected: str) -> None:
        with pytest.raises(DataError, match=expected):
            load_cityscapes(root, test=True, size=(32, 16))
        assert list((root / CACHE).iterdir()) == []

    write(labels, label_ids()[:-1])
    refused(rf"{labels.name}: is \(31, 64\), but .*\(32, 64\)")
    write(labels, np.zeros((32, 64, 3), np.uint8))
    refused(rf"{labels.name}: .*one byte per pixel")
    labels.write_bytes(b"")
    refused(rf"{labels.name} is not a picture")
    write(labels, label_ids())
    picture.write_bytes(b"no picture")
    refused(rf"{picture.name} is not a picture")


def test_small_hrnet_is_trained_on_it(root: Path) -> None:
    """The recipe that is shipped, with a small network and one epoch, becomes a pipeline."""
    recipe = yaml.safe_load((ROOT / "pipelines" / "cityscapes-hrnet" / "train.yaml").read_text())
    recipe["network"].update(width=2, modules=[1, 1, 1], blocks=1)
    recipe["data"] = {"dataset": "cityscapes", "root": str(root), "calibration_size": 1}
    recipe["optimiser"].update(epochs=1, batch_size=3, warmup_epochs=0)
    recipe["precision"] = "float32"  # processors without bf16 would take ten times as long
    folder = root / "pipeline"
    folder.mkdir()
    (folder / "train.yaml").write_text(yaml.safe_dump(recipe))
    report = train_pipeline(
        folder / "train.yaml", data=None, device="cpu", epochs=None, on_epoch=lambda _: None
    )
    assert (report["train_pictures"], report["test_pictures"]) == (3, 2)
    assert len(report["test_figures_per_exit"]) == 4
    assert all(0 <= figures["miou"] <= 1 for figures in report["test_figures_per_exit"])
    assert load_pipeline(folder).labels == tuple(TRAIN_CLASSES.values())
