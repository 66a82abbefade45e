"""A seeded generator of moving shapes over noise: a source that needs no file and no camera."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamexit.preprocessing import Preprocessing
from streamexit.sources.source import DropReport, Picture, Watch


class SyntheticSource:
    """A coloured square that drifts over a noisy background; a new scene every `scene` frames.

    Args:
        preprocessing: Of the pipeline; gives the size.
        seed: Two sources with the same arguments yield the same pictures.
        frames: How many.
        rate: Per second, for the timestamps.
    """

    live = False
    SCENE = 60

    def __init__(
        self, preprocessing: Preprocessing, *, seed: int = 0, frames: int = 300, rate: float = 25.0
    ) -> None:
        self._height = preprocessing.height
        self._width = preprocessing.width
        self._seed = seed
        self._frames = frames
        self._rate = rate

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        random = np.random.default_rng(self._seed)
        size = max(2, min(self._height, self._width) // 3)
        for index in range(self._frames):
            if index % self.SCENE == 0:
                background, colour = random.integers(0, 256, (2, 3))
                noise = float(random.uniform(4, 40))
                place, speed = random.random(2), random.uniform(-0.02, 0.02, 2)
            place = (place + speed) % 1
            picture = background + random.normal(0, noise, (self._height, self._width, 3))
            top = int(place[0] * (self._height - size))
            left = int(place[1] * (self._width - size))
            picture[top : top + size, left : left + size] += colour - background
            yield Picture(picture.clip(0, 255).astype(np.uint8), index / self._rate)
