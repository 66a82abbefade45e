"""The two bounded queues between threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamexit.exits import ExitRecord
from streamexit.frame import Frame, FrameInfo
from streamexit.metrics import StreamCounters
from streamexit.prediction import Classification
from streamexit.queues import FrameBuffer, Outbox

PATIENCE = 20.0
IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(index: int, dropped_before: int = 0) -> Frame:
    """A frame of which only the number matters."""
    return Frame(FrameInfo("s", index, index / 25, 0.0, dropped_before=dropped_before), IMAGE)


def buffer(capacity: int, *, live: bool, wake: Callable[[], None] = lambda: None) -> FrameBuffer:
    """A buffer with counters of its own."""
    return FrameBuffer(capacity=capacity, live=live, counters=StreamCounters(), wake=wake)


@contextmanager
def beside(work: Callable[[], None], closes: FrameBuffer) -> Iterator[threading.Thread]:
    """Run `work` in a thread; whatever happens, close the buffer in the end so that nothing hangs."""
    thread = threading.Thread(target=work, daemon=True)
    rescue = threading.Timer(PATIENCE, closes.close)
    rescue.daemon = True
    rescue.start()
    thread.start()
    try:
        yield thread
        thread.join(PATIENCE)
        assert not thread.is_alive()
    finally:
        rescue.cancel()
        closes.close()


def indices(source: FrameBuffer) -> list[int]:
    """Take all that is here."""
    return [f.info.index for f in iter(source.take, None)]


OPERATIONS = st.lists(st.one_of(st.just("take"), st.integers(0, 3)), max_size=60)


@given(st.integers(1, 5), OPERATIONS)
def test_a_live_buffer_keeps_order_and_accounts_for_every_drop(
    capacity: int, operations: list[str | int]
) -> None:
    """However puts and takes interleave, order is kept and each gap is told to the next frame."""
    queue = buffer(capacity, live=True)
    source_drops: list[int] = []
    taken: list[Frame] = []
    for operation in operations:
        if isinstance(operation, int):
            assert queue.put(frame(len(source_drops), operation))
            source_drops.append(operation)
        elif (head := queue.take()) is not None:
            taken.append(head)
        assert queue.statistics().length <= capacity
    taken += iter(queue.take, None)
    expected_next = 0
    for got in taken:
        index = got.info.index
        assert index >= expected_next
        lost = index - expected_next + sum(source_drops[expected_next : index + 1])
        assert got.info.dropped_before == lost
        expected_next = index + 1
    assert expected_next == len(source_drops)  # the newest frame is never the one that goes
    lost_here = len(source_drops) - len(taken)
    assert queue.statistics().dropped == queue.counters.dropped["buffer_full"] == lost_here


def test_a_full_live_buffer_keeps_the_newest() -> None:
    """A live source that outruns its consumer loses its oldest frames and never waits."""
    queue = buffer(3, live=True)
    for i in range(10):
        assert queue.put(frame(i))
    first = queue.take()
    assert first is not None
    assert (first.info.index, first.info.dropped_before) == (7, 7)
    assert indices(queue) == [8, 9]
    statistics = queue.statistics()
    assert (statistics.length, statistics.capacity) == (0, 3)
    assert (statistics.peak, statistics.dropped) == (3, 7)


def test_a_recording_waits_for_room() -> None:
    """A recording goes through a small buffer whole, in order, and never overfills it."""
    queue = buffer(2, live=False)

    def produce() -> None:
        for i in range(100):
            queue.put(frame(i))
        queue.finish()

    with beside(produce, queue):
        got = [f.info.index for f in iter(queue.wait, None)]
    assert got == list(range(100))
    assert queue.statistics().peak <= 2
    assert queue.counters.dropped.total() == 0


def test_close_frees_a_waiting_producer() -> None:
    """Closing drops what is here, refuses what comes, frees the producer and counts all of it."""
    filled = threading.Event()
    queue = buffer(1, live=False, wake=filled.set)
    accepted: list[bool] = []

    def produce() -> None:
        accepted.extend([queue.put(frame(i)) for i in range(3)])

    with beside(produce, queue):
        assert filled.wait(PATIENCE)
        queue.close()
    assert accepted == [True, False, False]
    assert queue.counters.dropped == {"stopped": 3}
    assert queue.take() is None
    assert queue.wait() is None
    assert queue.exhausted


@pytest.mark.parametrize("end", ["finish", "close"])
def test_the_end_frees_a_waiting_consumer(end: str) -> None:
    """A consumer that waits on an empty buffer gets None once the stream is over."""
    queue = buffer(1, live=False)
    got: list[Frame | None] = []
    with beside(lambda: got.append(queue.wait()), queue):
        if end == "finish":
            queue.finish()
        else:
            queue.close()
    assert got == [None]


def test_frames_put_before_the_end_are_still_to_be_had() -> None:
    """Finishing loses nothing; the buffer is exhausted only once its last frame was taken."""
    queue = buffer(5, live=True)
    queue.put(frame(0))
    assert not queue.exhausted
    queue.finish()
    assert not queue.exhausted
    head = queue.wait()
    assert head is not None
    assert head.info.index == 0
    assert queue.exhausted
    assert queue.wait() is None


def test_the_consumer_is_woken_for_frames_and_for_the_end() -> None:
    """Each put, the finish and the close wake the consumer."""
    calls: list[None] = []
    queue = buffer(5, live=True, wake=lambda: calls.append(None))
    seen = []
    for act in (lambda: queue.put(frame(0)), queue.finish, queue.close):
        act()
        seen.append(len(calls))
    assert seen == [1, 2, 3]


def record(index: int) -> ExitRecord:
    """A result of which only the number matters."""
    answer = Classification("ant", 0, 1.0, (("ant", 1.0),))
    return ExitRecord(frame(index).info, index, 0, 0.5, 1.0, answer, 0.0, 0.0)


def taken(outbox: Outbox, most: int) -> list[ExitRecord]:
    """Up to `most` results, oldest first."""
    return [r for _ in range(most) if (r := outbox.take()) is not None]


def test_results_leave_the_outbox_in_order_and_in_portions() -> None:
    """Draining takes the oldest results, no more than asked for, and leaves the others."""
    wakes: list[None] = []
    outbox = Outbox(capacity=10, wake=lambda: wakes.append(None))
    for i in range(5):
        outbox.put(record(i))
    assert [r.seq for r in taken(outbox, 3)] == [0, 1, 2]
    outbox.put(record(5))
    assert len(wakes) == 1  # whoever takes goes on until there is nothing
    assert [r.seq for r in taken(outbox, 100)] == [3, 4, 5]
    assert outbox.take() is None
    outbox.put(record(6))
    assert len(wakes) == 2


def test_a_full_outbox_drops_the_oldest_result_and_counts_it() -> None:
    """Nobody waits for a slow broker: the oldest results go, and the statistics say how many."""
    outbox = Outbox(capacity=3, wake=lambda: None)
    for i in range(8):
        outbox.put(record(i))
    statistics = outbox.statistics()
    assert (statistics.length, statistics.peak, statistics.dropped) == (3, 3, 5)
    assert [r.seq for r in taken(outbox, 10)] == [5, 6, 7]
    assert outbox.statistics().length == 0


def test_an_outbox_is_crowded_when_more_than_half_full() -> None:
    """The sign to hold recordings back comes while there is room left, and goes with draining."""
    outbox = Outbox(capacity=4, wake=lambda: None)
    crowded = []
    for i in range(4):
        outbox.put(record(i))
        crowded.append(outbox.crowded)
    assert crowded == [False, False, True, True]
    taken(outbox, 2)
    assert not outbox.crowded


def test_frames_that_have_expired_are_dropped_when_they_are_taken() -> None:
    """The next one knows how many, also if it comes later; one that is in time is taken."""
    frames = buffer(10, live=True)
    for i, expires_at in enumerate((1.0, 1.0, 5.0)):
        old = frame(i, dropped_before=1)
        old.info.expires_at = expires_at
        frames.put(old)
    first = frames.take(now=2.0)
    assert first is not None
    assert (first.info.index, first.info.dropped_before) == (2, 5)
    late = frame(3)
    late.info.expires_at = 1.0
    frames.put(late)
    assert frames.take(now=2.0) is None
    frames.put(frame(4))
    last = frames.take(now=2.0)
    assert last is not None
    assert (last.info.index, last.info.dropped_before) == (4, 1)
    assert frames.counters.dropped == {"too_old": 3}
    assert frames.statistics().dropped == 0  # not for want of room
