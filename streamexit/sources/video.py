"""Video files and network streams, through PyAV.

Colour conversion and resize happen in one step on the decoded picture, so that no full-resolution
RGB copy exists. PyAV releases the GIL while it decodes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import cast

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.stream import VideoStream

from streamexit.errors import SourceError
from streamexit.preprocessing import InputConverter, Preprocessing
from streamexit.redact import redact
from streamexit.sources.cuda_converter import (
    LEFT_SITED_CODECS,
    CudaConverter,
    load_cupy,
    on_gpu,
    open_on_gpu,
)
from streamexit.sources.sampling import Sampler
from streamexit.sources.source import DropReport, Picture

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp")
TIMEOUT_MICROSECONDS = "10000000"
FALLBACK_RATE = 25.0

COMPLETE_SHARE = 0.95
"""A file with fewer of its declared frames than this is truncated; headers are often off by a few."""

_SCHEME = re.compile(r"^([A-Za-z]+)://")


class VideoSource:
    """A video file or a network stream.

    Args:
        url: A path, or a URL of one of `LIVE_SCHEMES`.
        preprocessing: Of the pipeline; None for pictures at their own size.
        frame_rate: Pictures per second that are wanted at most; None wants all. The others are not
            converted, and not decoded either where no other picture needs them.
        gpu: Index of the CUDA device that decodes and converts, if it can; what it cannot decode is
            decoded in software, and each picture says which it was.

    Raises:
        ConfigurationError: A GPU without what it takes.
    """

    def __init__(
        self,
        url: str,
        preprocessing: Preprocessing | None,
        *,
        frame_rate: float | None = None,
        gpu: int | None = None,
    ) -> None:
        scheme = _SCHEME.match(url)
        self._scheme = scheme.group(1).lower() if scheme else "file"
        self.live = self._scheme in LIVE_SCHEMES
        self._url = url.removeprefix("file://")
        self._preprocessing = preprocessing
        self._frame_rate = frame_rate
        self._gpu = None if preprocessing is None else gpu
        if self._gpu is not None:
            load_cupy()

    def pictures(self, report: DropReport) -> Iterator[Picture]:
        """See `Source`.

        A packet that the codec cannot decode, and a picture that it marks as damaged, count as
        one dropped frame each. A file that ends long before its declared length is an error, after
        its last picture.
        """
        sampler = Sampler(self._frame_rate)
        last: float | None = None
        seen = 0
        with self._open() as (container, stream):
            convert = self._converter(stream)
            step, declared = 1 / _rate(stream), 0 if self.live else stream.frames
            for frame in self._frames(container, stream, sampler):
                seen += 1
                if frame is None:
                    report("decode_error")
                    continue
                pts: float | None = frame.time
                if pts is None or (last is not None and pts <= last):
                    pts = 0.0 if last is None else last + step
                last = pts
                if sampler.wants(pts):
                    yield convert(frame, pts)
        if last is None:
            raise SourceError(
                f"{self._shown}: holds a video stream but not one picture could be decoded; "
                "the file may be truncated or damaged",
                reason="no_frames",
            )
        if self._frame_rate is None and seen < COMPLETE_SHARE * declared:
            raise SourceError(
                f"{self._shown}: ends after {seen} of {declared} frames; the file is truncated "
                "or damaged, what there was is answered. Copy or record it again",
                reason="truncated",
            )

    def _converter(self, stream: VideoStream) -> Callable[[av.VideoFrame, float], Picture]:
        """Makes a picture of a decoded frame, where it lies."""
        convert = InputConverter(self._preprocessing)
        on_device = None
        if self._gpu is not None and self._preprocessing is not None:
            left_sited = stream.codec_context.name in LEFT_SITED_CODECS
            on_device = CudaConverter(self._preprocessing, self._gpu, left_sited=left_sited)

        def picture(frame: av.VideoFrame, pts: float) -> Picture:
            size = (frame.width, frame.height)
            if on_device is not None and on_gpu(frame):
                return Picture(on_device(frame), pts, size=size, decoder="nvdec")
            return Picture(convert(frame), pts, size=size)

        return picture

    def _frames(
        self, container: InputContainer, stream: VideoStream, sampler: Sampler
    ) -> Iterator[av.VideoFrame | None]:
        """Decoded pictures in order, None for each that is lost."""
        step = 1 / _rate(stream)
        for packet in self._packets(container, stream):
            pts, unit = packet.pts, packet.time_base
            if self._frame_rate is not None and pts is not None and unit is not None:
                wanted = sampler.may_want(float(pts * unit), step)
                # What no other picture needs is not decoded; all else has to be.
                stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"
            try:
                frames = packet.decode()
            except EOFError:
                continue
            except FFmpegError:
                yield None
                continue
            yield from (None if frame.is_corrupt else frame for frame in frames)

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            name = f"file:{self._url}" if self._scheme == "file" else self._url
            container = (
                av.open(name, options=self._options(), metadata_errors="replace")
                if self._gpu is None
                else open_on_gpu(name, self._options(), self._gpu)
            )
        except FFmpegError as error:
            raise self._error(error, "cannot_open") from error
        with container:
            stream = next((s for s in container.streams.video if not _is_cover(s)), None)
            if stream is None:
                raise SourceError(
                    f"{self._shown}: holds no video stream ({_describe(container)}); "
                    "give a file or camera with a picture",
                    reason="no_video",
                )
            # Threads over whole frames add delay, and lose frames silently when a file breaks off.
            # Cameras rarely cut frames into slices, and there are many of them: no threads.
            stream.thread_type = "SLICE"
            if self.live:
                stream.codec_context.thread_count = 1
            yield container, stream

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[av.Packet[VideoStream]]:
        """Demux; a damaged end of a file is an end. What the decoder still holds comes last."""
        try:
            yield from container.demux(stream)
        except IndexError:
            return  # PyAV, when a stream appeared in mid-file; ours was flushed before
        except FFmpegError as error:
            flush = cast("av.Packet[VideoStream]", av.Packet())
            flush.stream = stream
            if stream.time_base is not None:
                flush.time_base = stream.time_base
            yield flush
            if self.live or not isinstance(error, InvalidDataError):
                raise self._error(error, "stream_broken") from error

    def _options(self) -> dict[str, str]:
        if self._scheme in ("rtsp", "rtsps"):
            return {"rtsp_transport": "tcp", "timeout": TIMEOUT_MICROSECONDS}
        if self.live:
            return {"rw_timeout": TIMEOUT_MICROSECONDS}
        return {"protocol_whitelist": "file"}

    @property
    def _shown(self) -> str:
        return redact(self._url)

    def _error(self, error: FFmpegError, reason: str) -> SourceError:
        return SourceError(
            f"{self._shown}: {_cause(error)}; check that it exists and is a video "
            "that ffmpeg can play"
            if not self.live
            else f"{self._shown}: {_cause(error)}; check address, credentials and network",
            reason=reason,
        )


def _cause(error: FFmpegError) -> str:
    if isinstance(error, InvalidDataError):
        return "not a video, or damaged (invalid data found)"
    return (error.strerror or str(error)).lower()


def _rate(stream: VideoStream) -> float:
    rate: Fraction | None = stream.average_rate
    return float(rate) if rate else FALLBACK_RATE


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _describe(container: InputContainer) -> str:
    kinds = [stream.type for stream in container.streams]
    return f"streams: {', '.join(kinds)}" if kinds else "no streams at all"
