"""Says things on behalf of threads that must not wait for whoever listens."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

CAPACITY = 1000
CLOSE_SECONDS = 1.0


class Speaker(logging.Handler):
    """Passes sentences, and log records, on to `say` in a thread of its own.

    A terminal that is stopped, or a pipe that nobody reads, would otherwise stop the event loop with it.
    What does not fit is counted, and the count is said once there is room again.

    Args:
        say: May take as long as it likes.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say
        self._waiting: queue.Queue[str | None] = queue.Queue(CAPACITY)
        self._unsaid = 0
        self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)
        self._thread.start()

    def __call__(self, sentence: str) -> None:
        """Have it said, if there is room; never waits."""
        try:
            self._waiting.put_nowait(sentence)
        except queue.Full:
            self._unsaid += 1

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self(self.format(record))

    def close(self) -> None:
        """Say what is left, for a second at most."""
        super().close()
        try:
            self._waiting.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (sentence := self._waiting.get()) is not None:
            self._say(sentence)
            if self._unsaid:
                unsaid, self._unsaid = self._unsaid, 0
                self._say(f"{unsaid} messages were left out, because nobody read them in time")
