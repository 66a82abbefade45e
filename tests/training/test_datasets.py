from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from streamexit.errors import DataError
from streamexit.testing import TOY_LABELS
from streamexit.training.classification_data import read_sprite_archive
from streamexit.training.datasets import load_part
from streamexit.training.labelled import LabelledImages

MakeData = Callable[..., LabelledImages]
MakeArchive = Callable[..., Path]


def members(data: LabelledImages) -> set[tuple[bytes, int]]:
    """Pictures with their labels, for set operations."""
    return {(i.tobytes(), int(k)) for i, k in zip(data.images, data.labels, strict=True)}


def test_archive_gives_the_pictures_back_in_order(
    tmp_path: Path, make_coloured: MakeData, make_archive: MakeArchive
) -> None:
    """Pictures, their order, colours and labels survive the sprite sheets."""
    written = make_coloured(2000, size=6, seed=4)
    data = read_sprite_archive(make_archive(tmp_path / "a.zip", written))
    np.testing.assert_array_equal(data.images, written.images)
    np.testing.assert_array_equal(data.labels, written.labels)
    assert data.labels.dtype == np.int64
    assert data.classes == TOY_LABELS


def sheet(rows: int, columns: int) -> bytes:
    """An encoded black sheet."""
    return cv2.imencode(".png", np.zeros((rows, columns, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    "replace",
    [
        {"labels.npy": None},
        {"labels.npy": b"no array"},
        {"labels.npy": b""},
        {"classes.txt": None},
        {"classes.txt": b"\xff\xfe"},
        {"classes.txt": b"ant bee"},
        {"sheet_000.png": b"no picture"},
        {"sheet_000.png": b""},
        {"sheet_000.png": None},
        {"sheet_000.png": sheet(151, 241)},
        {"sheet_001.png": sheet(250, 400)},
    ],
    ids=lambda replace: " ".join(f"{k} {v and v[:8]!r}" for k, v in replace.items()),
)
def test_malformed_archive_is_refused(
    tmp_path: Path, make_coloured: MakeData, make_archive: MakeArchive, replace: dict[str, Any]
) -> None:
    """An archive with a missing or wrong member is refused, and the archive is named."""
    data = make_coloured(1000, size=6, seed=4)
    archive = make_archive(tmp_path / "odd.zip", data, replace=replace)
    with pytest.raises(DataError, match=r"odd\.zip"):
        read_sprite_archive(archive)


def test_archive_with_too_few_labels_is_refused(
    tmp_path: Path, make_coloured: MakeData, make_archive: MakeArchive
) -> None:
    """Every picture needs a label."""
    data = make_coloured(1000, size=6, seed=4)
    with pytest.raises(DataError, match=r"1000.*999"):
        read_sprite_archive(make_archive(tmp_path / "a.zip", data, labels=data.labels[:-1]))


def test_something_else_is_no_archive(tmp_path: Path) -> None:
    """A file that is no zip is refused."""
    (tmp_path / "a.zip").write_bytes(b"hello")
    with pytest.raises(DataError, match="not an archive of sprite sheets"):
        read_sprite_archive(tmp_path / "a.zip")


def test_parts_are_disjoint_and_stable(archives: Path) -> None:
    """Train and calibration share no picture, make up the whole set, and never change."""
    train = load_part("cifar10", archives, "train", calibration_size=300)
    calibration = load_part("cifar10", archives, "calibration", calibration_size=300)
    again = load_part("cifar10", archives, "calibration", calibration_size=300)
    whole = read_sprite_archive(archives / "cifar10_train.zip")
    assert (len(train.labels), len(calibration.labels)) == (1700, 300)
    assert not members(train) & members(calibration)
    assert members(train) | members(calibration) == members(whole)
    np.testing.assert_array_equal(calibration.images, again.images)
    share = np.bincount(calibration.labels, minlength=4) / 300
    assert share.min() > 0.15  # drawn from everywhere, not cut from one end


def test_test_part_is_the_test_archive(archives: Path) -> None:
    """The test part is the whole test set whatever the calibration size."""
    test = load_part("cifar10", archives, "test", calibration_size=300)
    assert members(test) == members(read_sprite_archive(archives / "cifar10_test.zip"))


@pytest.mark.parametrize("size", [0, -1, 2000, 9999])
def test_split_that_leaves_nothing_is_refused(archives: Path, size: int) -> None:
    """A calibration size that leaves no picture for one of the parts names what is possible."""
    with pytest.raises(DataError, match=rf"calibration_size: {size} must .*1999"):
        load_part("cifar10", archives, "train", calibration_size=size)


def test_unknown_or_absent_data_set_is_refused(tmp_path: Path) -> None:
    """An unknown name lists the known ones; an empty folder is told how to name another."""
    with pytest.raises(DataError, match="'cifar11' is unknown; known are cifar10"):
        load_part("cifar11", tmp_path, "train", calibration_size=1)
    with pytest.raises(DataError, match=r"holds neither cifar10_train\.zip.*--data"):
        load_part("cifar10", tmp_path, "train", calibration_size=1)


@pytest.mark.slow
def test_real_cifar10_has_its_known_sizes_and_a_disjoint_split(data: Path) -> None:
    """CIFAR-10 is 50,000 and 10,000 pictures of ten classes; 3,000 are kept away from training."""
    train = load_part("cifar10", data, "train", calibration_size=3000)
    calibration = load_part("cifar10", data, "calibration", calibration_size=3000)
    assert train.images.shape == (47_000, 32, 32, 3)
    assert calibration.images.shape == (3000, 32, 32, 3)
    assert not members(train) & members(calibration)
    both = np.concatenate([train.labels, calibration.labels])
    assert np.bincount(both).tolist() == [5000] * 10
    assert " ".join(train.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    test = load_part("cifar10", data, "test", calibration_size=3000)
    assert np.bincount(test.labels).tolist() == [1000] * 10
