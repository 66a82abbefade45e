"""Counting what happened to every frame, so that nothing is lost without a reason."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

DropReason = Literal[
    "buffer_full", "too_old", "decode_error", "unreadable_image", "unreadable_recording", "stopped"
]
"""Why a frame was not answered.

buffer_full: a live source was faster than the engine; its oldest frame went.
too_old: it, or its answer, would have been older than `max_age_s`; also packets that were left
    undecoded because the stream had fallen behind.
decode_error: the codec could not make a picture of a packet.
unreadable_image: a file in an image folder is no picture, or cannot be read.
unreadable_recording: a file in a watched folder cannot be read, or not to its end; counts once.
stopped: the run ended before the frame's turn came.
"""


LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of a histogram's buckets, in seconds; one more takes the rest."""


@dataclass(slots=True)
class Histogram:
    """Counts of durations.

    Attributes:
        counts: Per bucket.
        total: Seconds, of all together.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCIES) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(LATENCIES, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class StreamCounters:
    """Frames of one stream. Drops are counted by several threads, each other number by one.

    Attributes:
        frames: Seen at the source, dropped ones included.
        answered: Left the network with an answer.
        dropped: By reason.
        reconnects: How often the source gave pictures again after it was lost.
        abandoned: Decode threads that were given up because they hung.
    """

    frames: int = 0
    answered: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)
    reconnects: int = 0
    abandoned: int = 0
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    def seen(self, count: int = 1) -> None:
        """Count frames that the source yielded or lost."""
        self.frames += count

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count `count` frames that will not be answered."""
        with self._lock:
            self.dropped[reason] += count

    @property
    def in_flight(self) -> int:
        """Frames between source and answer; never too few, while another thread is counting."""
        gone = self.dropped.total() + self.answered  # before `frames`, which is counted first
        return self.frames - gone
