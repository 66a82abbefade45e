from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from streamexit.budget.controller import BudgetController
from streamexit.budget.terms import Terms
from streamexit.engine.engine import Engine
from streamexit.engine.lanes import PipelineLane
from streamexit.engine.worker import EngineWorker, Feed
from streamexit.errors import OperationError
from streamexit.exits import ExitRecord
from streamexit.frame import Frame, FrameInfo
from streamexit.metrics import StreamCounters
from streamexit.queues import FrameBuffer
from streamexit.tasks.classification import ClassificationTask
from streamexit.testing import ManualClock
from tests.engine.test_engine import COSTS, TABLE, ScriptedBackend

FRAMES = 20


def test_the_heaviest_streams_go_first() -> None:
    """When more waits than the engine takes, the light streams wait longer, whatever their order."""
    delivered: list[str] = []
    done = threading.Event()

    def deliver(record: ExitRecord) -> None:
        delivered.append(record.frame.stream_id)
        if len(delivered) == 4 * FRAMES:
            done.set()

    engine = Engine(deliver, clock=time.monotonic)
    task = ClassificationTask(labels=("zero", "one", "two"))
    lane = PipelineLane(ScriptedBackend(sizes=(1, 1, 1)), task, COSTS)
    feeds = []
    for name, weight in (("light", 0.5), ("heavy", 3.0), ("also light", 0.5), ("plain", 1.0)):
        counters = StreamCounters()
        buffer = FrameBuffer(capacity=FRAMES, live=False, counters=counters)
        for i in range(FRAMES):
            counters.seen()
            buffer.put(Frame(FrameInfo(name, i, 0.0, 0.0), np.array([[[99, 99, 99]]], np.uint8)))
        buffer.finish()
        controller = BudgetController(TABLE, Terms(0.5))
        stream = engine.add_stream(name, lane, controller, counters, max_wait=0.0, weight=weight)
        feeds.append(Feed(stream, buffer))
    worker = EngineWorker(
        engine, hold_recordings=lambda: False, clock=time.monotonic, on_failure=print
    )
    for feed in feeds:
        worker.add(feed)
    worker.start()
    assert done.wait(30)
    worker.stop()
    assert worker.join(30)
    few = lane.capacity  # that are inside already are not overtaken
    assert delivered[: FRAMES - few].count("heavy") == FRAMES - few
    assert "heavy" not in delivered[FRAMES + few :]
    assert not any("light" in name for name in delivered[: 2 * FRAMES - few])
    assert delivered[2 * FRAMES + few :].count("light") == (2 * FRAMES - few) // 2


def test_calls_are_made_on_the_engines_thread() -> None:
    """Their results come back, their errors too, and neither stops the engine."""
    failures: list[BaseException] = []
    worker = EngineWorker(
        Engine(print, clock=time.monotonic),
        hold_recordings=lambda: False,
        clock=time.monotonic,
        on_failure=failures.append,
    )
    worker.start()
    assert worker.call(lambda: threading.current_thread().name).result(30) == "engine"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result(30)
    assert worker.call(lambda: 7).result(30) == 7
    last = worker.call(lambda: "at the end")
    worker.stop()
    assert worker.join(30)
    assert last.result(0) == "at the end"
    assert not failures


def test_a_call_that_was_cancelled_is_not_made() -> None:
    """Whoever asked has gone; the engine goes on."""
    failures: list[BaseException] = []
    worker = EngineWorker(
        Engine(print, clock=time.monotonic),
        hold_recordings=lambda: False,
        clock=time.monotonic,
        on_failure=failures.append,
    )
    made: list[int] = []
    assert worker.call(lambda: made.append(1)).cancel()
    worker.start()
    assert worker.call(lambda: 7).result(30) == 7
    worker.stop()
    assert worker.join(30)
    assert not made
    assert not failures


def test_calls_after_the_end_fail_at_once() -> None:
    """Nobody is there to make them, and nobody is to wait for that."""
    worker = EngineWorker(
        Engine(print, clock=time.monotonic),
        hold_recordings=lambda: False,
        clock=time.monotonic,
        on_failure=print,
    )
    worker.start()
    worker.stop()
    assert worker.join(30)
    with pytest.raises(OperationError, match="the engine has ended"):
        worker.call(lambda: 7).result(0)


def test_a_failure_closes_the_books_and_leaves_nobody_waiting() -> None:
    """Frames inside count as dropped, though the device says nothing more; calls that wait fail."""
    failures: list[BaseException] = []
    failed = threading.Event()
    engine = Engine(print, clock=time.monotonic)
    task = ClassificationTask(labels=("zero", "one", "two"))
    backend = ScriptedBackend(sizes=(1, 1, 1), depth=2, ready=False)
    lane = PipelineLane(backend, task, COSTS)
    counters = StreamCounters()
    buffer = FrameBuffer(capacity=FRAMES, live=False, counters=counters)
    for i in range(FRAMES):
        counters.seen()
        buffer.put(Frame(FrameInfo("a", i, 0.0, 0.0), np.array([[[99, 99, 99]]], np.uint8)))
    stream = engine.add_stream(
        "a", lane, BudgetController(TABLE, Terms(0.5)), counters, max_wait=0.0
    )

    def fail(error: BaseException) -> None:
        failures.append(error)
        failed.set()

    worker = EngineWorker(
        engine, hold_recordings=lambda: False, clock=time.monotonic, on_failure=fail
    )
    worker.add(Feed(stream, buffer))
    asked: list[Future[int]] = []

    def break_down() -> None:
        if len(backend.batches) == 2:  # the first is still on the device
            asked.append(worker.call(lambda: 7))
            backend.gone = True
            raise RuntimeError("the device is gone")

    backend.on_submit = break_down
    worker.start()
    assert failed.wait(30)
    assert worker.join(30)
    buffer.close()
    assert [str(error) for error in failures] == ["the device is gone"]
    assert counters.in_flight == 0
    assert counters.dropped == {"stopped": FRAMES}
    with pytest.raises(OperationError, match="the engine has ended"):
        asked[0].result(0)


@pytest.mark.parametrize("beside_a_camera", [False, True])
def test_recordings_yield_to_cameras(beside_a_camera: bool) -> None:
    """On a network with a second's work inside, only where a camera needs to pass; the camera may."""
    clock = ManualClock()
    task = ClassificationTask(labels=("zero", "one", "two"))
    lane = PipelineLane(ScriptedBackend(), task, COSTS)
    for _ in range(100):  # it takes a second for each row
        lane.came(clock.now)
        clock.advance(1.0)
        lane.left(1, clock.now)
    lane.came(clock.now)
    engine, feeds = Engine(print, clock=clock), {}
    for name in ("recording", "camera"):
        counters = StreamCounters()
        buffer = FrameBuffer(capacity=4, live=name == "camera", counters=counters)
        counters.seen()
        buffer.put(Frame(FrameInfo(name, 0, 0.0, 0.0), np.array([[[99, 99, 99]]], np.uint8)))
        stream = engine.add_stream(
            name, lane, BudgetController(TABLE, Terms(0.5)), counters, max_wait=0.0
        )
        feeds[name] = Feed(stream, buffer)
    there = list(feeds.values()) if beside_a_camera else [feeds["recording"]]
    worker = EngineWorker(engine, hold_recordings=lambda: False, clock=clock, on_failure=print)
    for feed in there:
        worker.add(feed)
    assert (worker._take(feeds["recording"], hold=False) is None) == beside_a_camera
    assert worker._take(feeds["camera"], hold=False) is not None
