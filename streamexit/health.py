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
        seen: That came in, also those that were dropped.
        held: Whether recordings are held back now, because results go out too slowly.
        offered: Results that were to go to the broker, so far.
        waiting: Of these, those that it has not confirmed, now.
        confirmed: By it, so far.
        broker: What is wrong with the broker; empty if nothing is, or there is none.
    """

    frames: int
    answered: int
    seen: int = 0
    held: bool = False
    offered: int = 0
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
        self._held_since: float | None = None
        self._dropped_since: float | None = None
        self._seen_at: float | None = None
        self._unsent_since: float | None = None
        self._away_since: float | None = None

    def look(self, pulse: Pulse, now: float) -> None:
        """Take account of the pulse at `now`, monotonic seconds."""
        if self._last is None:  # what moves shows at the second look
            self._last = pulse
            return
        last, self._last = self._last, pulse
        if pulse.seen > last.seen:
            self._seen_at = now
        idle = pulse.answered == last.answered
        waiting = idle and pulse.frames > pulse.answered
        coming = self._seen_at is not None and not _too_long(self._seen_at, now)
        to_send = pulse.waiting > 0 or pulse.offered > last.offered  # all may be refused at once
        unsent = to_send and pulse.confirmed <= last.confirmed
        self._unanswered_since = _since(self._unanswered_since, waiting and not pulse.held, now)
        self._held_since = _since(self._held_since, idle and pulse.held, now)
        self._dropped_since = _since(self._dropped_since, idle and coming, now)
        self._unsent_since = _since(self._unsent_since, unsent, now)
        self._away_since = _since(self._away_since, bool(pulse.broker), now)
        self.stuck = (
            f"frames have come in for {now - self._unanswered_since:.0f} s and none was answered"
            if self._unanswered_since is not None and _too_long(self._unanswered_since, now)
            else ""
        )
        self.not_ready = self.stuck or self._why_nothing_goes_out(pulse, now)
        if not self.not_ready and _too_long(self._dropped_since, now):
            self.not_ready = "no frame is answered: all that come in are dropped"

    def _why_nothing_goes_out(self, pulse: Pulse, now: float) -> str:
        if _too_long(self._away_since, now):
            return f"no results go out: {pulse.broker}"
        if _too_long(self._unsent_since, now):
            return "no results go out: the broker confirms none"
        if _too_long(self._held_since, now):
            return "no results go out: the broker takes them too slowly"
        return ""


def _since(before: float | None, true: bool, now: float) -> float | None:
    """From when on something has been true; None while it is not."""
    if not true:
        return None
    return now if before is None else before


def _too_long(since: float | None, now: float) -> bool:
    return since is not None and now - since > PATIENCE_SECONDS
