"""The seam between where pictures come from and everything behind it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from streamexit.errors import SourceError
from streamexit.frame import Decoder, Media
from streamexit.metrics import DropReason
from streamexit.preprocessing import Image
from streamexit.sources.demand import Demand

if TYPE_CHECKING:
    from torch import Tensor

DropReport = Callable[[DropReason], None]
"""Called by a source for each frame that it could not yield, in stream order."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a source yields.

    Attributes:
        image: uint8 [H, W, 3], RGB, at the network's input size; on the GPU if that decoded it.
        pts_seconds: On the source's time line, strictly rising within one opening.
        label: As in `FrameInfo`.
        size: As in `FrameInfo`.
        decoder: As in `FrameInfo`.
        media: As in `FrameInfo`.
        epoch: How often the source's clock was set anew within this opening.
        lag_seconds: Of a live source: how late the picture is, compared with its promptest ones.
        shown: As in `FrameInfo`.
    """

    image: Image | Tensor
    pts_seconds: float
    label: int | NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    decoder: Decoder = "software"
    media: Media | None = None
    epoch: int = 0
    lag_seconds: float = 0.0
    shown: Image | None = None


class Watch:
    """Between whoever reads a source and whoever looks after that: signs of life, and the end.

    Args:
        clock: Seconds, monotonic.
        demand: What is asked of the source meanwhile.

    Attributes:
        silent_since: From when on the source has been waited for; None while it is not waited for.
        idle: Whether the source is open and has nothing to play yet.
        problem: Why it has not; None if all is well.
        demand: See above.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, demand: Demand | None = None
    ) -> None:
        self._clock = clock
        self.demand = demand or Demand(clock)
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._actions: list[Callable[[], None]] = []
        self.silent_since: float | None = clock()
        self.idle = False
        self.problem: SourceError | None = None

    def alive(self) -> None:
        """The source works, though it has no picture to yield: it left some out, or waits for a file."""
        self.silent_since = self._clock()

    def wait_idly(self, seconds: float, problem: SourceError | None = None) -> None:
        """The source has nothing to play, and looks again later.

        Args:
            seconds: Until then.
            problem: Why it cannot even look.
        """
        self.idle, self.problem = True, problem
        self.alive()
        self.wait(seconds)

    def stop(self) -> None:
        """End the reading, from another thread, as far as whatever it waits for can be ended."""
        with self._lock:
            self._event.set()
            actions, self._actions = self._actions, []
        for act in actions:
            act()

    def on_stop(self, act: Callable[[], None]) -> None:
        """Have `act` called once, from the thread that stops; at once if it is too late."""
        with self._lock:
            if not self._event.is_set():
                self._actions.append(act)
                return
        act()

    @property
    def stopped(self) -> bool:
        """Whether the reading is to end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not on when stopped; whether it was."""
        return self._event.wait(max(0.0, seconds))


class Source(Protocol):
    """Something that yields pictures.

    Attributes:
        live: Whether it goes on without us: it then cannot be made to wait.
    """

    live: bool

    def pictures(self, report: DropReport, watch: Watch | None = None) -> Iterator[Picture]:
        """Open anew and yield pictures until the end.

        Args:
            report: Told of each frame that is lost.
            watch: Whoever may wait for long heeds it, and gives it signs of life.

        Raises:
            SourceError: It cannot be opened, or breaks.
        """
        ...
