"""Pictures with labels: what training, calibration and testing all work on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamexit.errors import DataError


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Pictures of one size with their labels, in memory or mapped into it from a file.

    Attributes:
        images: uint8 [N, H, W, 3], RGB. A `numpy.memmap` says two things: its pictures stay on
            disk until they are looked at, and their order was drawn when they were written.
        labels: Indices into `classes`: int64 [N], one per picture, or uint8 [N, H, W], one per
            pixel, 255 where there is none.
        classes: Names, in index order.
        names: Of the files, relative to the data set; empty where pictures have none.
        trained_on: `digest` of the training part that goes with this one, as far as it is known.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()
    trained_on: str | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise DataError(f"{self.images.shape = } does not match {self.labels.shape = }")

    def subset(self, rows: NDArray[np.int64] | slice) -> LabelledImages:
        """The pictures at `rows`, in that order: a copy for an array of rows, a view for a slice."""
        names = tuple(np.asarray(self.names)[rows].tolist()) if self.names else ()
        return LabelledImages(self.images[rows], self.labels[rows], self.classes, names)

    def digest(self, rows: NDArray[np.int64] | slice = slice(None)) -> str:
        """Which pictures these are: of their names, and their labels where each has one."""
        labels = self.labels[rows]
        names = np.asarray(self.names)[rows].tolist() if self.names else []
        told = hashlib.sha256("\n".join([str(len(labels)), *self.classes, *names]).encode())
        if labels.ndim == 1:
            told.update(labels.astype("<i8").tobytes())
        return told.hexdigest()[:16]


def fixed_order(count: int) -> NDArray[np.int64]:
    """The permutation by which parts are cut, always the same for the same count."""
    return np.random.default_rng(0).permutation(count)
