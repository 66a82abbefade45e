"""Which pictures of a source are analysed when fewer are wanted than it has."""

from __future__ import annotations

import math
from collections.abc import Iterator

from streamexit.sources.source import DropReport, Picture, Source

ROUNDING = 1e-6
"""Of a slot: timestamps of 25 pictures per second are not exact multiples of 0.04 in binary."""


class Sampler:
    """Time is cut into slots of 1 / rate seconds; the first picture of each slot is wanted.

    Args:
        rate: Pictures per second that are wanted at most; None wants all.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._slot: int | None = None

    def wants(self, pts_seconds: float) -> bool:
        """Whether the next picture, of that time, is to be analysed."""
        if self._rate is None:
            return True
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


class SampledSource:
    """Another source's pictures, at a lower rate.

    Args:
        source: Whose pictures cost nothing until they are analysed.
        rate: Pictures per second that are wanted at most.
    """

    def __init__(self, source: Source, rate: float) -> None:
        self.live = source.live
        self._source = source
        self._rate = rate

    def pictures(self, report: DropReport) -> Iterator[Picture]:
        """See `Source`."""
        sampler = Sampler(self._rate)
        for picture in self._source.pictures(report):
            if sampler.wants(picture.pts_seconds):
                yield picture
