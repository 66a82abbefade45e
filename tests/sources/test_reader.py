"""The decode thread: numbering, states, reconnecting, and where every frame went."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path

import pytest

from streamexit.errors import SourceError
from streamexit.frame import FrameInfo
from streamexit.metrics import StreamCounters
from streamexit.queues import FrameBuffer
from streamexit.sources.addresses import parse_address
from streamexit.sources.joined import JoinedSource
from streamexit.sources.life import Patience, StreamState
from streamexit.sources.reader import Pace, Reader
from streamexit.sources.source import DropReport, Picture, Source, Watch
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING, ListSource, toy_pictures

PATIENCE = 20.0


@dataclass
class Reading:
    """A reader at work, with all that it says."""

    reader: Reader
    buffer: FrameBuffer
    states: list[StreamState] = field(default_factory=list)

    def frames(self) -> Iterator[FrameInfo]:
        """What arrives, until the end."""
        return (frame.info for frame in iter(self.buffer.wait, None))


@contextmanager
def reading(
    source: Source,
    *,
    capacity: int = 500,
    pace: Pace = "fast",
    wall_clock: Callable[[], float] | None = None,
) -> Iterator[Reading]:
    """Start a reader, and end it in any case; a watchdog closes the buffer if nothing comes."""
    states: list[StreamState] = []
    buffer = FrameBuffer(capacity=capacity, live=source.live, counters=StreamCounters())
    reader = Reader(
        "cam",
        source,
        buffer,
        on_state=states.append,
        pace=pace,
        wall_clock=wall_clock,
        patience=Patience(first_retry_seconds=0.01),
    )
    ended = threading.Event()

    def look_after() -> None:
        while not ended.wait(0.01):
            reader.tick()

    keeper = threading.Thread(target=look_after, daemon=True)
    keeper.start()
    watchdog = threading.Timer(PATIENCE, buffer.close)
    watchdog.daemon = True
    watchdog.start()
    reader.start()
    try:
        yield Reading(reader, buffer, states)
    finally:
        ended.set()
        keeper.join(PATIENCE)
        reader.stop()
        buffer.close()
        watchdog.cancel()
        assert reader.join(PATIENCE)


class Lossy:
    """A plugin's source that loses every third frame, the last one included, and may break."""

    live = False

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """See `Source`."""
        for i, picture in enumerate(toy_pictures(12)):
            if i % 3 == 2:
                report("decode_error")
            else:
                yield picture
        if self._error:
            raise self._error


def test_a_recording_is_numbered_labelled_and_ends() -> None:
    """Frames of a recording come whole, in order, numbered from 0, with their true labels."""
    pictures = toy_pictures(20)
    with reading(ListSource(pictures), capacity=2) as run:
        frames = list(run.frames())
        assert run.reader.join(PATIENCE)
        assert [f.index for f in frames] == list(range(20))
        assert [f.label for f in frames] == [p.label for p in pictures]
        assert [f.pts_seconds for f in frames] == [p.pts_seconds for p in pictures]
        assert {(f.stream_id, f.epoch, f.dropped_before) for f in frames} == {("cam", 0, 0)}
        assert [s.state for s in run.states] == ["connecting", "online", "ended"]
        assert run.states[-1].reason == "end_of_stream"
        assert run.buffer.exhausted


def test_times_start_at_zero() -> None:
    """A recording whose own clock starts elsewhere starts at 0 on the stream's time line."""
    pictures = [Picture(p.image, p.pts_seconds + 90000.0) for p in toy_pictures(3)]
    with reading(ListSource(pictures)) as run:
        assert [f.pts_seconds for f in run.frames()] == pytest.approx([0.0, 0.04, 0.08])


@pytest.mark.parametrize(
    ("wall_clock", "expected"), [(None, [0.0, 0.04]), (lambda: 7.0, [7.0] * 2)]
)
def test_capture_times_come_from_the_given_clock(
    wall_clock: Callable[[], float] | None, expected: list[float]
) -> None:
    """Frames are stamped by the clock, or in a replay, reproducibly, by their own times."""
    with reading(ListSource(toy_pictures(2)), wall_clock=wall_clock) as run:
        assert [f.captured_at for f in run.frames()] == pytest.approx(expected)


def test_losses_are_passed_on_and_the_books_balance() -> None:
    """Frames that the source lost are counted and told to the next frame that comes."""
    with reading(Lossy()) as run:
        frames = list(run.frames())
        assert [f.index for f in frames] == list(range(8))
        assert [f.dropped_before for f in frames] == [0, 0, 1, 0, 1, 0, 1, 0]
        counters = run.buffer.counters
        assert counters.frames == 12
        assert counters.dropped == {"decode_error": 4}
        assert counters.in_flight == len(frames)


