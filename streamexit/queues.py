"""The two places where threads meet: frames on their way in, results on their way out.

Both are bounded, and both can say how full they were.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streamexit.exits import ExitRecord
from streamexit.frame import Frame
from streamexit.metrics import DropReason, StreamCounters


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """How full a queue is and was.

    Attributes:
        length: Now.
        capacity: At most.
        peak: The largest length so far.
        dropped: Items thrown away because it was full.
    """

    length: int
    capacity: int
    peak: int
    dropped: int


class FrameBuffer:
    """Frames of one stream between its decode thread and the engine thread.

    A live source never waits: its oldest frame is dropped and counted. A recording waits.

    Args:
        capacity: In frames.
        live: Which of the two.
        counters: Where drops are counted.
        wake: Called after each change that the consumer may be waiting for.
    """

    def __init__(
        self,
        *,
        capacity: int,
        live: bool,
        counters: StreamCounters,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.live = live
        self.counters = counters
        self._capacity = capacity
        self._wake = wake
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._closed = False
        self._waiting = False
        self._peak = 0
        self._owed = 0

    def put(self, frame: Frame) -> bool:
        """Add a frame; False when the buffer was closed and the frame not taken."""
        with self._changed:
            if len(self._frames) >= self._capacity:
                if self.live:
                    self._drop_oldest("buffer_full")
                else:
                    self._wait_for_room()
            if self._closed:
                self.counters.drop("stopped")
                return False
            frame.info.dropped_before += self._owed
            self._owed = 0
            self._frames.append(frame)
            self._peak = max(self._peak, len(self._frames))
            self._changed.notify_all()
        self._wake()
        return True

    def _wait_for_room(self) -> None:
        """Wait until half of the room is free.

        Decoding several frames in a row costs less: the threads change places less often.
        """
        self._waiting = True
        while len(self._frames) > self._capacity // 2 and not self._closed:
            self._changed.wait()
        self._waiting = False

    def take(self, now: float = -math.inf) -> Frame | None:
        """The oldest frame, or None when there is none right now.

        Args:
            now: Monotonic time in seconds; frames that have expired by then are dropped, `too_old`.
        """
        if not self._frames:  # the common answer, and without the lock as true as with it
            return None
        with self._changed:
            while self._frames and self._frames[0].info.expires_at < now:
                self._drop_oldest("too_old")
            if not self._frames:
                return None
            frame = self._frames.popleft()
            if self._waiting and len(self._frames) <= self._capacity // 2:
                self._changed.notify_all()
            return frame

    def wait(self) -> Frame | None:
        """The oldest frame, as soon as there is one; None at the end of the stream."""
        with self._changed:
            while not self._frames and not self._finished and not self._closed:
                self._changed.wait()
        return self.take()

    def finish(self) -> None:
        """Say that no more frames will be put; those here are still to be taken."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
        self._wake()

    def close(self) -> None:
        """Drop what is here, refuse what comes, and free a waiting producer."""
        with self._changed:
            self._closed = True
            self._finished = True
            if self._frames:
                self.counters.drop("stopped", len(self._frames))
                self._frames.clear()
            self._changed.notify_all()
        self._wake()

    @property
    def exhausted(self) -> bool:
        """Whether nothing is here and nothing will come."""
        return self._finished and not self._frames

    def statistics(self) -> QueueStatistics:
        """How full this buffer is and was."""
        dropped = self.counters.dropped["buffer_full"]
        return QueueStatistics(len(self._frames), self._capacity, self._peak, dropped)

    def _drop_oldest(self, reason: DropReason) -> None:
        """Drop a frame, and tell the one after it, which may yet have to come."""
        gone = self._frames.popleft().info.dropped_before + 1
        if self._frames:
            self._frames[0].info.dropped_before += gone
        else:
            self._owed += gone
        self.counters.drop(reason)


class Outbox:
    """Results between the engine thread and the event loop, in frame order per stream.

    Bounded: when full the oldest result goes and is counted. `crowded` tells the engine to admit
    no more frames of recordings, so that a slow broker holds a recording back instead of losing
    its results; cameras cannot be held back.

    Args:
        capacity: In results.
        wake: Called when there is something again after there was nothing; must be safe to call from any thread.

    Attributes:
        came: Results that were put in so far.
        gone: Of these, taken or dropped.
    """

    def __init__(self, *, capacity: int, wake: Callable[[], None]) -> None:
        self._capacity = capacity
        self._wake = wake
        self._records: deque[ExitRecord] = deque()
        self._lock = threading.Lock()
        self._peak = 0
        self._dropped = 0
        self.came = 0
        self.gone = 0

    def put(self, record: ExitRecord) -> None:
        """Add a result; never waits."""
        with self._lock:
            was_empty = not self._records
            if len(self._records) >= self._capacity:
                self._records.popleft()
                self._dropped += 1
                self.gone += 1
            self._records.append(record)
            self.came += 1
            self._peak = max(self._peak, len(self._records))
        if was_empty:  # else whoever takes has not yet seen the end
            self._wake()

    def take(self) -> ExitRecord | None:
        """The oldest result, or None when there is none right now."""
        with self._lock:
            if not self._records:
                return None
            self.gone += 1
            return self._records.popleft()

    @property
    def crowded(self) -> bool:
        """Whether more than half of the room is taken."""
        return 2 * len(self._records) > self._capacity

    def statistics(self) -> QueueStatistics:
        """How full the outbox is and was."""
        return QueueStatistics(len(self._records), self._capacity, self._peak, self._dropped)
