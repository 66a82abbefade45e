"""Numbers the pictures of a stream over all openings of its source; pure."""

from __future__ import annotations

from dataclasses import dataclass

STEP_SECONDS = 0.04
"""Between the last frame of one opening and the first of the next."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a picture in its stream.

    Attributes:
        index: From 0, without gaps.
        pts_seconds: On the stream's time line.
        epoch: How often the source's clock was set, or the source opened, anew.
        dropped_before: Frames lost since the picture before.
        rejoins: Whether it is the first after the source was lost.
    """

    index: int
    pts_seconds: float
    epoch: int
    dropped_before: int
    rejoins: bool


class Numbering:
    """See the module.

    Args:
        first_epoch: Of the first picture.

    Attributes:
        epoch: Of the latest picture.
    """

    def __init__(self, first_epoch: int = 0) -> None:
        self.epoch = first_epoch
        self._index = 0
        self._epoch_of_source = 0
        self._dropped = 0
        self._base = 0.0
        self._last: float | None = None
        self._reopened = False

    def reopen(self) -> None:
        """The source is opened again; a first time is none."""
        self._reopened = self._last is not None

    def lose(self) -> None:
        """A picture could not be had."""
        self._dropped += 1

    def place(self, offset: float, epoch: int) -> Place:
        """Of the next picture.

        Args:
            offset: Seconds since the first picture of this opening.
            epoch: Within this opening.
        """
        rejoins = self._reopened and self._last is not None
        if rejoins and self._last is not None:
            self._reopened = False
            self._base = self._last + STEP_SECONDS
            self.epoch, self._epoch_of_source = self.epoch + 1, 0
        self.epoch += epoch - self._epoch_of_source
        self._epoch_of_source = epoch
        self._last = self._base + offset
        place = Place(self._index, self._last, self.epoch, self._dropped, rejoins)
        self._index, self._dropped = self._index + 1, 0
        return place
