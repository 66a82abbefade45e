from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest

from streamexit.budget.controller import BudgetController
from streamexit.budget.terms import Terms
from streamexit.engine.engine import Engine, PipelineLane
from streamexit.engine.worker import EngineWorker, Feed
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
        feeds.append(Feed(stream, buffer, weight))
    worker = EngineWorker(
        engine, feeds, hold_recordings=lambda: False, clock=time.monotonic, on_failure=print
    )
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
        [],
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


def test_a_fast_recording_leaves_room_for_cameras() -> None:
    """Recordings do not fill a slow network so far that frames of a camera would come too late."""
    clock = ManualClock()
    delivered: list[str] = []
    done = threading.Event()

    def deliver(record: ExitRecord) -> None:
        delivered.append(record.frame.stream_id)
        if delivered.count("camera") == FRAMES:
            done.set()

    def pass_time() -> None:
        clock.advance(0.05)  # that each batch takes

    backend = ScriptedBackend(sizes=(1, 1, 1), on_submit=pass_time)
    engine = Engine(deliver, clock=clock)
    lane = PipelineLane(backend, ClassificationTask(labels=("zero", "one", "two")), COSTS)
    feeds = []
    for name, live in (("recording", False), ("camera", True)):
        counters = StreamCounters()
        buffer = FrameBuffer(capacity=20 * FRAMES, live=live, counters=counters)
        for i in range(FRAMES if live else 20 * FRAMES):
            counters.seen()
            expires_at = 1.0 + 0.2 * i if live else math.inf
            info = FrameInfo(name, i, 0.0, 0.0, expires_at=expires_at)
            buffer.put(Frame(info, np.array([[[99, 99, 99]]], np.uint8)))
        controller = BudgetController(TABLE, Terms(0.5))
        feeds.append(
            Feed(engine.add_stream(name, lane, controller, counters, max_wait=0.0), buffer)
        )
    worker = EngineWorker(
        engine, feeds, hold_recordings=lambda: False, clock=clock, on_failure=print
    )
    worker.start()
    answered = done.wait(20.0)
    worker.stop()
    assert worker.join(20.0)
    assert answered
    assert feeds[1].buffer.counters.dropped["too_old"] == 0
