"""Which answers of a stream become results."""

from __future__ import annotations

import math
from typing import Literal

from streamexit.exits import ExitRecord
from streamexit.wire.encoding import Unpublished

Rule = Literal["every_frame", "on_change"] | float
"""The number is of seconds: at most one result in so many."""


class Thinning:
    """Leaves answers of one stream out, and remembers what a result has to say of that.

    Args:
        rule: See `Rule`.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._last = -math.inf
        self._ever = self._answers = self._dropped = 0

    @property
    def left_out(self) -> int:
        """Answers that were, since the start."""
        return self._ever

    def pass_on(self, record: ExitRecord, *, changed: bool, now: float) -> Unpublished | None:
        """What the result has to say of those before; None if this answer is left out.

        Args:
            record: The answer.
            changed: Whether its label differs from that of the one before.
            now: Seconds.
        """
        if self._wants(changed, now):
            before = Unpublished(self._ever, self._answers, self._dropped)
            self._answers = self._dropped = 0
            self._last = now
            return before
        self._ever += 1
        self._answers += 1
        self._dropped += record.frame.dropped_before
        return None

    def _wants(self, changed: bool, now: float) -> bool:
        if self._rule == "every_frame":
            return True
        if self._rule == "on_change":
            return changed
        return now - self._last >= self._rule or now < self._last
