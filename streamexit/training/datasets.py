"""Labelled picture sets, split into three parts that no two steps share.

"train" teaches the network, "calibration" fits the scheduler, "test" is only ever measured on.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from streamexit.errors import DataError

Part = Literal["train", "calibration", "test"]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures of one size with their classes, in memory.

    Attributes:
        images: uint8 [N, H, W, 3], RGB.
        labels: int64 [N], indices into `classes`.
        classes: Names, in index order.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise DataError(f"{self.images.shape = } does not match {self.labels.shape = }")

    def subset(self, rows: NDArray[np.int64]) -> LabelledImages:
        """The pictures at `rows`, in that order."""
        return LabelledImages(self.images[rows], self.labels[rows], self.classes)


def load_part(name: str, root: Path, part: Part, *, calibration_size: int) -> LabelledImages:
    """Load one part of a data set.

    The calibration part is cut from the training set by a fixed permutation, so that the same
    `calibration_size` always gives the same, disjoint parts.

    Args:
        name: A key of `DATASETS`.
        root: Folder that holds the files.
        part: Which part.
        calibration_size: How many training pictures are set aside.

    Raises:
        DataError: Unknown name, missing files, or a split that leaves nothing to train on.
    """
    if name not in DATASETS:
        raise DataError(f"data.dataset: {name!r} is unknown; known are {', '.join(DATASETS)}")
    everything = DATASETS[name](root, part == "test")
    if part == "test":
        return everything
    if not 0 < calibration_size < len(everything.labels):
        raise DataError(
            f"data.calibration_size: {calibration_size} must lie between 1 and "
            f"{len(everything.labels) - 1}, one less than the pictures of {name}"
        )
    order = np.random.default_rng(0).permutation(len(everything.labels))
    rows = order[:calibration_size] if part == "calibration" else order[calibration_size:]
    return everything.subset(np.sort(rows))


def load_cifar10(root: Path, test: bool) -> LabelledImages:
    """CIFAR-10 from `cifar10_{train,test}.zip` (sprite sheets) or torchvision's own folder."""
    archive = root / f"cifar10_{'test' if test else 'train'}.zip"
    if archive.is_file():
        return read_sprite_archive(archive)
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10

        data = CIFAR10(str(root), train=not test, download=False)
        return LabelledImages(data.data, np.asarray(data.targets, np.int64), tuple(data.classes))
    raise DataError(
        f"data.root: {root} holds neither {archive.name} nor cifar-10-batches-py/; "
        "name the folder that does with --data"
    )


def read_sprite_archive(archive: Path, *, rows: int = 25, columns: int = 40) -> LabelledImages:
    """Read a zip of sprite sheets (`rows` x `columns` pictures each), labels.npy, classes.txt."""
    try:
        with zipfile.ZipFile(archive) as z:
            sheets = sorted(n for n in z.namelist() if n.endswith((".webp", ".jpg", ".png")))
            images = [_cut_sheet(z.read(name), rows, columns) for name in sheets]
            labels = np.load(io.BytesIO(z.read("labels.npy"))).astype(np.int64)
            classes = tuple(z.read("classes.txt").decode().split())
        everything = LabelledImages(np.concatenate(images), labels, classes)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, ValueError, cv2.error) as error:
        raise DataError(f"{archive} is not an archive of sprite sheets: {error}") from error
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{archive}: labels go beyond the {len(classes)} classes of classes.txt")
    return everything


def _cut_sheet(encoded: bytes, rows: int, columns: int) -> NDArray[np.uint8]:
    sheet = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if sheet is None:
        raise OSError("a sheet is not a picture")
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    cells = sheet.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(cells.reshape(-1, height, width, 3), dtype=np.uint8)


DATASETS: dict[str, Callable[[Path, bool], LabelledImages]] = {"cifar10": load_cifar10}
"""Name -> loader of (root, whether the test set is meant)."""
