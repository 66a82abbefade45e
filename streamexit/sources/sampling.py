"""Which pictures of a source are analysed when fewer are wanted than it has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamexit.errors import SourceError

ROUNDING = 1e-6
"""Of a slot: timestamps of 25 pictures per second are not exact multiples of 0.04 in binary."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which pictures are wanted.

    Attributes:
        frame_rate: At most so many per second; None for all.
        every: Each so-manieth.
        key_frames: Only those that the codec needs no other picture for.

    Raises:
        SourceError: More than one of them.
    """

    frame_rate: float | None = None
    every: int = 1
    key_frames: bool = False

    def __post_init__(self) -> None:
        if sum((self.frame_rate is not None, self.every > 1, self.key_frames)) > 1:
            raise SourceError(
                "frame_rate, every and key_frames exclude each other; give one", reason="bad_source"
            )

    @property
    def all(self) -> bool:
        """Whether every picture is wanted."""
        return self == ALL_PICTURES


ALL_PICTURES = Sampling()


class Sampler:
    """Chooses among the pictures of one opening.

    Of a frame rate: time is cut into slots of 1 / rate seconds; the first picture of each slot is
    wanted.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._rate = sampling.frame_rate
        self._every = sampling.every
        self._slot: int | None = None
        self._seen = 0

    def wants(self, pts_seconds: float) -> bool:
        """Whether the next picture, of that time, is to be analysed."""
        self._seen += 1
        if self._rate is None:
            return (self._seen - 1) % self._every == 0
        slot = self._slot_of(pts_seconds)
        wanted = self._slot is None or slot > self._slot
        if wanted:
            self._slot = slot
        return wanted

    def may_want(self, pts_seconds: float, step_seconds: float) -> bool:
        """Whether a picture could be the first of its slot, in a source of even steps.

        For a glance ahead at packets, which come in the order of decoding. Where steps are uneven it
        may say no to a picture that would have been wanted; the next one then takes its slot.
        """
        return self._rate is None or (
            self._slot_of(pts_seconds) > self._slot_of(pts_seconds - step_seconds)
        )

    def _slot_of(self, pts_seconds: float) -> int:
        assert self._rate is not None
        return math.floor(pts_seconds * self._rate + ROUNDING)
