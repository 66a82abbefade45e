"""From a decoded picture to the network's input: declared once per pipeline, used everywhere.

Training, calibration and the running node all go through `Preprocessing`, so the network never
sees pixels that were prepared another way. Resizing happens here, on uint8; normalisation is the
first operation of the network itself (`models.network.Normalise`), so that bytes travel, not floats.

H, W: rows and columns of the network's input.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""

Triple = tuple[float, float, float]

FILTER = int(Interpolation.AREA) | int(Interpolation.FULL_CHR_H_INT)
"""Area averaging, chroma too: by default swscale halves the chroma of what it scales, and a small
picture would lose its fine colours when it comes from a video but not when it comes from a file."""

ITU_601 = 5

LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    ITU_601: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
"""Colour space -> shares of red and blue in luma: BT.709, FCC, BT.601, SMPTE 240M, BT.2020."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a picture becomes the network's input.

    Attributes:
        width: Columns of the input, in pixels.
        height: Rows of the input, in pixels.
        mean: Per channel (RGB), in [0, 1]; subtracted inside the network.
        std: Per channel (RGB), in [0, 1]; divided by inside the network.
        fit: "stretch" scales both sides on their own; "crop" keeps the aspect ratio and cuts
            what sticks out on the longer side, centred; "letterbox" keeps it and fills what is
            missing on the shorter side with black, centred.
    """

    width: int
    height: int
    mean: Triple
    std: Triple
    fit: Literal["stretch", "crop", "letterbox"] = "stretch"

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) that a `width` x `height` picture is scaled to as a whole."""
        if self.fit == "stretch":
            return self.width, self.height
        sides = self.width / width, self.height / height
        if self.fit == "letterbox":
            scale = min(sides)
            return max(1, round(width * scale)), max(1, round(height * scale))
        scale = max(sides)
        return max(self.width, round(width * scale)), max(self.height, round(height * scale))

    def overlap(self, width: int, height: int) -> Overlap:
        """Where a `width` x `height` picture, scaled, and the input lie on each other."""
        scaled_width, scaled_height = self.scaled_size(width, height)
        left, in_left = _centred(self.width, scaled_width)
        top, in_top = _centred(self.height, scaled_height)
        columns, rows = min(self.width, scaled_width), min(self.height, scaled_height)
        return Overlap(
            (slice(in_top, in_top + rows), slice(in_left, in_left + columns)),
            (slice(top, top + rows), slice(left, left + columns)),
        )

    def turned(self) -> Preprocessing:
        """The same for a picture that will be turned by a quarter afterwards."""
        return replace(self, width=self.height, height=self.width)

    def restore(self, values: Image, width: int, height: int, *, fill: int) -> Image:
        """Bring a map of the input back onto the picture that the input was made of.

        Args:
            values: uint8 [H, W], one value per pixel of the input.
            width: Of the picture, in pixels.
            height: Of the picture, in pixels.
            fill: For pixels of the picture that the input did not show.

        Returns:
            uint8 [height, width], by the nearest pixel.
        """
        scaled_width, scaled_height = self.scaled_size(width, height)
        scaled = np.full((scaled_height, scaled_width), fill, np.uint8)
        overlap = self.overlap(width, height)
        scaled[overlap.of_picture] = values[overlap.of_input]
        whole = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return whole.astype(np.uint8, copy=False)


