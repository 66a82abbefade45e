"""Recent exit scores of a stream, sorted, to ask what score a given share of its frames reaches.

n: scores held.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

LENGTH = 256


class ScoreWindow:
    """The last `LENGTH` scores at one exit, of frames that reached it.

    Conditional on having reached the exit: deeper scores of frames that left before are unknown,
    and are not needed.
    """

    __slots__ = ("_next", "_recent", "_sorted")

    def __init__(self, scores: Sequence[float] = ()) -> None:
        self._recent = array("f")
        self._sorted = array("f")
        self._next = 0
        for score in scores:
            self.add(score)

    def add(self, score: float) -> None:
        """Take a score in; the oldest goes."""
        if len(self._recent) < LENGTH:
            self._recent.append(score)
        else:
            del self._sorted[bisect_left(self._sorted, self._recent[self._next])]
            self._recent[self._next] = score
        rounded = self._recent[self._next]
        self._sorted.insert(bisect_right(self._sorted, rounded), rounded)
        self._next = (self._next + 1) % LENGTH

    def __len__(self) -> int:
        return len(self._sorted)

    def reached_by(self, share: float) -> float:
        """The score that `share` of the frames reach, interpolated. There must be scores."""
        ordered = self._sorted
        place = (1 - share) * len(ordered) - 0.5
        if place <= 0:
            return ordered[0]
        low = int(place)
        if low >= len(ordered) - 1:
            return ordered[-1]
        return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])

    @property
    def scores(self) -> list[float]:
        """Oldest first."""
        return [*self._recent[self._next :], *self._recent[: self._next]]
