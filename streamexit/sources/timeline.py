"""Presentation times that always rise, whatever the source's own clock does."""

from __future__ import annotations

JUMP_SECONDS = 10.0
"""A larger step, beyond what the frame before lasts, is a clock that was set, not a pause."""

BACK_SECONDS = 1.0
"""A step back by less is a muddle of neighbouring frames; by more, a clock that began anew."""

SHORTEST_STEP = 1e-3


class Timeline:
    """Rebases a source's timestamps onto a line that starts at 0 and strictly rises.

    Args:
        step: Seconds between frames, where nothing else tells.

    Attributes:
        epoch: How often the source's clock was set anew.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._offset = 0.0
        self._raw: float | None = None
        self._last: float | None = None
        self._lasting = step
        self.epoch = 0

    def place(self, raw: float | None, lasting: float | None = None) -> float:
        """Where the next frame lies, in seconds.

        Args:
            raw: Its timestamp in seconds by the source's clock; None if it has none.
            lasting: How long it is shown, in seconds, if the source says so.
        """
        if self._last is None:
            self._offset = -raw if raw is not None else 0.0
            placed = 0.0
        elif raw is None:
            placed = self._last + self._step
        else:
            placed = self._follow(raw, self._last)
        if raw is not None:
            self._raw = raw
        elif self._raw is not None:
            self._raw += self._step
        self._last = placed
        self._lasting = lasting or self._step
        return placed

    def peek(self, raw: float) -> float | None:
        """Where a frame of that timestamp would lie, for a glance ahead; None if the clock has jumped."""
        if self._last is None:
            return 0.0
        return None if self._raw is None or self._jumps(raw) else raw + self._offset

    def _jumps(self, raw: float) -> bool:
        assert self._raw is not None
        gap = raw - self._raw
        return gap < -BACK_SECONDS or gap > self._lasting + JUMP_SECONDS

    def _follow(self, raw: float, last: float) -> float:
        jumped = self._raw is not None and self._jumps(raw)
        self.epoch += jumped
        if jumped or self._raw is None:  # or the frames before had no timestamps
            self._offset = last + self._step - raw
        return max(raw + self._offset, last + SHORTEST_STEP)