def _centred(input_side: int, scaled_side: int) -> tuple[int, int]:
    """Where the overlap begins on the scaled picture and on the input, along one side."""
    return max(0, (scaled_side - input_side) // 2), max(0, (input_side - scaled_side) // 2)


class Overlap(NamedTuple):
    """Rows and columns that the input and the scaled picture have in common.

    Attributes:
        of_input: (rows, columns) of the input.
        of_picture: (rows, columns) of the scaled picture.
    """

    of_input: tuple[slice, slice]
    of_picture: tuple[slice, slice]


class InputConverter:
    """Colour conversion and resize on the decoded picture; one instance per stream.

    No full-resolution RGB copy is made. Of a YUV picture FFmpeg scales the planes, and the colour
    matrix is applied to the small result: that is faster than swscale's way to RGB with whole chroma,
    and says the same but for rounding.

    Args:
        preprocessing: What the network wants; None leaves pictures at their own size.
    """

    def __init__(self, preprocessing: Preprocessing | None) -> None:
        self._preprocessing = preprocessing
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame, size: tuple[int, int] | None = None) -> Image:
        """Return `picture` as the network's uint8 [H, W, 3] input.

        Args:
            picture: As decoded.
            size: Width and height that it is meant to be shown with, where pixels are not square.
        """
        p = self._preprocessing
        own_size = size or (picture.width, picture.height)
        width, height = own_size if p is None else p.scaled_size(*own_size)
        scale = self._scaled_yuv if _is_yuv(picture) else self._scaled_rgb
        if p is None:
            return scale(picture, width, height, _WHOLE)
        overlap = p.overlap(*own_size)
        shown = scale(picture, width, height, overlap.of_picture)
        if shown.shape[:2] == (p.height, p.width):
            return shown
        image = np.zeros((p.height, p.width, 3), np.uint8)
        image[overlap.of_input] = shown
        return image

    def from_array(self, rgb: Image) -> Image:
        """The same for a picture that is already uint8 [h, w, 3] RGB, of any size."""
        p = self._preprocessing
        if p is None or rgb.shape[:2] == (p.height, p.width):
            return rgb
        return self(VideoFrame.from_ndarray(rgb, format="rgb24"))

    def _scaled_rgb(
        self, picture: VideoFrame, width: int, height: int, part: tuple[slice, slice]
    ) -> Image:
        small = self._reformatter.reformat(
            picture, width=width, height=height, format="rgb24", interpolation=FILTER, threads=1
        )
        return np.ascontiguousarray(small.to_ndarray()[part])

    def _scaled_yuv(
        self, picture: VideoFrame, width: int, height: int, part: tuple[slice, slice]
    ) -> Image:
        full_range = is_full_range(picture)
        luma_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        small = self._reformatter.reformat(
            picture,
            width=width,
            height=height,
            format="yuv444p",
            interpolation=FILTER,
            src_color_range=luma_range,
            dst_color_range=luma_range,
            threads=1,
        )
        planes = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                :height, :width
            ][part]
            for plane in small.planes
        ]
        matrix = colour_matrix(picture.colorspace, full_range=full_range)
        return cv2.transform(cv2.merge(planes), matrix).astype(np.uint8, copy=False)


_WHOLE = (slice(None), slice(None))


def _is_yuv(picture: VideoFrame) -> bool:
    """Whether luma and two chroma planes, and nothing else, make the picture."""
    return picture.format.name.startswith(("yuv", "nv")) and len(picture.format.components) == 3


def is_full_range(picture: VideoFrame) -> bool:
    """Whether luma goes from 0 to 255 (as in JPEG), not from 16 to 235 (ITU-R BT.601, 2.5.3)."""
    return picture.color_range == ColorRange.JPEG or picture.format.name.startswith("yuvj")


@functools.cache
def colour_matrix(colorspace: int, *, full_range: bool) -> NDArray[np.float64]:
    """From YUV to RGB, both in 0..255.

    Args:
        colorspace: As FFmpeg counts (ITU-T H.273, table 4); what is unspecified counts as BT.601,
            as with swscale.
        full_range: See `is_full_range`.

    Returns:
        float64 [3, 4]: coefficients of Y, U, V and 1, per row R, G, B.
    """
    red, blue = LUMA_WEIGHTS.get(colorspace, LUMA_WEIGHTS[ITU_601])
    green = 1 - red - blue
    chroma = np.array(
        [
            [0, 2 * (1 - red)],
            [-2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [2 * (1 - blue), 0],
        ]
    )
    luma_scale, chroma_scale, black = (1, 1, 0) if full_range else (255 / 219, 255 / 224, 16)
    linear = np.column_stack([np.full(3, luma_scale), chroma * chroma_scale])
    return np.column_stack([linear, -linear @ np.array([black, 128, 128])])
