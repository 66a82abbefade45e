"""Exits of the last window, what the budget gave for them, and when they came."""

from __future__ import annotations

import math
from collections import deque

from streamexit.budget.terms import Terms


class RecentExits:
    """See the module.

    Attributes:
        counts: [K], how many left where.
    """

    def __init__(self, num_exits: int) -> None:
        self.counts = [0] * num_exits
        self._exits: deque[int] = deque()
        self._allowed: deque[float] = deque()
        self._times: deque[float] = deque()

    def add(self, k: int, allowance: float, at: float | None) -> None:
        """A frame left at exit k, for which the budget gave `allowance`; it came at `at` seconds."""
        self.counts[k] += 1
        self._exits.append(k)
        self._allowed.append(allowance)
        if at is None:
            self._times.clear()
        else:
            self._times.append(at)

    def shorten(self, terms: Terms) -> None:
        """Forget what is older than the window."""
        while len(self._exits) > 1 and self._too_long(terms):
            self.counts[self._exits.popleft()] -= 1
            self._allowed.popleft()
            if len(self._times) > len(self._exits):
                self._times.popleft()

    def _too_long(self, terms: Terms) -> bool:
        if terms.window_seconds is None:
            return len(self._exits) > terms.window
        timed = len(self._times) == len(self._exits)  # others came before time was asked for
        return not timed or self._times[-1] - self._times[0] >= terms.window_seconds

    @property
    def allowed(self) -> float:
        """What the budget gave for all of them."""
        return math.fsum(self._allowed)

    @property
    def seconds(self) -> float:
        """From the first to the last; 0 while not all came when time was asked for."""
        all_timed = len(self._times) == len(self._exits) > 0
        return self._times[-1] - self._times[0] if all_timed else 0.0

    def __len__(self) -> int:
        return len(self._exits)
