"""A stream's decode thread: numbers the pictures of a source, paces them, fills the frame buffer."""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from streamexit.errors import SourceError
from streamexit.frame import Frame, FrameInfo
from streamexit.metrics import DropReason
from streamexit.queues import FrameBuffer
from streamexit.redact import redact
from streamexit.sources.source import Picture, Source

log = logging.getLogger(__name__)

State = Literal["connecting", "online", "reconnecting", "ended", "error"]
Pace = Literal["realtime", "fast"]

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where a stream is in its life.

    Attributes:
        state: See `State`; "ended" and "error" are final.
        reason: One word, for machines; empty when all is well.
        message: A sentence, for people; empty when all is well.
    """

    state: State
    reason: str = ""
    message: str = ""


class Reader:
    """Reads one source in a thread of its own.

    A recording that breaks is in error, one that ends has ended; a live source is opened again
    after either, with capped exponential backoff and jitter, for ever.

    Args:
        stream_id: Whose frames these are.
        source: What to read.
        buffer: Where frames go; closed by whoever stops the reader.
        on_state: Called from the thread at each change.
        pace: "realtime" yields recordings at the speed of their timestamps, "fast" at any speed.
        wall_clock: Unix time, for `captured_at`; None takes it from the timestamps, so that a
            replay is reproducible.
    """

    def __init__(
        self,
        stream_id: str,
        source: Source,
        buffer: FrameBuffer,
        *,
        on_state: Callable[[StreamState], None],
        pace: Pace = "fast",
        wall_clock: Callable[[], float] | None = time.time,
    ) -> None:
        self._stream_id = stream_id
        self._source = source
        self._buffer = buffer
        self._on_state = on_state
        self._paced = pace == "realtime" and not source.live
        self._wall_clock = wall_clock
        self._stopping = threading.Event()
        self._index = 0
        self._epoch = 0
        self._dropped = 0
        self._pts_base = 0.0
        self._last_pts = 0.0
        self._thread = threading.Thread(target=self._run, name=f"decode-{stream_id}", daemon=True)

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; it may be inside FFmpeg and is not waited for."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the thread; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        retry = FIRST_RETRY_SECONDS
        try:
            while not self._stopping.is_set():
                read_before = self._index
                final = self._read_once()
                if not self._source.live or self._stopping.is_set():
                    self._on_state(final)
                    return
                retry = FIRST_RETRY_SECONDS if self._index > read_before else retry
                self._on_state(StreamState("reconnecting", final.reason, final.message))
                if self._stopping.wait(retry * random.uniform(0.5, 1.0)):
                    return
                retry = min(2 * retry, LONGEST_RETRY_SECONDS)
                self._start_epoch()
        finally:
            self._buffer.finish()

    def _read_once(self) -> StreamState:
        """Open the source and read to its end; how that went."""
        self._on_state(StreamState("connecting"))
        try:
            self._read_pictures()
        except SourceError as error:
            return StreamState("error", error.reason, f"stream {self._stream_id}: {error}")
        except Exception as error:  # a codec's or a plugin's: it must not end more than its stream
            details = redact(traceback.format_exc())
            log.debug("stream %s: the source failed\n%s", self._stream_id, details)
            message = f"stream {self._stream_id}: {type(error).__name__}: {redact(str(error))}"
            return StreamState("error", "internal", message)
        return StreamState("ended", "stopped" if self._stopping.is_set() else "end_of_stream")

    def _read_pictures(self) -> None:
        started = time.monotonic()
        first_pts: float | None = None
        for picture in self._source.pictures(self._report_drop):
            if first_pts is None:
                first_pts = picture.pts_seconds
                self._on_state(StreamState("online"))
            offset = picture.pts_seconds - first_pts
            if self._paced:
                self._stopping.wait(max(0.0, started + offset - time.monotonic()))
            accepted = self._buffer.put(self._frame(picture, self._pts_base + offset))
            if not accepted or self._stopping.is_set():
                return

    def _frame(self, picture: Picture, pts: float) -> Frame:
        self._buffer.counters.seen()
        captured_at = pts if self._wall_clock is None else self._wall_clock()
        info = FrameInfo(
            stream_id=self._stream_id,
            index=self._index,
            pts_seconds=pts,
            captured_at=captured_at,
            label=picture.label,
            size=picture.size,
            decoder=picture.decoder,
            epoch=self._epoch,
            dropped_before=self._dropped,
        )
        self._index += 1
        self._dropped = 0
        self._last_pts = pts
        return Frame(info, picture.image)

    def _report_drop(self, reason: DropReason) -> None:
        self._buffer.counters.seen()
        self._buffer.counters.drop(reason)
        self._dropped += 1

    def _start_epoch(self) -> None:
        self._epoch += 1
        self._buffer.counters.reconnects += 1
        self._pts_base = self._last_pts + 1 / 25
