"""One decoded picture, ready for the network, with where and when it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from streamexit.preprocessing import Image

Decoder = Literal["software", "nvdec"]


@dataclass(slots=True)
class FrameInfo:
    """Everything about a frame but its pixels; this part travels on to the result.

    Attributes:
        stream_id: Which stream.
        index: Position among the frames that the source yielded, from 0; never goes back.
        pts_seconds: Presentation time on the stream's own, strictly rising time line.
        captured_at: Unix time in seconds when the frame was taken, as far as can be told.
        label: What is true of it, for sources that know: a class index, or a map of them, uint8
            [H, W], 255 where there is none.
        epoch: How often the source was reconnected before this frame.
        dropped_before: Frames lost between the previous frame and this one.
        size: Width and height of the picture before it was scaled, in pixels, where known.
        decoder: What decoded it.
    """

    stream_id: str
    index: int
    pts_seconds: float
    captured_at: float
    label: int | NDArray[np.uint8] | None = None
    epoch: int = 0
    dropped_before: int = 0
    size: tuple[int, int] | None = None
    decoder: Decoder = "software"


@dataclass(slots=True)
class Frame:
    """A frame on its way to the network.

    Attributes:
        info: See `FrameInfo`.
        image: uint8 [H, W, 3], RGB, at the network's input size; a tensor on the GPU if that
            decoded it.
    """

    info: FrameInfo
    image: Image | Tensor

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return (
            f"<Frame {self.info.stream_id}#{self.info.index} "
            f"pts={self.info.pts_seconds:.3f}s {width}x{height}>"
        )
