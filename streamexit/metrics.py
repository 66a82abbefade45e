"""Counting what happened to every frame, so that nothing is lost without a reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

DropReason = Literal["buffer_full", "decode_error", "unreadable_image", "stopped"]
"""Why a frame was not answered.

buffer_full: a live source was faster than the engine; its oldest frame went.
decode_error: the codec could not make a picture of a packet.
unreadable_image: a file in an image folder is no picture.
stopped: the run ended before the frame's turn came.
"""


@dataclass(slots=True)
class StreamCounters:
    """Frames of one stream. Each number has one writing thread.

    Attributes:
        frames: Seen at the source, dropped ones included.
        answered: Left the network with an answer.
        dropped: By reason.
        reconnects: How often the source was opened again.
    """

    frames: int = 0
    answered: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)
    reconnects: int = 0

    def seen(self) -> None:
        """Count a frame that the source yielded or lost."""
        self.frames += 1

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count `count` frames that will not be answered."""
        self.dropped[reason] += count

    @property
    def in_flight(self) -> int:
        """Frames between source and answer; never too few, while another thread is counting."""
        gone = self.dropped.total() + self.answered  # before `frames`, which is counted first
        return self.frames - gone
