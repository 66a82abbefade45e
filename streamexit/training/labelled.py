"""Pictures with labels: what training, calibration and testing all work on."""

from __future__ import annotations

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
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            raise DataError(f"{self.images.shape = } does not match {self.labels.shape = }")

    def subset(self, rows: NDArray[np.int64] | slice) -> LabelledImages:
        """The pictures at `rows`, in that order: a copy for an array of rows, a view for a slice."""
        return LabelledImages(self.images[rows], self.labels[rows], self.classes)


def fixed_order(count: int) -> NDArray[np.int64]:
    """The permutation by which parts are cut, always the same for the same count."""
    return np.random.default_rng(0).permutation(count)
