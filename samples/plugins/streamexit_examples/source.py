"""A source: pictures in a NumPy file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from streamexit import InputConverter, Picture, Preprocessing, Watch


class ArraySource:
    """`npy:FILE`, an array uint8 [N, H, W, 3] RGB."""

    live = False  # a camera says True: it is opened again for ever, and drops frames rather than lagging

    def __init__(self, location: str, *, base: Path, preprocessing: Preprocessing, rate: float):
        self._frames = np.load(base / location, mmap_mode="r")
        if self._frames.dtype != np.uint8 or self._frames.ndim != 4:
            raise ValueError(f"{self._frames.shape} {self._frames.dtype} is not uint8 [N, H, W, 3]")
        self._convert = InputConverter(preprocessing)
        self._rate = rate

    def pictures(self, report: object, watch: Watch | None = None) -> Iterator[Picture]:
        """From the beginning; `report("decode_error")` would count a picture that is lost."""
        for i, frame in enumerate(self._frames):
            yield Picture(self._convert.from_array(np.array(frame)), pts_seconds=i / self._rate)
