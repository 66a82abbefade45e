"""Reads one source for one stream: numbers its pictures, fills the frame buffer, and survives it.

Each opening of the source is an attempt with a thread of its own. `tick` looks at the attempt from
outside: one that hangs is abandoned and replaced, whatever it hangs in.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamexit.errors import SourceError
from streamexit.frame import Frame, FrameInfo
from streamexit.metrics import DropReason
from streamexit.preprocessing import Image, Preprocessing
from streamexit.queues import FrameBuffer
from streamexit.redact import redact
from streamexit.sources.demand import Demand
from streamexit.sources.life import (
    TRANSITIONS,
    USUAL_PATIENCE,
    Patience,
    State,
    StreamState,
    retry_pause,
)
from streamexit.sources.numbering import Numbering
from streamexit.sources.source import Picture, Source, Watch

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

Pace = Literal["realtime", "fast"]

MOST_HUNG = 3
"""Abandoned threads of a stream that still hang; beyond, no further thread is risked."""

RECORDING_PATIENCE = 6
"""A recording may take so many times as long: what is large, or on a slow disk, is not gone."""

WELL_SECONDS = 2.0
"""A stream that is online for longer is well. Pauses grow with the time since it was last: one that breaks
after each first picture is not knocked at ever faster."""

_SILENCE = {"decode_error": "decode_errors", "too_old": "too_slow"}
"""Why frames are lost -> reason for a silence."""


class _Attempt:
    """One opening of the source.

    Attributes:
        source: What is opened.
        watch: Its signs of life, and its end.
        thread: Runs it.
        opened_at: When its first picture came, in monotonic seconds; None before.
        loss: Why the source lost a frame since its last picture; empty if it did not.
    """

    def __init__(
        self, source: Source, name: str, run: Callable[[_Attempt], None], watch: Watch
    ) -> None:
        self.source = source
        self.watch = watch
        self.opened_at: float | None = None
        self.loss = ""
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)


class Reader:
    """Reads one source, attempt after attempt.

    A recording that breaks is in error, one that ends has ended; a live source is opened again
    after either, with capped exponential backoff and jitter, and so is a recording that is missing, if that
    is wanted: its disk may come back. See `life` for the states.

    Args:
        stream_id: Whose frames these are.
        source: What to read.
        buffer: Where frames go; closed by whoever stops the reader.
        on_state: Called at each change, from the attempt's thread or from whoever calls `tick`.
        pace: "realtime" yields recordings at the speed of their timestamps, "fast" at any speed.
        wall_clock: Unix time, for `captured_at`; None takes it from the timestamps, so that a
            replay is reproducible.
        patience: How long things may take.
        max_age: Of a live source: seconds after which a frame's answer is of no use.
        clock: Seconds, monotonic.
        chance: Random numbers in [0, 1).
        fallback: The same source, read in a way that can always be ended: a process of its own. Taken
            while `MOST_HUNG` threads hang.
        demand: What is asked of the source meanwhile.
        first_epoch: Of its first frame.
        await_missing: Try a recording that is not there again and again.
        preprocessing: Of the network that the pictures are for, which have to fit; None takes any.
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
        patience: Patience = USUAL_PATIENCE,
        max_age: float = float("inf"),
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        fallback: Source | None = None,
        demand: Demand | None = None,
        first_epoch: int = 0,
        await_missing: bool = False,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self._stream_id = stream_id
        self._source = source
        self._fallback = fallback
        self._demand = demand or Demand(clock)
        self._buffer = buffer
        self._on_state = on_state
        self._paced = pace == "realtime" and not source.live
        self._wall_clock = wall_clock
        self._patience = patience
        self._max_age = max_age
        self._clock = clock
        self._chance = chance
        self._lock = threading.RLock()
        self._attempt: _Attempt | None = None
        self._abandoned: list[_Attempt] = []
        self._failed = 0
        self._last_well = clock()
        self._retry_at = 0.0
        self._started = self._stopped = False
        self._await_missing = await_missing
        self._shape = (preprocessing.height, preprocessing.width, 3) if preprocessing else None
        self._numbering = Numbering(first_epoch)
        self.state = StreamState("connecting")
        """Latest; see `life`."""

    # --- from outside ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin reading."""
        with self._lock:
            self._started = True
            self._last_well = self._clock()
            self._on_state(self.state)
            self._begin()

    def tick(self) -> None:
        """Look after the source; to be called a few times a second where it could hang or be lost."""
        with self._lock:
            over = self._stopped or self.state.final
            if not self._started or over or self.state.state == "disabled":
                return
            now = self._clock()
            if self._attempt is None:
                self._retry(now)
            else:
                self._watch(self._attempt, now)

    def disable(self, reason: str, message: str) -> None:
        """Let go of the source until `enable`. For live sources."""
        with self._lock:
            if self._stopped or self.state.final:
                return
            self._give_up_attempt()
            self._change("disabled", reason, message)

    def enable(self) -> None:
        """Go on reading after `disable`."""
        with self._lock:
            if not self._stopped and self.state.state == "disabled":
                self._started = True
                self._failed, self._last_well = 0, self._clock()
                self._change("connecting")
                self._begin_again()

    def reopen(self) -> None:
        """Give the present opening of a live source up and begin another at once."""
        with self._lock:
            if self._source.live and self._attempt is not None:
                self._give_up_attempt()
                self._retry_at = 0.0
                self._begin_again()

    def stop(self) -> None:
        """End reading. A thread that hangs inside FFmpeg is not waited for."""
        with self._lock:
            self._stopped = True
            attempt = self._attempt
            idle = not self._started or self.state.state == "disabled"
            if attempt is None and not idle and not self.state.final:
                self._end_between_attempts()
            if attempt is None:
                self._buffer.finish()
        if attempt is not None:
            attempt.watch.stop()

    def _end_between_attempts(self) -> None:
        if self._source.live:
            self._change("ended", "stopped")
        else:  # a recording that was not there until the end
            self._change("error", self.state.reason, self.state.message)

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the present attempt; whether it has ended."""
        with self._lock:
            attempt = self._attempt
        if attempt is not None and attempt.thread.ident is not None:
            attempt.thread.join(timeout)
            return not attempt.thread.is_alive()
        return True

    @property
    def epoch(self) -> int:
        """Of the latest frame."""
        return self._numbering.epoch

    @property
    def falls_back(self) -> bool:
        """Whether the present attempt reads the fallback."""
        attempt = self._attempt
        return attempt is not None and attempt.source is self._fallback

    @property
    def hung(self) -> int:
        """Abandoned threads that have not returned."""
        self._abandoned = [a for a in self._abandoned if a.thread.is_alive()]
        return len(self._abandoned)

    @property
    def retry_in(self) -> float | None:
        """Seconds until the next attempt; None if one is under way, or none will be."""
        if self._attempt is not None or self.state.final or self.state.state == "disabled":
            return None
        return max(0.0, self._retry_at - self._clock())

    # --- looking after an attempt -------------------------------------------------------------------

    def _watch(self, attempt: _Attempt, now: float) -> None:
        since, patience = attempt.watch.silent_since, self._patience
        if attempt.watch.idle:
            self._note_idle(attempt.watch.problem)
        if since is None:
            return
        silent = now - since
        opened = attempt.opened_at is not None
        limit = patience.frame_seconds if opened else patience.open_seconds
        limit *= 1 if self._source.live else RECORDING_PATIENCE
        if silent > limit:
            self._abandon(attempt, limit)
        elif opened and self._is_stalled(silent):
            reason = _SILENCE.get(attempt.loss, "timeout")
            message = (
                f"stream {self._stream_id}: no picture for {self._patience.stalled_seconds:g} s"
            )
            self._change("stalled", reason, message)

    def _note_idle(self, problem: SourceError | None) -> None:
        """An open source that has nothing to play is as it should be, unless it says why not."""
        state = self.state.state
        if problem is None:
            if state != "online":
                self._change("online")
        elif "stalled" in TRANSITIONS[state]:
            message = f"stream {self._stream_id}: {problem}"
            self._change("stalled", problem.reason, message)

    def _is_stalled(self, silent: float) -> bool:
        live_and_well = self._source.live and self.state.state == "online"
        return live_and_well and silent > self._patience.stalled_seconds

    def _abandon(self, attempt: _Attempt, limit: float) -> None:
        reason = _SILENCE.get(attempt.loss, "timeout")
        opened = attempt.opened_at is not None
        what = "no picture for" if opened else "could not be opened within"
        message = f"stream {self._stream_id}: {what} {limit:g} s"
        self._buffer.counters.abandoned += 1
        self._give_up_attempt()
        self._settle(StreamState("error", reason, message))

    def _give_up_attempt(self) -> None:
        """Leave the attempt's thread to itself; it ends as soon as it notices."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        attempt.watch.stop()
        self._abandoned.append(attempt)

    def _retry(self, now: float) -> None:
        if now < self._retry_at:
            return
        if self.hung >= MOST_HUNG and self._fallback is None:
            if self.state.reason != "hung":
                self._change(
                    "offline",
                    "hung",
                    f"stream {self._stream_id}: {self.hung} decode threads hang inside FFmpeg; no "
                    "further one is risked until one returns",
                )
            return
        self._begin_again()

    def _begin_again(self) -> None:
        self._numbering.reopen()
        self._begin()

    def _begin(self) -> None:
        source = self._source
        if self._fallback is not None and self.hung >= MOST_HUNG:
            source = self._fallback
            log.warning(
                "stream %s: %d decode threads hang inside FFmpeg; it is tried in a process of its own",
                self._stream_id,
                self.hung,
            )
        watch = Watch(self._clock, self._demand)
        self._attempt = _Attempt(source, f"decode-{self._stream_id}", self._run, watch)
        self._attempt.thread.start()

    def _settle(self, outcome: StreamState) -> None:
        """An attempt is over: the end, or another one later."""
        missing = self._await_missing and outcome.reason == "not_found"
        if not self._source.live:  # nobody waits for a recording that is not there, but it may come
            self._buffer.finish()
        if self._stopped or not (self._source.live or missing):
            self._change(outcome.state, outcome.reason, outcome.message)
            self._buffer.finish()
            return
        now = self._clock()
        lost = self.state.state in ("online", "stalled")
        self._failed = 0 if lost else self._failed + 1
        if self._patience.attempts is not None and self._failed >= self._patience.attempts:
            message = f"{outcome.message}; not tried again after {self._failed} attempts"
            self._change("error", outcome.reason, message)
            self._buffer.finish()
            return
        self._change("reconnecting" if lost else "offline", outcome.reason, outcome.message)
        self._retry_at = now + retry_pause(self._patience, now - self._last_well, self._chance())

    def _change(self, state: State, reason: str = "", message: str = "") -> None:
        after = StreamState(state, reason, redact(message))  # it goes to the broker and the page
        if after == self.state:
            return
        assert state in TRANSITIONS[self.state.state], (self.state, after)
        self.state = after
        self._on_state(after)

    # --- on an attempt's thread ---------------------------------------------------------------------

    def _run(self, attempt: _Attempt) -> None:
        outcome = self._read(attempt)
        with self._lock:
            if attempt is self._attempt:
                self._attempt = None
                self._settle(outcome)

    def _read(self, attempt: _Attempt) -> StreamState:
        """Open the source and read to its end; how that went."""
        try:
            self._read_pictures(attempt)
        except SourceError as error:
            return StreamState("error", error.reason, f"stream {self._stream_id}: {error}")
        except Exception as error:  # a codec's or a plugin's: it must not end more than its stream
            details = redact(traceback.format_exc())
            log.debug("stream %s: the source failed\n%s", self._stream_id, details)
            message = f"stream {self._stream_id}: {type(error).__name__}: {redact(str(error))}"
            return StreamState("error", "internal", message)
        stopped = attempt.watch.stopped
        return StreamState("ended", "stopped" if stopped else "end_of_stream")

    def _read_pictures(self, attempt: _Attempt) -> None:
        started, epoch = self._clock(), 0
        first_pts: float | None = None

        def report(reason: DropReason) -> None:
            self._report_drop(attempt, reason)

        for picture in attempt.source.pictures(report, attempt.watch):
            attempt.watch.silent_since = None
            if first_pts is None:
                first_pts = picture.pts_seconds
            offset = picture.pts_seconds - first_pts
            if picture.epoch != epoch:  # a new recording, for which we may have waited
                started, epoch = self._clock() - offset, picture.epoch
            if self._paced:
                attempt.watch.wait(started + offset - self._clock())
            if not self._take(attempt, picture, offset):
                return
            attempt.watch.silent_since = self._clock()

    def _take(self, attempt: _Attempt, picture: Picture, offset: float) -> bool:
        """Put a picture into the buffer; False when the attempt is over."""
        if not self._source.live:  # it may wait for room; there is one attempt only
            return attempt is self._attempt and self._put(attempt, picture, offset)
        with self._lock:
            return attempt is self._attempt and self._put(attempt, picture, offset)

    def _put(self, attempt: _Attempt, picture: Picture, offset: float) -> bool:
        self._note_picture(attempt)
        return self._buffer.put(self._frame(picture, offset)) and not attempt.watch.stopped

    def _note_picture(self, attempt: _Attempt) -> None:
        now, attempt.loss = self._clock(), ""
        attempt.watch.idle, attempt.watch.problem = False, None
        if attempt.opened_at is None:
            attempt.opened_at = now
        elif now - attempt.opened_at > WELL_SECONDS:
            self._last_well = now
        if self.state.state != "online":
            with self._lock:
                self._failed = 0
                self._change("online")

    def _frame(self, picture: Picture, offset: float) -> Frame:
        """Number and stamp a picture; `offset` is its time since the first of its opening."""
        self._check(picture.image)
        self._buffer.counters.seen()
        place = self._numbering.place(offset, picture.epoch)
        self._buffer.counters.reconnects += place.rejoins
        now, wall = self._clock(), self._wall_clock
        info = FrameInfo(
            stream_id=self._stream_id,
            index=place.index,
            pts_seconds=place.pts_seconds,
            captured_at=wall() - picture.lag_seconds if wall else place.pts_seconds,
            label=picture.label,
            size=picture.size,
            decoder=picture.decoder,
            epoch=place.epoch,
            dropped_before=place.dropped_before,
            media=picture.media,
            expires_at=now - picture.lag_seconds + self._max_age,
            shown=self._to_show(picture),
        )
        return Frame(info, picture.image)

    def _check(self, image: Image | Tensor) -> None:
        """What does not fit must end here: in the engine it would end every stream."""
        kind, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
        if self._shape is not None and (kind, shape) != ("uint8", self._shape):
            raise SourceError(
                f"the source gave a picture of {kind} {list(shape)}; the network takes uint8 "
                f"{list(self._shape)}",
                reason="invalid_data",
            )

    def _to_show(self, picture: Picture) -> Image | None:
        """The picture for people, if one is wanted: at worst what the network sees."""
        if self._demand.served or not self._demand.takes_one_to_show():
            return picture.shown
        image = picture.image
        return image.copy() if isinstance(image, np.ndarray) else image.cpu().numpy()

    def _report_drop(self, attempt: _Attempt, reason: DropReason) -> None:
        with self._lock:
            if attempt is self._attempt or not self._source.live:
                attempt.loss = reason
                self._buffer.counters.seen()
                self._buffer.counters.drop(reason)
                self._numbering.lose()