def test_a_recording_that_breaks_delivers_what_came_before_and_is_in_error() -> None:
    """The frames before a break arrive; the state says in words and in one word what happened."""
    error = SourceError("tape torn", reason="no_frames")
    with reading(ListSource(toy_pictures(3), error=error)) as run:
        assert len(list(run.frames())) == 3
        assert run.reader.join(PATIENCE)
        assert [s.state for s in run.states] == ["connecting", "online", "error"]
        assert run.states[-1].reason == "no_frames"
        assert "cam" in run.states[-1].message
        assert "tape torn" in run.states[-1].message


def test_a_failing_plugin_ends_its_own_stream_only_and_leaks_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any exception of a source becomes an error state; neither it nor the log shows passwords."""
    error = RuntimeError("no route to rtsp://root:alpha@camera/1")
    caplog.set_level(logging.DEBUG)
    with reading(Lossy(error)) as run:
        assert len(list(run.frames())) == 8
        assert run.reader.join(PATIENCE)
        final = run.states[-1]
        assert (final.state, final.reason) == ("error", "internal")
        assert "RuntimeError" in final.message
        assert "camera/1" in final.message
        assert "alpha" not in final.message
        assert "RuntimeError" in caplog.text
        assert "alpha" not in caplog.text


@pytest.mark.parametrize("live", [False, True])
def test_a_stopped_reader_ends_and_accounts_for_all(live: bool) -> None:
    """Stopped in the middle, a reader ends; each frame was taken or is counted as stopped."""
    endless = JoinedSource([ListSource(toy_pictures(10))], repeat=True)
    endless.live = live
    with reading(endless, capacity=4) as run:
        taken = list(islice(run.frames(), 25))
        run.reader.stop()
        run.buffer.close()
        assert run.reader.join(PATIENCE)
        counters = run.buffer.counters
        assert counters.in_flight == len(taken) == 25
        assert set(counters.dropped) <= {"stopped", "buffer_full"}
        assert run.states[-1].state == "ended"


def test_a_reader_that_waits_for_a_far_timestamp_can_be_stopped() -> None:
    """Stopping ends a paced reader at once, however far its next frame's time is."""
    first, second = toy_pictures(2)
    far = ListSource([first, Picture(second.image, 1e6)])
    with reading(far, pace="realtime") as run:
        assert next(run.frames()).index == 0
        run.reader.stop()
        assert run.reader.join(PATIENCE)


def test_a_live_source_is_opened_again_after_an_error() -> None:
    """A camera that breaks off comes back: a new epoch, indices and times that go on, counters."""
    error = SourceError("camera away", reason="stream_broken")
    with reading(ListSource(toy_pictures(3), live=True, error=error)) as run:
        frames = list(islice(run.frames(), 6))
    assert [f.index for f in frames] == list(range(6))
    assert [f.epoch for f in frames] == [0, 0, 0, 1, 1, 1]
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(frames))
    assert run.buffer.counters.reconnects >= 1
    assert [s.state for s in run.states[:4]] == ["connecting", "online", "reconnecting", "online"]
    assert run.states[2].reason == "stream_broken"
    assert "camera away" in run.states[2].message


@contextmanager
def web_camera(clip: Path, statuses: list[int], *, clean_end: bool) -> Iterator[str]:
    """Serve `clip` over HTTP, statuses first; without a clean end the connection just breaks."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses.pop(0) if statuses else 200
            self.send_response(status)
            if clean_end and status == 200:
                self.send_header("Content-Length", str(clip.stat().st_size))
            self.end_headers()
            if status == 200:
                self.wfile.write(clip.read_bytes())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"root:alpha@127.0.0.1:{server.server_port}/camera.ts"
        finally:
            server.shutdown()
            thread.join(PATIENCE)


@pytest.mark.parametrize("clean_end", [True, False])
def test_a_camera_over_http_is_read_again_and_again(
    make_clip: Callable[..., Path], clean_end: bool
) -> None:
    """A network stream that fails, comes up and ends loses no frame untold, on one time line."""
    clip = make_clip("camera.ts", frames=20)
    with web_camera(clip, [404], clean_end=clean_end) as address:
        source = VideoSource(parse_address(f"http://{address}"), TOY_PREPROCESSING)
        with reading(source) as run:
            frames = []
            for frame in run.frames():
                frames.append(frame)
                if frame.epoch == 1:
                    break
    assert [f.index for f in frames] == list(range(len(frames)))
    assert [f.epoch for f in frames] == [0] * (len(frames) - 1) + [1]
    assert len(frames) - 1 + sum(f.dropped_before for f in frames) == 20
    assert all(a.pts_seconds < b.pts_seconds for a, b in pairwise(frames))
    assert run.buffer.counters.reconnects >= 1
    assert (run.states[1].state, run.states[1].reason) == ("offline", "not_found")
    assert "camera.ts" in run.states[1].message
    assert not [s for s in run.states if "alpha" in s.message]
