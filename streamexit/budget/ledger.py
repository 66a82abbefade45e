"""Strict budgets: no window of W frames costs more than its budget, however batches form.

W: frames.
"""

from __future__ import annotations

from array import array

ROUNDING = 1e-9


class WindowLedger:
    """A token bucket whose tokens come back when a frame leaves the window.

    It keeps, for each of the last W frames, how far its cost lies above its budget, and the sum of
    these over the W frames that end with it. A frame enters with the first exit's cost, which is
    below the budget. Before it may stay it has to reserve what the next exit costs more; that is
    granted if no window that contains the frame then has a positive sum. Frames that enter later
    replace one that cost at least as much, so sums never rise by themselves: every window of W
    consecutive frames, and every beginning of the stream, costs at most its budget.

    **A budget that changes** takes a new ledger, see `under_another_budget`. What was spared before
    the change must not be spent after it; what was overspent has to be paid back. So as the sum of the
    last a frames before it, for every a, the new ledger has s(a) = max(0, what the old one had). Its
    sums over windows across the change are then at least the true ones, and as s(a) >= 0, frames
    behind the change cost at most their budget. While W stays, any W frames cost at most W times B, the
    largest budget that one of them came under: let z be the last frame that had entered when something was
    granted to one of them last, and p the first of the W frames that end with z or, if that is later,
    the first that came under the budget of the window's first frame. The ledger's sum of the W frames was
    at most 0 then, that of those before p at least 0: so p to z cost at most B each, on average. Of
    these, each that lies before the window cost as much as the first exit, or more; the window's frames
    behind z cost just that, and it is below B.

    An ordinary bucket of depth b would have to refill at B - b/W to promise the same, and would
    waste b/W of the budget.

    Args:
        window: W.
        first: The first frame that is entered; earlier ones may reserve nothing.
    """

    __slots__ = ("_excess", "_first", "_last", "_sums", "_window")

    def __init__(self, window: int, first: int = 0) -> None:
        self._window = window
        self._first = first
        self._excess = array("d", bytes(8 * window))
        self._sums = array("d", bytes(8 * window))
        self._last = first - 1

    def under_another_budget(self, window: int) -> WindowLedger:
        """The ledger to go on with after a change: overspending is carried over, savings are not.

        Args:
            window: W from now on.
        """
        new = WindowLedger(window, self._last + 1)
        true = carried = 0.0
        for seq in range(self._last, self._last - min(window, self._window), -1):
            true += self._excess[seq % self._window]
            before, carried = carried, max(0.0, true)
            new._excess[seq % window] = carried - before
        new._sums[self._last % window] = carried
        return new

    def enter(self, seq: int, excess: float) -> None:
        """A frame begins; `excess` is the first exit's cost above its budget. In order of `seq`."""
        before = self._sums[(seq - 1) % self._window]
        place = seq % self._window
        self._sums[place] = before - self._excess[place] + excess
        self._excess[place] = excess
        self._last = seq

    def reserve(self, seq: int, more: float) -> bool:
        """Let frame `seq` cost so much more, if every window that contains it allows that."""
        if seq < self._first or self._last - seq >= self._window:
            return False  # its windows are not known
        places = [end % self._window for end in range(seq, self._last + 1)]
        if any(self._sums[place] + more > ROUNDING for place in places):
            return False
        for place in places:
            self._sums[place] += more
        self._excess[seq % self._window] += more
        return True
