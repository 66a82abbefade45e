from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.prediction import VOID
from streamexit.training.segmentation_data import load_cityscapes

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
    """Each part has its own pictures, sorted, each with the labels of the same name."""
    train = load_cityscapes(root, "train")
    assert len(train) == 4
    assert train.files[0] == files(root, "train", "aachen", 1)
    assert train.files[3] == files(root, "train", "ulm", 2)
    assert [len(load_cityscapes(root, part)) for part in ("val", "test")] == [2, 2]
    assert len(train.classes) == 19
    assert (train.classes[0], train.classes[13], train.classes[18]) == ("road", "car", "bicycle")


def test_label_ids_become_train_ids(root: Path) -> None:
    """The benchmark's 19 classes get 0 to 18, every other label id and every odd byte 255."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture, labels = files(root, "val", "munster", 1)
    write(labels, every)
    write(picture, np.zeros((16, 16, 3), np.uint8))
    _, train_ids = load_cityscapes(root, "val").read(0, (16, 16))
    expected = dict(enumerate([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]))
    found = {int(t): int(i) for t, i in zip(train_ids.ravel(), every.ravel(), strict=True)}
    assert {t: i for t, i in found.items() if t != VOID} == expected
    assert (train_ids == VOID).sum() == 256 - 19


def test_picture_and_labels_stay_on_top_of_each_other(root: Path) -> None:
    """At half the size every pixel still has its own label, and no label is made up in between."""
    pairs = load_cityscapes(root, "train")
    full_picture, full_ids = pairs.read(0, (64, 32))
    picture, train_ids = pairs.read(0, (32, 16))
    assert (picture.shape, train_ids.shape) == ((16, 32, 3), (16, 32))
    assert picture.dtype == train_ids.dtype == np.uint8
    np.testing.assert_array_equal(train_ids, full_ids[::2, ::2])
    inner = np.ix_([1, 2, 5, 6, 9, 10, 13, 14], [1, 2, 5, 6, 9, 10, 13, 14, 17, 18])
    difference = picture[inner].astype(int) - full_picture[::2, ::2][inner].astype(int)
    assert np.abs(difference).max() <= 2
    assert picture[..., 0].max() > 200
    assert picture[..., 2].max() <= 2


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("leftImg8bit", r"leftImg8bit/val is missing; .*/val/<city>/\*_leftImg8bit\.png"),
        ("gtFine/val", r"gtFine/val is missing; .*<city>/\*_gtFine_labelIds\.png"),
        ("leftImg8bit/val/munster", r"no pictures; expected .*_leftImg8bit\.png"),
        ("gtFine/val/munster", r"has no labels; expected .*munster_000000_000001_gtFine_labelIds"),
    ],
)
def test_missing_folders_are_named(root: Path, missing: str, expected: str) -> None:
    """What is missing is named, together with the layout that is expected."""
    shutil.rmtree(root / missing)
    with pytest.raises(DataError, match=expected):
        load_cityscapes(root, "val")


def test_damaged_pair_is_refused(root: Path) -> None:
    """Labels of another size, of colours, or no picture at all are named."""
    pairs = load_cityscapes(root, "train")
    picture, labels = pairs.files[0]
    write(labels, label_ids()[:-1])
    with pytest.raises(DataError, match=rf"{labels.name}: is \(31, 64\), but .*\(32, 64\)"):
        pairs.read(0, (32, 16))
    write(labels, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(DataError, match=rf"{labels.name}: .*one byte per pixel"):
        pairs.read(0, (32, 16))
    labels.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{labels.name} is not a picture"):
        pairs.read(0, (32, 16))
    picture.unlink()
    with pytest.raises(DataError, match=rf"{picture.name}: cannot be read"):
        pairs.read(0, (32, 16))
