"""A thousand failed connects and two hundred reconnections: threads, descriptors and memory stay flat."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from streamexit.metrics import StreamCounters
from streamexit.queues import FrameBuffer
from streamexit.sources.addresses import parse_address
from streamexit.sources.life import Patience
from streamexit.sources.reader import Reader
from streamexit.sources.video import VideoSource
from streamexit.testing import TOY_PREPROCESSING, ManualClock
from tests.faults.rig import free_port
from tests.sources.servers import mjpeg_camera, web_server

PATIENCE = 20.0
MIB = 1 << 20


def resources() -> tuple[int, int, int]:
    """Threads, descriptors, resident bytes."""
    gc.collect()
    me = psutil.Process()
    return me.num_threads(), me.num_fds(), me.memory_info().rss


class Trial:
    """A reader whose pauses take no time."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.buffer = FrameBuffer(capacity=4, live=True, counters=StreamCounters())
        self._news = threading.Event()
        self.reader = Reader(
            "cam",
            VideoSource(parse_address(url), TOY_PREPROCESSING, timeout=5.0),
            self.buffer,
            on_state=lambda state: self._news.set(),
            patience=Patience(open_seconds=1e6, frame_seconds=1e6, stalled_seconds=1e6),
            clock=self.clock,
        )
        self.reader.start()

    def attempts(self, count: int) -> None:
        """Let it try so many times, each as soon as the one before has failed."""
        for _ in range(count):
            for _ in range(2000):
                if self.reader.retry_in is not None:
                    break
                self._news.wait(0.01)
                self._news.clear()
            assert self.reader.retry_in is not None
            self.clock.advance(31.0)
            self.reader.tick()

    def stop(self) -> None:
        """End it."""
        self.reader.stop()
        self.buffer.close()
        assert self.reader.join(PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_a_thousand_failed_connects(scheme: str) -> None:
    """A camera that is away for weeks costs nothing that grows."""
    trial = Trial(f"{scheme}://user:word@127.0.0.1:{free_port()}/stream")
    trial.attempts(200)
    threads, descriptors, memory = resources()
    trial.attempts(1000)
    after = resources()
    trial.stop()
    assert trial.reader.state.reason in ("refused", "stopped")
    assert abs(after[0] - threads) <= 1
    assert abs(after[1] - descriptors) <= 2
    assert after[2] - memory < 6 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mjpeg", "transport stream"])
def test_two_hundred_reconnections(
    tmp_path: Path, make_clip: Callable[..., Path], kind: str
) -> None:
    """A camera that hangs up after a few frames leaves nothing behind each time."""
    clip = make_clip("short.ts", frames=5)
    jpeg = cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes()
    with web_server(clip.parent, {"/v": mjpeg_camera([jpeg] * 3, pause=0.0)}) as (url, _):
        trial = Trial(f"{url}/v" if kind == "mjpeg" else f"{url}/short.ts")
        trial.attempts(60)
        threads, descriptors, memory = resources()
        trial.attempts(200)
        after = resources()
        trial.stop()
    assert trial.buffer.counters.reconnects >= 250
    assert trial.buffer.counters.frames >= 3 * 250
    assert abs(after[0] - threads) <= 3  # the server's own among them
    assert abs(after[1] - descriptors) <= 6
    assert after[2] - memory < 8 * MIB
