"""Videos of all kinds that FFmpeg reads: files, cameras, network streams.

Colour conversion and resize happen in one step on the decoded picture, so that no full-resolution
RGB copy exists. PyAV releases the GIL while it decodes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.stream import VideoStream

from streamexit.errors import SourceError
from streamexit.frame import Media
from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.sources.access import EVERYWHERE, Access
from streamexit.sources.addresses import Address
from streamexit.sources.containers import open_container
from streamexit.sources.demand import LARGEST_SHOWN, Choice, Demand
from streamexit.sources.lateness import Lateness
from streamexit.sources.sampling import ALL_PICTURES, Sampling
from streamexit.sources.source import DropReport, Picture, Watch
from streamexit.sources.timeline import Timeline

if TYPE_CHECKING:
    from streamexit.sources.cuda_converter import CudaConverter

FALLBACK_RATE = 25.0

COMPLETE_SHARE = 0.95
"""A file with fewer of its declared frames than this is truncated; headers are often off by a few."""

MOST_PIXELS = 2**27
"""Of a picture; a larger one in a header is an attack or damage, and would take gigabytes."""

KEYLESS_SECONDS = 20.0
"""So long a live stream is waited for to send a key frame; some never mark one."""

ONE_PACKET_PER_PICTURE = frozenset({"h264", "hevc", "mpeg2video", "mpeg1video", "mjpeg"})
"""Codecs of which a packet that gave no picture is a lost picture; others have packets that show none (MPEG-4's
placeholders for packed B-frames, alternate references of VP8)."""


class VideoSource:
    """A video file, a camera or a network stream.

    Args:
        address: Where it is.
        preprocessing: Of the pipeline; None for pictures at their own size.
        sampling: Which pictures are wanted. The others are not converted, and not decoded either where
            no other picture needs them.
        gpu: Index of the CUDA device that decodes and converts, if it can; what it cannot decode is
            decoded in software, and each picture says which it was.
        access: What may be reached.
        timeout: Seconds that FFmpeg may wait for the network, each time.
        max_age: Of a live source: seconds of lag from which on frames are left undecoded.
        clock: Seconds, monotonic.

    Raises:
        ConfigurationError: A GPU without what it takes.
        SourceError: The address must not be reached.
    """

    def __init__(
        self,
        address: Address,
        preprocessing: Preprocessing | None,
        *,
        sampling: Sampling = ALL_PICTURES,
        gpu: int | None = None,
        access: Access = EVERYWHERE,
        timeout: float = 10.0,
        max_age: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        access.check(address)
        self.live = address.live
        self._address = address
        self._preprocessing = preprocessing
        self._sampling = sampling
        self._gpu = None if preprocessing is None else gpu
        self._access = access
        self._timeout = timeout
        self._max_age = max_age
        self._clock = clock
        if self._gpu is not None:
            from streamexit.sources.cuda_converter import load_cupy

            load_cupy()

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`.

        A packet that the codec cannot decode, and a picture that it marks as damaged, count as
        one dropped frame each. A file that ends long before its declared length is an error, after
        its last picture.
        """
        watch = watch or Watch()
        watch.demand.served = True
        with self._open(watch) as (container, stream):
            reading = _Reading(
                self._address,
                container,
                stream,
                sampling=self._sampling,
                lateness=Lateness(self._max_age) if self.live else None,
                clock=self._clock,
                report=report,
                watch=watch,
            )
            convert = self._converter(stream, watch.demand)
            for frame, pts, lag in reading.frames():
                yield convert(frame, pts, reading.timeline.epoch, lag)
            reading.check_complete()

    def _converter(
        self, stream: VideoStream, demand: Demand
    ) -> Callable[[av.VideoFrame, float, int, float], Picture]:
        """Makes a picture of a decoded frame, where it lies."""
        p = self._preprocessing
        upright, turned = InputConverter(p), InputConverter(p and p.turned())
        on_device = self._device_converters(stream)
        aspect = _aspect(stream)
        rate = float(stream.average_rate) if stream.average_rate else None
        codec = stream.codec_context.name

        @functools.lru_cache(maxsize=4)
        def media(width: int, height: int, interlaced: bool) -> Media:
            return Media(codec, width, height, rate, interlaced)

        def picture(frame: av.VideoFrame, pts: float, epoch: int, lag: float) -> Picture:
            turns = round(frame.rotation / 90) % 4
            width, height = max(1, round(frame.width * aspect)), frame.height
            size = (height, width) if turns % 2 else (width, height)
            about = media(*size, frame.interlaced_frame)
            if on_device is not None and frame.format.name == "cuda":
                tensor = on_device[turns % 2](frame, (width, height))
                tensor = tensor.rot90(turns, (0, 1)).contiguous() if turns else tensor
                return Picture(tensor, pts, None, size, "nvdec", about, epoch, lag)
            image = (turned if turns % 2 else upright)(frame, (width, height))
            image = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
            shown = _to_show(frame, width, height, turns) if demand.takes_one_to_show() else None
            return Picture(image, pts, None, size, "software", about, epoch, lag, shown)

        return picture

    def _device_converters(self, stream: VideoStream) -> tuple[CudaConverter, CudaConverter] | None:
        """For upright pictures, and for those that are turned by a quarter afterwards."""
        p = self._preprocessing
        if self._gpu is None or p is None:
            return None
        from streamexit.sources.cuda_converter import LEFT_SITED_CODECS, CudaConverter

        left_sited = stream.codec_context.name in LEFT_SITED_CODECS
        one, other = (
            CudaConverter(way, self._gpu, left_sited=left_sited) for way in (p, p.turned())
        )
        return one, other

    @contextmanager
    def _open(self, watch: Watch) -> Iterator[tuple[InputContainer, VideoStream]]:
        open_with: Callable[..., InputContainer] = av.open
        if self._gpu is not None:
            from streamexit.sources.cuda_converter import open_on_gpu

            open_with = functools.partial(open_on_gpu, device_index=self._gpu)
        opened = open_container(
            self._address,
            self._access,
            timeout=self._timeout,
            watch=watch,
            open_with=open_with,
        )
        with opened as container:
            stream = next((s for s in container.streams.video if not _is_cover(s)), None)
            if stream is None:
                raise SourceError(
                    f"{self._address}: holds no video stream ({_describe(container)}); "
                    "give a file or camera with a picture",
                    reason="no_video",
                )
            self._prepare(stream)
            yield container, stream

    def _prepare(self, stream: VideoStream) -> None:
        codec: Any = stream.codec_context
        if codec is None:
            raise SourceError(
                f"{self._address}: FFmpeg has no decoder for its codec; choose another one",
                reason="unsupported_codec",
            )
        # Threads over whole frames add delay, and lose frames silently when a file breaks off.
        # Cameras rarely cut frames into slices, and there are many of them: no threads.
        stream.thread_type = "SLICE"
        if self.live:
            codec.thread_count = 1
        codec.options = {"max_pixels": str(MOST_PIXELS)}
        if self._sampling.key_frames:
            codec.skip_frame = "NONKEY"


