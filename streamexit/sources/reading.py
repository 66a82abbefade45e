"""One opening of a container: packets in, frames with their times out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import cast

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.stream import VideoStream

from streamexit.errors import SourceError
from streamexit.sources.addresses import Address
from streamexit.sources.demand import Choice
from streamexit.sources.lateness import Lateness
from streamexit.sources.sampling import Sampling
from streamexit.sources.source import DropReport, Watch
from streamexit.sources.timeline import Timeline

FALLBACK_RATE = 25.0

COMPLETE_SHARE = 0.95
"""A file with fewer of its declared frames than this is truncated; headers are often off by a few."""

KEYLESS_SECONDS = 20.0
"""So long a live stream is waited for to send a key frame; some never mark one."""

ONE_PACKET_PER_PICTURE = frozenset({"h264", "hevc", "mpeg2video", "mpeg1video", "mjpeg"})
"""Codecs of which a packet that gave no picture is a lost picture; others have packets that show none (MPEG-4's
placeholders for packed B-frames, alternate references of VP8)."""


class Reading:
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
        self._step = 1 / rate_of(stream)
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


def rate_of(stream: VideoStream) -> float:
    """Frames per second, as declared."""
    rate: Fraction | None = stream.average_rate
    return float(rate) if rate else FALLBACK_RATE
