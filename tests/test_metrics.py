from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from streamexit.metrics import StreamCounters


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that change places as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_threads")
def test_drops_of_several_threads_are_all_counted() -> None:
    """Decoder, engine and event loop all drop frames, and none of them is forgotten."""
    for _ in range(60):
        counters, together = StreamCounters(), threading.Barrier(2)

        def drop(
            counters: StreamCounters = counters, together: threading.Barrier = together
        ) -> None:
            together.wait()
            for _ in range(300):
                counters.drop("too_old")

        threads = [threading.Thread(target=drop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counters.dropped["too_old"] == 600