class _Reading:
    """One opening of a container: packets in, frames with their times out."""

    def __init__(
        self,
        address: Address,
        container: InputContainer,
        stream: VideoStream,
        *,
        sampling: Sampling,
        lateness: Lateness | None,
        clock: Callable[[], float],
        report: DropReport,
        watch: Watch,
    ) -> None:
        self._address = address
        self._container = container
        self._stream = stream
        self._choice = Choice(sampling, watch.demand)
        self._all_wanted = sampling.all
        self._key_frames = sampling.key_frames
        self._lateness = lateness
        # a playlist's frames come segment by segment
        self._paced = lateness is not None and container.format.name == "hls"
        self._clock = clock
        self._report = report
        self._watch = watch
        self._step = 1 / _rate(stream)
        self._packets_in = 0
        self._opened_at = clock()
        self._gone = 0
        self._decoded = 0
        self._interlaced = False
        self._pace_from: float | None = None
        self.timeline = Timeline(self._step)

    def frames(self) -> Iterator[tuple[av.VideoFrame, float, float]]:
        """Those that are wanted, each with its place on the time line and its lag, in order."""
        for frame in self._decode():
            if frame is None or frame.is_corrupt:
                self._lose()
                continue
            self._decoded += 1
            self._interlaced |= frame.interlaced_frame
            unit = frame.time_base
            lasting = float(frame.duration * unit) if unit and frame.duration else None
            epoch = self.timeline.epoch
            pts = self.timeline.place(frame.time, lasting)
            if self.timeline.epoch != epoch and self._lateness is not None:
                self._lateness.restart()
            if not self._choice.sampler.wants(pts):
                self._watch.alive()
                continue
            lag = self._lag(pts)
            if self._lateness is not None and lag > self._lateness.tolerated:
                self._report("too_old")
                continue
            yield frame, pts, lag
        self._count_silent_losses()

    def check_complete(self) -> None:
        """At the end: whether there was anything, and all that the file says it has.

        Raises:
            SourceError: It was not.
        """
        if not self._decoded:
            raise SourceError(
                f"{self._address}: holds a video stream but not one picture could be decoded; "
                "the file may be truncated or damaged",
                reason="decode_errors" if self._lateness is not None else "no_frames",
            )
        declared = 0 if self._lateness is not None else self._stream.frames
        seen = self._decoded + self._gone
        if self._all_wanted and seen < COMPLETE_SHARE * declared:
            raise SourceError(
                f"{self._address}: ends after {seen} of {declared} frames; the file is truncated "
                "or damaged, what there was is answered. Copy or record it again",
                reason="truncated",
            )

    def _decode(self) -> Iterator[av.VideoFrame | None]:
        """Decoded pictures in order, None for each that is lost."""
        for packet in self._packets():
            if packet.size and not self._takes(packet):
                continue
            try:
                frames = packet.decode()
            except EOFError:
                continue
            except FFmpegError:
                yield None
                continue
            yield from frames

    def _takes(self, packet: av.Packet[VideoStream]) -> bool:
        """Whether a packet goes to the decoder."""
        if self._key_frames and not packet.is_keyframe:
            self._watch.alive()
            return False
        pts, unit = packet.pts, packet.time_base
        seconds = float(pts * unit) if pts is not None and unit is not None else None
        if self._lateness is not None and not self._is_prompt(packet, seconds):
            return False
        self._all_wanted &= self._choice.sampling.all
        if not self._key_frames and not self._all_wanted and seconds is not None:
            self._skip_unwanted(seconds)
        if not packet.is_discard:
            self._packets_in += 1
        return True

    def _skip_unwanted(self, seconds: float) -> None:
        """What no other picture needs is not decoded; all else has to be."""
        placed = self.timeline.peek(seconds)
        wanted = placed is None or self._choice.sampler.may_want(placed, self._step)
        self._stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"

    def _is_prompt(self, packet: av.Packet[VideoStream], seconds: float | None) -> bool:
        """Whether a live packet is worth decoding: from a key frame on, and not when it is late."""
        assert self._lateness is not None
        if not self._packets_in and not packet.is_keyframe:
            self._watch.alive()
            return self._clock() - self._opened_at > KEYLESS_SECONDS
        placed = None if seconds is None or not self._decoded else self.timeline.peek(seconds)
        if placed is None or self._paced:
            return True
        lag = self._lateness.of(placed, self._clock())
        if self._lateness.skips(lag, is_key_frame=packet.is_keyframe):
            self._report("too_old")
            return False
        return True

    def _packets(self) -> Iterator[av.Packet[VideoStream]]:
        """Demux; a damaged end of a file is an end. What the decoder still holds comes last."""
        try:
            yield from self._container.demux(self._stream)
        except IndexError:
            return  # PyAV, when a stream appeared in mid-file; ours was flushed before
        except FFmpegError as error:
            flush = cast("av.Packet[VideoStream]", av.Packet())
            flush.stream = self._stream
            if self._stream.time_base is not None:
                flush.time_base = self._stream.time_base
            yield flush
            if self._lateness is not None or not isinstance(error, InvalidDataError):
                raise

    def _lag(self, pts: float) -> float:
        """Seconds by which a live frame is late; waits for the time of one that comes early."""
        if self._lateness is None:
            return 0.0
        if self._paced:
            now = self._clock()
            if self._pace_from is None:
                self._pace_from = now - pts
            self._watch.wait(self._pace_from + pts - now)
        return self._lateness.of(pts, self._clock())

    def _lose(self) -> None:
        self._gone += 1
        self._report("decode_error")

    def _count_silent_losses(self) -> None:
        """Packets that the decoder swallowed without a picture or an error."""
        codec = self._stream.codec_context.name
        if self._interlaced or not self._all_wanted or codec not in ONE_PACKET_PER_PICTURE:
            return  # a packet may then be a field, or be skipped on purpose
        for _ in range(self._packets_in - self._decoded - self._gone):
            self._lose()


def _rate(stream: VideoStream) -> float:
    rate: Fraction | None = stream.average_rate
    return float(rate) if rate else FALLBACK_RATE


def _aspect(stream: VideoStream) -> float:
    """Width of a pixel by its height."""
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio and 0.1 <= ratio <= 10 else 1.0


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _to_show(frame: av.VideoFrame, width: int, height: int, turns: int) -> Image:
    """The frame as people see it: uint8 [h, w, 3] RGB, square pixels, upright, not too large."""
    scale = min(1.0, LARGEST_SHOWN / max(width, height))
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    rgb = frame.reformat(**size, format="rgb24").to_ndarray().astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(rgb, turns))


def _describe(container: InputContainer) -> str:
    kinds = [stream.type for stream in container.streams]
    return f"streams: {', '.join(kinds)}" if kinds else "no streams at all"
