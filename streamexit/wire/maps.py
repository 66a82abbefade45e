"""What of a segmentation map is sent: class shares of regions, and the map itself.

H, W: rows and columns of the map.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from streamexit.prediction import VOID
from streamexit.preprocessing import Image, Preprocessing
from streamexit.wire.messages import ClassRuns, ClassShare, Mask, Region

Polygon = Sequence[tuple[float, float]]
"""Corners (x, y) as shares of the frame's width and height."""


@dataclass(frozen=True)
class MaskOptions:
    """How maps are sent.

    Attributes:
        encoding: "png", a grey picture of class indices; "rle", COCO's uncompressed run lengths, one
            list per class.
        resolution: "network", as large as the network's input; "frame", as large as the frame.
        every_seconds: At most one in so many seconds of the stream; 0 sends all.
        max_bytes: A larger one is left out, and the message says so.
    """

    encoding: Literal["png", "rle"] = "png"
    resolution: Literal["network", "frame"] = "network"
    every_seconds: float = 0.0
    max_bytes: int = 100_000


@dataclass
class MapEncoder:
    """Makes the optional parts of a stream's segmentation answers.

    Args:
        labels: Class names in index order.
        preprocessing: How frames became the network's input.
        regions: Name -> polygon.
        mask: None sends no maps.
    """

    labels: Sequence[str]
    preprocessing: Preprocessing
    regions: Mapping[str, Polygon] = field(default_factory=dict)
    mask: MaskOptions | None = None
    _drawn_for: tuple[int, int] | None = None
    _inside: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    _sent_at: float | None = None

    def regions_of(self, map_: Image, frame_size: tuple[int, int] | None) -> list[Region]:
        """Class shares inside each polygon, [H, W] as the network sees it."""
        size = frame_size or (map_.shape[1], map_.shape[0])
        if size != self._drawn_for:
            self._drawn_for, self._inside = size, self._draw(map_, size)
        found = []
        for name, inside in self._inside.items():
            counts = np.bincount(map_[inside], minlength=VOID + 1)[: len(self.labels)]
            shares = counts / max(counts.sum(), 1)
            order = np.argsort(-shares, kind="stable")
            content = [
                ClassShare(label=self.labels[k], share=round(float(shares[k]), 6))
                for k in order
                if shares[k] > 0
            ]
            found.append(Region(name=name, shares=content))
        return found

    def mask_of(
        self, map_: Image, frame_size: tuple[int, int] | None, at: float
    ) -> tuple[Mask | None, str | None]:
        """The map, if it is due, and why it was left out, if it was due and was.

        Args:
            map_: [H, W].
            frame_size: Width and height of the frame.
            at: Time on the stream's own line, in seconds.
        """
        options = self.mask
        if options is None or (
            self._sent_at is not None and 0 <= at - self._sent_at < options.every_seconds
        ):
            return None, None
        self._sent_at = at
        if options.resolution == "frame" and frame_size is not None:
            map_ = self.preprocessing.restore(map_, *frame_size, fill=VOID)
        mask = _as_png(map_) if options.encoding == "png" else _as_runs(map_, self.labels)
        size = len(mask.model_dump_json())
        if size > options.max_bytes:
            return None, f"{size} bytes are more than the {options.max_bytes} allowed"
        return mask, None

    def _draw(self, map_: Image, frame_size: tuple[int, int]) -> dict[str, NDArray[np.bool_]]:
        """Which pixels of the map lie inside each polygon."""
        scaled = self.preprocessing.scaled_size(*frame_size)
        overlap = self.preprocessing.overlap(*frame_size)
        drawn = {}
        for name, corners in self.regions.items():
            inside = np.zeros(map_.shape, bool)
            inside[overlap.of_input] = _inside(corners, *scaled)[overlap.of_picture]
            drawn[name] = inside
        return drawn


def _inside(corners: Polygon, width: int, height: int) -> NDArray[np.bool_]:
    """Pixels [height, width] whose centre lies inside a polygon, by the even-odd rule."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5)[:, None] / height
    inside = np.zeros((height, width), bool)
    for (x1, y1), (x2, y2) in pairwise([*corners, corners[0]]):
        if y1 != y2:
            crossed = (y1 > y) != (y2 > y)
            inside ^= crossed & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def _as_png(map_: Image) -> Mask:
    _, encoded = cv2.imencode(".png", map_)
    data = base64.b64encode(encoded.tobytes()).decode()
    return Mask(encoding="png", width=map_.shape[1], height=map_.shape[0], png=data)


def _as_runs(map_: Image, labels: Sequence[str]) -> Mask:
    """COCO's run lengths: down the columns, beginning with the pixels that are not of the class."""
    flat = map_.ravel(order="F")
    runs = []
    for k in np.unique(flat[flat != VOID]):
        of_class = flat == k
        changes = np.flatnonzero(np.diff(of_class)) + 1
        lengths = np.diff([0, *changes, len(flat)]).tolist()
        counts = [0, *lengths] if of_class[0] else lengths
        runs.append(ClassRuns(label=labels[k], counts=counts))
    return Mask(encoding="rle", width=map_.shape[1], height=map_.shape[0], rle=runs)
