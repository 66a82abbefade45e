"""Videos of all kinds that FFmpeg reads: files, cameras, network streams.

Colour conversion and resize happen in one step on the decoded picture, so that no full-resolution
RGB copy exists. PyAV releases the GIL while it decodes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from streamexit.errors import SourceError
from streamexit.frame import Media
from streamexit.preprocessing import Image, InputConverter, Preprocessing
from streamexit.sources.access import EVERYWHERE, Access
from streamexit.sources.addresses import Address
from streamexit.sources.containers import open_container
from streamexit.sources.demand import LARGEST_SHOWN, Demand
from streamexit.sources.lateness import Lateness
from streamexit.sources.reading import Reading
from streamexit.sources.sampling import ALL_PICTURES, Sampling
from streamexit.sources.source import DropReport, Picture, Watch

if TYPE_CHECKING:
    from streamexit.sources.cuda_converter import CudaConverter

MOST_PIXELS = 2**27
"""Of a picture; a larger one in a header is an attack or damage, and would take gigabytes."""


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
        watch.demand.served = self._gpu is None  # pictures stay there; the reader fetches one
        with self._open(watch) as (container, stream):
            reading = Reading(
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
