"""The engine thread: moves frames from the streams' buffers into the engine, and runs it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from streamexit.budget.status import BudgetStatus
from streamexit.engine.engine import Engine
from streamexit.engine.lanes import PipelineLane, StreamLane
from streamexit.errors import OperationError
from streamexit.frame import Frame
from streamexit.queues import FrameBuffer

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SNAPSHOT_EVERY_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 0.2
EXPECTATION_MARGIN = 2.0
"""A frame is taken in only if it would be in time even if it took so many times as long as expected:
one that expires on its way has cost compute for nothing."""

YIELD_SECONDS = 0.2
"""Where cameras share a network with recordings, these fill it with so much work at most."""

GLANCE_SECONDS = 0.001
"""How often the device is looked at while it has work but room for more, too."""


@dataclass(frozen=True, slots=True)
class Feed:
    """A stream's way into the engine.

    Live streams go first, the heaviest before the others, so that an overload drops frames of the
    lightest; recordings can wait.

    Attributes:
        lane: Its own.
        buffer: Where its frames wait.
    """

    lane: StreamLane
    buffer: FrameBuffer


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """What other threads may know of the engine; made on its thread, a few times a second.

    Attributes:
        budgets: Per stream.
        rows_waiting: Frames inside the engine.
        busy_seconds: In which the device had something to do, since the start.
        idle: Whether every stream has ended and every frame is answered.
    """

    budgets: dict[str, BudgetStatus]
    rows_waiting: int
    idle: bool
    busy_seconds: float = 0.0


class EngineWorker:
    """One thread that owns networks, thresholds and controllers of a device.

    Nobody else touches them: other threads read `snapshot`, which is replaced whole.

    Args:
        engine: Owned by the thread from `start` on.
        hold_recordings: Whether results pile up downstream; recordings are then held back.
        clock: Seconds, monotonic.
        on_failure: Called from the thread if the engine breaks; the thread then ends.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        hold_recordings: Callable[[], bool],
        clock: Callable[[], float],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._feeds: list[Feed] = []
        self._hold_recordings = hold_recordings
        self._clock = clock
        self._on_failure = on_failure
        self._wake = threading.Event()
        self._stopping = False
        self._given_up = False
        self._tiers: list[deque[Feed]] = []
        self._lanes_of_cameras: list[PipelineLane] = []
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._ended = False
        self._snapshot_due = 0.0
        self.snapshot = EngineSnapshot({}, 0, False)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Something changed that the engine may be waiting for. Safe from any thread."""
        self._wake.set()

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Have something done on the engine's thread, between two batches. Safe from any thread.

        Once that thread has ended, the future holds an `OperationError`.
        """
        future: Future[Result] = Future()
        self._calls.append((future, work))
        if self._ended:  # else that thread finds it, before its end or at it
            self._refuse_calls()
        self._wake.set()
        return future

    def add(self, feed: Feed) -> None:
        """Take frames of another stream in, too. On the engine's thread, or before it has started."""
        self._feeds.append(feed)
        self._find_tiers()

    def remove(self, feed: Feed) -> bool:
        """Let go of a stream whose buffer was closed; False while frames of it are inside.

        On the engine's thread.
        """
        if not self._engine.remove_stream(feed.lane):
            return False
        if feed in self._feeds:
            self._feeds.remove(feed)
            self._find_tiers()
            self._take_snapshot()
        return True

    def stop(self) -> None:
        """Answer what is in the engine, take in nothing more, and end."""
        self._stopping = True
        self._wake.set()

    def give_up(self) -> None:
        """After `stop`: answer no more than the batch that is running; the rest counts as dropped."""
        self._given_up = True

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the thread; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._find_tiers()
        try:
            while not self._stopping:
                self._turn()
            while not self._given_up and self._engine.step(flush=True):
                pass
            self._engine.drop_rest()
            self._do_calls()
            self._engine.check_integrity()
            self._take_snapshot()
        except Exception as error:  # the thread's edge: somebody has to hear of it
            log.debug("the engine failed", exc_info=error)
            self._engine.drop_rest(wait=False)  # the device may not answer any more
            self._on_failure(error)
        finally:
            self._ended = True
            self._refuse_calls()

    def _refuse_calls(self) -> None:
        """On the thread that ends, or on one that asks later; on both at once, too."""
        with contextlib.suppress(IndexError):
            while True:
                future, _ = self._calls.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(OperationError("the engine has ended"))

    def _find_tiers(self) -> None:
        ranks = sorted({_rank(feed) for feed in self._feeds}, reverse=True)
        self._tiers = [deque(f for f in self._feeds if _rank(f) == rank) for rank in ranks]
        self._lanes_of_cameras = [f.lane.pipeline for f in self._feeds if f.buffer.live]

    def _turn(self) -> None:
        self._wake.clear()
        self._do_calls()
        admitted = self._admit()
        worked = self._engine.step(wait="unless_busy")
        now = self._clock()
        if now >= self._snapshot_due:
            self._take_snapshot()
            self._snapshot_due = now + SNAPSHOT_EVERY_SECONDS
        if not admitted and not worked:
            if not self._engine.in_flight:
                self._engine.check_integrity()
            self._wake.wait(self._patience(now))

    def _do_calls(self) -> None:
        while self._calls:
            future, work = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:  # it is the caller's
                future.set_exception(error)

    def _admit(self) -> bool:
        """Take frames in until the lanes are full or the buffers empty, of the heaviest streams first."""
        hold = self._hold_recordings()
        admitted = False
        for tier in self._tiers:
            admitted |= self._admit_in_turn(tier, hold)
        return admitted

    def _admit_in_turn(self, turns: deque[Feed], hold: bool) -> bool:
        """One frame of each stream in turn."""
        admitted = False
        misses = 0
        while misses < len(turns):
            feed = turns[0]
            turns.rotate(-1)
            frame = self._take(feed, hold)
            if frame is None:
                misses += 1
            else:
                self._engine.admit(feed.lane, frame)
                admitted, misses = True, 0
        return admitted

    def _take(self, feed: Feed, hold: bool) -> Frame | None:
        lane = feed.lane.pipeline
        if not lane.has_room or (not feed.buffer.live and (hold or self._must_yield(lane))):
            return None
        expected = feed.lane.pipeline.expected_latency
        return feed.buffer.take(self._clock() + EXPECTATION_MARGIN * expected)

    def _must_yield(self, lane: PipelineLane) -> bool:
        """Whether recordings wait, so that they do not fill a lane that cameras need to pass."""
        return lane in self._lanes_of_cameras and lane.expected_latency > YIELD_SECONDS

    def _patience(self, now: float) -> float:
        if self._engine.in_flight:
            return GLANCE_SECONDS
        due = self._engine.next_due()
        return (
            LONGEST_WAIT_SECONDS if due is None else max(0.0, min(due - now, LONGEST_WAIT_SECONDS))
        )

    def _take_snapshot(self) -> None:
        load = self._engine.load
        self.snapshot = EngineSnapshot(
            budgets={f.lane.stream_id: f.lane.controller.status for f in self._feeds},
            rows_waiting=load,
            idle=not load and all(feed.buffer.exhausted for feed in self._feeds),
            busy_seconds=self._engine.busy_seconds,
        )


def _rank(feed: Feed) -> tuple[bool, float]:
    return feed.buffer.live, feed.lane.weight
