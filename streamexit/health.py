"""Whether a node does its job: frames that come in are answered, and results go out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE_SECONDS = 15.0
"""How long nothing may come out before that counts."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a node has done so far.

    Attributes:
        frames: That came in, and were not dropped.
        answered: Of these.
        waiting: Results that the broker has not confirmed, now.
        confirmed: By it, so far.
        broker: What is wrong with the broker; empty if nothing is, or there is none.
    """

    frames: int
    answered: int
    waiting: int = 0
    confirmed: int = 0
    broker: str = ""


class Health:
    """Follows a node's pulse. Call `look` about twice a second, from when the node runs.

    Attributes:
        stuck: Why frames come in and no answers come out; empty if they do. Only a restart helps.
        not_ready: Why nobody should rely on this node; empty if they may.
    """

    def __init__(self) -> None:
        self.stuck = ""
        self.not_ready = "it has just been started"
        self._last: Pulse | None = None
        self._unanswered_since: float | None = None
        self._unsent_since: float | None = None
        self._away_since: float | None = None

    def look(self, pulse: Pulse, now: float) -> None:
        """Take account of the pulse at `now`, monotonic seconds."""
        if self._last is None:  # what moves shows at the second look
            self._last = pulse
            return
        last, self._last = self._last, pulse
        nothing_open = pulse.frames <= pulse.answered
        if pulse.answered != last.answered or nothing_open:
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = now
        if pulse.confirmed > last.confirmed or not pulse.waiting:
            self._unsent_since = None
        elif self._unsent_since is None:
            self._unsent_since = now
        if not pulse.broker:
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        self.stuck = (
            f"frames have come in for {now - self._unanswered_since:.0f} s and none was answered"
            if self._unanswered_since is not None and _too_long(self._unanswered_since, now)
            else ""
        )
        self.not_ready = self.stuck or self._why_nothing_goes_out(pulse, now)

    def _why_nothing_goes_out(self, pulse: Pulse, now: float) -> str:
        if _too_long(self._away_since, now):
            return f"no results go out: {pulse.broker}"
        if _too_long(self._unsent_since, now):
            return "no results go out: the broker confirms none"
        return ""


def _too_long(since: float | None, now: float) -> bool:
    return since is not None and now - since > PATIENCE_SECONDS
