"""One decoded picture, ready for the network, with where and when it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from streamexit.preprocessing import Image

if TYPE_CHECKING:  # a decoder's own process does without it
    from torch import Tensor

Decoder = Literal["software", "nvdec"]


@dataclass(frozen=True, slots=True)
class Media:
    """What a source sends, as far as it says.

    Attributes:
        codec: FFmpeg's name of it.
        width: Of the picture as it is to be shown, in pixels: turned, and with square pixels.
        height: Likewise.
        rate: Frames per second that the source declares; None if it does not.
        interlaced: Whether pictures are made of two fields; they are not taken apart.
    """

    codec: str
    width: int
    height: int
    rate: float | None = None
    interlaced: bool = False


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
        epoch: How often the source was reconnected, or its clock set anew, before this frame.
        dropped_before: Frames lost between the previous frame and this one.
        size: Width and height of the picture before it was scaled, in pixels, where known.
        decoder: What decoded it.
        media: What the source sends, where known.
        expires_at: Monotonic time in seconds from which an answer is too old to be of use.
        shown: The picture for people, uint8 [h, w, 3] RGB, if one was asked for: as it was before it was
            scaled for the network, or somewhat smaller, or what the network sees.
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
    media: Media | None = None
    expires_at: float = math.inf
    shown: Image | None = None


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
