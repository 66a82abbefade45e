"""How far a live stream lags behind its camera: timestamps against arrival."""

from __future__ import annotations

DRIFT = 1e-4
"""Seconds per second that a camera's clock may run slower than ours. What lags by more, lags."""


class Lateness:
    """The lag of frames behind the promptest frame so far.

    A camera's clock and ours differ by an unknown constant, so the least difference between arrival
    and timestamp stands for no lag. It may grow by `DRIFT`, as clocks do.

    Args:
        tolerated: Seconds of lag from which on frames are not worth decoding; infinite for none.
    """

    def __init__(self, tolerated: float) -> None:
        self.tolerated = tolerated
        self._base: float | None = None
        self._at = 0.0
        self.behind = False
        """Whether frames are left undecoded until the stream has caught up, at a key frame."""

    def restart(self) -> None:
        """Begin anew: the camera's clock was set."""
        self._base, self.behind = None, False

    def of(self, pts_seconds: float, now: float) -> float:
        """Seconds by which a frame of that time, which arrives now, is late."""
        offset = now - pts_seconds
        if self._base is None:
            self._base = offset
        self._base = min(self._base + DRIFT * max(0.0, now - self._at), offset)
        self._at = now
        return offset - self._base

    def skips(self, lag: float, *, is_key_frame: bool) -> bool:
        """Whether a packet with that lag is left out.

        Once a stream is behind, decoding begins again at a key frame that is in time: one within half
        of what is tolerated, so that it does not fall behind again at once.
        """
        if not self.behind:
            self.behind = lag > self.tolerated
        elif is_key_frame and lag <= self.tolerated / 2:
            self.behind = False
        return self.behind
