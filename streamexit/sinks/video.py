"""Answers drawn on their pictures, as a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from streamexit.errors import InputError, SourceError
from streamexit.exits import ExitRecord
from streamexit.preprocessing import Image

CODECS = ("libx264", "mpeg4")
CLOCK = 90_000
"""Ticks per second of the timestamps that are written."""


class VideoSink:
    """Writes one picture per answer, in frame order.

    The pictures come from a source of their own, so that drawing neither slows nor changes what is
    drawn.

    Args:
        path: Overwritten; its suffix says the container, as .mp4 or .mkv.
        pictures: The stream's pictures at their own size, uint8 [h, w, 3] RGB, from the first on.
        draw: Puts an answer on a picture.

    Raises:
        InputError: The file cannot be written, or no codec fits it.
    """

    def __init__(
        self,
        path: Path,
        pictures: Iterator[Image],
        draw: Callable[[Image, ExitRecord], Image],
    ) -> None:
        self._path = path
        self._pictures = enumerate(pictures)
        self._draw = draw
        self._stream: VideoStream | None = None
        self._last_pts = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(path), "w")
        except (OSError, FFmpegError, ValueError) as error:
            raise InputError(f"{path}: cannot be written as a video: {error}") from error

    def write(self, record: ExitRecord) -> None:
        """Draw and append one answer; records come in frame order.

        Raises:
            InputError: The file cannot be written, or its pictures have gone.
        """
        drawn = self._draw(self._picture_of(record.frame.index), record)
        if self._stream is None:
            self._stream = self._add_stream(drawn)
        width, height = self._stream.width, self._stream.height
        if drawn.shape[:2] != (height, width):
            drawn = cv2.resize(drawn, (width, height)).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgb24")
        self._last_pts = max(self._last_pts + 1, round(record.frame.pts_seconds * CLOCK))
        frame.pts = self._last_pts
        frame.time_base = Fraction(1, CLOCK)
        self._mux(self._stream, frame)

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        if self._stream is not None:
            self._mux(self._stream, None)
        self._container.close()

    def _picture_of(self, index: int) -> Image:
        try:
            for i, picture in self._pictures:
                if i == index:
                    return picture
        except SourceError as error:
            raise InputError(f"{self._path}: {error}") from error
        raise InputError(f"{self._path}: its source has no picture {index} any more")

    def _add_stream(self, first: Image) -> VideoStream:
        codec = next((name for name in CODECS if name in av.codecs_available), None)
        if codec is None:
            raise InputError(f"{self._path}: FFmpeg has none of {', '.join(CODECS)} here")
        try:
            stream = self._container.add_stream(codec, rate=30)
        except (FFmpegError, ValueError) as error:
            raise InputError(f"{self._path}: cannot hold {codec}: {error}") from error
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = (side // 2 * 2 for side in first.shape[:2])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        stream.codec_context.bit_rate = 4_000_000 if codec == "mpeg4" else 0
        if codec == "libx264":
            stream.codec_context.options = {"crf": "23", "preset": "veryfast"}
        return stream

    def _mux(self, stream: VideoStream, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(stream.encode(frame))
        except (OSError, FFmpegError) as error:
            raise InputError(f"{self._path}: cannot be written: {error}") from error
