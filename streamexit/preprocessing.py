"""From a decoded picture to the network's input: declared once per pipeline, used everywhere.

Training, calibration and the running node all go through `Preprocessing`, so the network never
sees pixels that were prepared another way. Resizing happens here, on uint8; normalisation is the
first operation of the network itself (`models.network.Normalise`), so that bytes travel, not floats.

H, W: rows and columns of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""

Triple = tuple[float, float, float]

FILTER = int(Interpolation.AREA) | int(Interpolation.FULL_CHR_H_INT)
"""Area averaging, chroma too: by default swscale halves the chroma of what it scales, and a small
picture would lose its fine colours when it comes from a video but not when it comes from a file."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes the network's input.

    Attributes:
        width: Columns of the input, in pixels.
        height: Rows of the input, in pixels.
        mean: Per channel (RGB), in [0, 1]; subtracted inside the network.
        std: Per channel (RGB), in [0, 1]; divided by inside the network.
        fit: "stretch" scales both sides on their own; "crop" keeps the aspect ratio and cuts
            what sticks out on the longer side, centred.
    """

    width: int
    height: int
    mean: Triple
    std: Triple
    fit: Literal["stretch", "crop"] = "stretch"

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) that a `width` x `height` picture is scaled to before the cut."""
        if self.fit == "stretch":
            return self.width, self.height
        scale = max(self.width / width, self.height / height)
        return max(self.width, round(width * scale)), max(self.height, round(height * scale))


class InputConverter:
    """Colour conversion and resize in one step of libswscale; one instance per stream.

    No full-resolution RGB copy is made: FFmpeg converts and scales in the same pass.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> Image:
        """Return `picture` as the network's uint8 [H, W, 3] input."""
        p = self._preprocessing
        width, height = p.scaled_size(picture.width, picture.height)
        small = self._reformatter.reformat(
            picture, width=width, height=height, format="rgb24", interpolation=FILTER, threads=1
        ).to_ndarray()
        top, left = (height - p.height) // 2, (width - p.width) // 2
        return np.ascontiguousarray(small[top : top + p.height, left : left + p.width])

    def from_array(self, rgb: Image) -> Image:
        """The same for a picture that is already uint8 [h, w, 3] RGB, of any size."""
        p = self._preprocessing
        if rgb.shape[:2] == (p.height, p.width):
            return rgb
        return self(VideoFrame.from_ndarray(rgb, format="rgb24"))
