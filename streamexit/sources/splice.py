"""Recordings one after the other on one time line; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from streamexit.sources.source import Picture

FIRST_STEP = 0.04
"""Seconds between two recordings when the first has one picture only."""


class Splice:
    """See the module.

    Args:
        counted: Whether each recording is an epoch of its own.

    Attributes:
        pictures: So many so far.
    """

    def __init__(self, *, counted: bool) -> None:
        self.pictures = 0
        self._counted = counted
        self._begin, self._step, self._epoch = 0.0, FIRST_STEP, 0

    def play(self, pictures: Iterator[Picture]) -> Iterator[Picture]:
        """The next recording: its times and epochs go on where the one before ended."""
        first = last = None
        epoch = self._epoch
        for picture in pictures:
            first = picture.pts_seconds if first is None else first
            pts = self._begin + picture.pts_seconds - first
            self._step = pts - last if last is not None else self._step
            last, epoch = pts, self._epoch + picture.epoch
            self.pictures += 1
            yield replace(picture, pts_seconds=pts, epoch=epoch)
        if last is not None:
            self._begin, self._epoch = last + self._step, epoch + self._counted
