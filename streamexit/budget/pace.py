"""How fast the frames of a stream come."""

from __future__ import annotations

PACE_FRAMES = 32
"""Time between frames is averaged over about so many."""

SHORTEST_PACE = 1e-6
LONGEST_GAP = 10
"""Times the mean time between frames; what is longer counts as so much."""

FIRST_PACE = 1 / 25
"""Seconds between frames until two were seen."""


class Pace:
    """See the module.

    Attributes:
        seconds: Usual time between two frames.
    """

    def __init__(self) -> None:
        self.seconds = FIRST_PACE
        self._came = 0
        self._last_at: float | None = None

    def remember(self, seconds: float) -> None:
        """Begin with what another run found: its mean counts as much as here after many frames."""
        self.seconds = seconds
        self._came = PACE_FRAMES

    def came(self, at: float) -> float:
        """A frame comes, at `at` seconds.

        Returns:
            Seconds since the one before; of a stream that stood still no more than ten times the
            usual, as nothing is saved up then.
        """
        self._came += 1
        since = 0.0
        if self._last_at is not None:
            since = min(max(0.0, at - self._last_at), LONGEST_GAP * self.seconds)
            pace = self.seconds + (since - self.seconds) / min(self._came, PACE_FRAMES)
            self.seconds = max(pace, SHORTEST_PACE)
        self._last_at = at
        return since
