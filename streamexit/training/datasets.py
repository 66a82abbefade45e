"""The data sets by name, each in three parts that no two steps share.

"train" teaches the network, "calibration" fits the scheduler, "test" is only ever measured on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamexit.errors import DataError
from streamexit.preprocessing import Preprocessing
from streamexit.training.classification_data import load_cifar10, load_cifar100, load_imagenet
from streamexit.training.folder_data import load_folder
from streamexit.training.labelled import LabelledImages, fixed_order
from streamexit.training.segmentation_data import load_camvid, load_cityscapes

Part = Literal["train", "calibration", "test"]

WITHOUT_CALIBRATION: dict[str, Callable[[Path, bool], LabelledImages]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "imagenet": load_imagenet,
    "cityscapes": load_cityscapes,
}
"""Name -> loader of (root, whether the test set is meant); calibration is cut from training."""

IN_THREE_PARTS: dict[str, Callable[[Path, Part], LabelledImages]] = {"camvid": load_camvid}
"""Name -> loader of (root, part), for sets that bring a part of their own for calibration."""

OF_ANY_SIZE: dict[str, Callable[[Path, bool, Preprocessing], LabelledImages]] = {
    "folder": load_folder
}
"""Name -> loader of (root, whether the test set is meant, what the network wants)."""

IN_TIME_ORDER = ("camvid",)
"""Sets whose pictures are frames of recordings, each like the one before it."""

DATASETS = (*WITHOUT_CALIBRATION, *IN_THREE_PARTS, *OF_ANY_SIZE)


def load_part(
    name: str,
    root: Path,
    part: Part,
    *,
    calibration_size: int | None,
    preprocessing: Preprocessing | None = None,
) -> LabelledImages:
    """Load one part of a data set.

    Where the calibration part is cut from the training set, that is done by a fixed permutation, so
    that the same `calibration_size` always gives the same, disjoint parts. Pictures that stay on disk
    were written in such an order; both parts of them are views, and nothing is copied.

    Args:
        name: One of `DATASETS`.
        root: Folder that holds the files.
        part: Which part.
        calibration_size: How many training pictures are set aside; None for sets in three parts.
        preprocessing: Of the network, for data sets that are brought to any size.

    Raises:
        DataError: Unknown name, missing files, or a split that leaves nothing to train on.
    """
    if name in IN_THREE_PARTS:
        if calibration_size is not None:
            raise DataError(
                f"data.calibration_size: {calibration_size} cannot be cut from {name}, which has a "
                "part for calibration; leave the field out"
            )
        pictures = IN_THREE_PARTS[name](root, part)
        return replace(pictures, trained_on=pictures.digest() if part == "train" else None)
    if name in OF_ANY_SIZE:
        assert preprocessing, name
        everything = OF_ANY_SIZE[name](root, part == "test", preprocessing)
    elif name in WITHOUT_CALIBRATION:
        everything = WITHOUT_CALIBRATION[name](root, part == "test")
    else:
        raise DataError(f"data.dataset: {name!r} is unknown; known are {', '.join(DATASETS)}")
    return everything if part == "test" else _cut(everything, part, name, calibration_size)


def _cut(
    everything: LabelledImages, part: Part, name: str, calibration_size: int | None
) -> LabelledImages:
    size = calibration_size or 0
    if not 0 < size < len(everything.labels):
        raise DataError(
            f"calibration_size: {calibration_size} must lie between 1 and "
            f"{len(everything.labels) - 1}, one less than the pictures of {name}"
        )
    first: NDArray[np.int64] | slice = slice(size)
    rest: NDArray[np.int64] | slice = slice(size, None)
    if not isinstance(everything.images, np.memmap):
        order = fixed_order(len(everything.labels))
        first, rest = np.sort(order[:size]), np.sort(order[size:])
    chosen = everything.subset(first if part == "calibration" else rest)
    return replace(chosen, trained_on=everything.digest(rest))
