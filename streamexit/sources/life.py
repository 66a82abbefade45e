r"""The life of a stream as a state machine, and when a lost one is tried again; pure, no clock.

    connecting --> online <--> stalled --> reconnecting --> offline
                     \___________________________/^ (retried for ever, unless told otherwise)

`disabled` is entered from anywhere and left to `connecting`. `ended` and `error` are final.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

State = Literal[
    "connecting", "online", "stalled", "reconnecting", "offline", "disabled", "ended", "error"
]
"""
connecting: being opened for the first time, or after it was disabled.
online: pictures come; of a watched folder: it can be read.
stalled: open, but no picture for a while; of a watched folder: it cannot be read now.
reconnecting: lost; the first new attempt is waited for or under way.
offline: at least one attempt has failed since the last picture; others follow. A recording that is not
    there is tried again, too.
disabled: not wanted now.
ended: a recording is over.
error: a recording that cannot be read (to its end), or a stream that is not tried again.
"""

FINAL: Final = frozenset[State]({"ended", "error"})

TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    "connecting": frozenset({"online", "stalled", "offline", "disabled", "ended", "error"}),
    "online": frozenset({"stalled", "reconnecting", "disabled", "ended", "error"}),
    "stalled": frozenset({"online", "reconnecting", "disabled", "ended", "error"}),
    "reconnecting": frozenset({"online", "offline", "disabled", "ended", "error"}),
    "offline": frozenset({"online", "offline", "disabled", "ended", "error"}),
    "disabled": frozenset({"connecting", "disabled", "ended", "error"}),
    "ended": frozenset(),
    "error": frozenset(),
}
"""What may follow what; "offline" again when the reason changes."""

REASONS: Final[dict[str, str]] = {
    "": "all is well",
    "refused": "nobody listens at the address",
    "unreachable": "no route to the host",
    "unknown_host": "the host's name cannot be resolved",
    "unauthorised": "user or password are wrong, or access is forbidden",
    "not_found": "no such file, path, device or stream",
    "server_error": "the server answered with an error of its own",
    "timeout": "no answer, or no picture, in time",
    "connection_lost": "the connection broke",
    "end_of_stream": "the sender ended the stream, or the recording is over",
    "invalid_data": "no video, or damaged beyond reading",
    "decode_errors": "data comes, but no picture can be decoded from it",
    "unsupported_codec": "FFmpeg as it is installed has no decoder for it",
    "pixel_format": "the GPU decodes it to a format that is not taken from there",
    "no_video": "it holds no video stream",
    "no_frames": "it holds not one picture",
    "truncated": "the file ends long before its declared length",
    "too_slow": "frames come later and later; only a new connection helps",
    "certificate": "the server's certificate is not trusted",
    "policy": "the configuration's `access` does not allow it",
    "bad_source": "the source cannot be understood",
    "unknown_class": "a folder of pictures has a class that the pipeline does not know",
    "not_permitted": "the operating system does not let us read it",
    "crashed": "the decoder's process died",
    "hung": "too many decode threads hang inside FFmpeg",
    "no_capacity": "the device has no room for the stream's budget",
    "inactive_hours": "outside `active_hours`",
    "disabled": "`enabled` is false",
    "stopped": "the node was stopped",
    "internal": "a defect of ours or of a plugin",
    "cannot_open": "the operating system says why, in the message",
}
"""Reason code -> what it means; documented in docs/sources.md."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """Where a stream is in its life.

    Attributes:
        state: See `State`.
        reason: One of `REASONS`; empty when all is well.
        message: A sentence, for people; empty when all is well.
    """

    state: State
    reason: str = ""
    message: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing more will come."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a source may take, and how often a live one is tried.

    Attributes:
        open_seconds: From the beginning of an attempt to its first picture.
        stalled_seconds: Without a picture, after which the stream is called stalled.
        frame_seconds: Without a picture, after which the source is given up and opened anew.
        first_retry_seconds: The shortest pause between attempts.
        longest_retry_seconds: The longest.
        attempts: Failed ones in a row after which a stream is in error; None goes on for ever.
    """

    open_seconds: float = 10.0
    stalled_seconds: float = 3.0
    frame_seconds: float = 10.0
    first_retry_seconds: float = 0.5
    longest_retry_seconds: float = 30.0
    attempts: int | None = None


USUAL_PATIENCE = Patience()

RETRY_SHARE = 0.08


def retry_pause(patience: Patience, away_seconds: float, chance: float) -> float:
    """Seconds until the next attempt.

    The pause is a share of the time that the source has been away, so pauses grow exponentially,
    and an outage of any length gets longer by that share at most. Jitter keeps the streams of a switch
    that comes back from knocking all at once.

    Args:
        patience: Gives the shortest and the longest pause.
        away_seconds: Since the last picture, or since the start.
        chance: In [0, 1), for the jitter: the pause is shortened by up to a half.
    """
    pause = min(
        max(RETRY_SHARE * away_seconds, patience.first_retry_seconds),
        patience.longest_retry_seconds,
    )
    return pause * (1 - chance / 2)
