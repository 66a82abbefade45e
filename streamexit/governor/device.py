"""A device that is shared out to the streams of a running node: who may come, and who gets how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from streamexit.budget.sharing import Admitted, Claim, DeviceShare
from streamexit.budget.terms import Terms
from streamexit.config.schema import StreamSection
from streamexit.governor.governed import Governed

SHARE_SECONDS = 10.0
"""Between two rounds of sharing the device out."""

SMALLEST_CHANGE = 1e-3
"""Of what was given out, in full networks, before a controller hears of it."""


class DeviceSharing:
    """Claims time for streams, measures what they really send, and says what each is to have.

    Args:
        share: Shares the device out.
    """

    def __init__(self, share: DeviceShare) -> None:
        self._share = share
        self._shared_at: float | None = None
        self._rates: dict[str, float] = {}
        self._counted: dict[str, int] = {}

    def admit(self, governed: Governed, section: StreamSection, terms: Terms) -> Admitted:
        """Whether a stream may run under some terms, or what it gets instead."""
        return self._share.change(self._claim(governed, section, terms))

    def rise(self, governed: Governed, section: StreamSection, terms: Terms) -> float:
        """Milliseconds per second that a stream would be promised more under some terms than now."""
        return self._share.rise(self._claim(governed, section, terms))

    def held(self, stream_id: str, terms: Terms) -> Terms:
        """Terms of a stream that was admitted, with what it may spend now."""
        return replace(terms, amount=self._share.amount(stream_id))

    def leave(self, stream_id: str) -> None:
        """A stream is gone."""
        self._share.leave(stream_id)
        self._rates.pop(stream_id, None)
        self._counted.pop(stream_id, None)

    @property
    def allocated(self) -> float:
        """Milliseconds of the device per second that budgets add up to."""
        return self._share.allocated

    def round(self, streams: Mapping[str, Governed], now: float) -> dict[str, Terms]:
        """Share out, if that is due at `now` (monotonic seconds).

        Returns:
            Terms that have changed.
        """
        seconds = math.inf if self._shared_at is None else now - self._shared_at
        if seconds < SHARE_SECONDS:
            return {}
        self._shared_at = now
        share = self._share
        running = {name: g for name, g in streams.items() if name in share.fractions}
        for name, governed in running.items():
            rate = self._measure(name, governed, seconds)
            share.measured(name, 0.0 if governed.stream.finished else rate)
        share.rebalance(
            {name: governed.lane.shadow.frames for name, governed in running.items()},
            {name: governed.stream.plan.costs.fractions for name, governed in running.items()},
        )
        terms = {name: self.held(name, governed.terms) for name, governed in running.items()}
        return {
            name: its
            for name, its in terms.items()
            if abs(its.amount - running[name].terms.amount) > SMALLEST_CHANGE
        }

    def _measure(self, name: str, governed: Governed, seconds: float) -> float:
        """Frames that came, answered or not: what is answered falls when the device is overloaded."""
        came, frames = self._counted.get(name, 0), governed.stream.counters.frames
        self._counted[name] = frames
        if came:
            self._rates[name] = (frames - came) / seconds
        return self._rates.get(name, _promised(governed.stream.section))

    def _claim(self, governed: Governed, section: StreamSection, terms: Terms) -> Claim:
        costs = governed.stream.plan.costs
        rate = _promised(section)
        fraction = terms.amount / rate if terms.per == "second" else terms.amount
        first, fraction = costs.fractions[0], min(fraction, 1.0)
        cap = min(section.budget.cap, fraction) if terms.strict else section.budget.cap
        return Claim(
            stream_id=section.id,
            rate=rate,
            full_ms=costs.full,
            fraction=fraction,
            low=max(first, section.budget.floor or 0.0),
            cap=max(cap, first),
            weight=section.weight,
            limit=terms.amount if terms.per == "second" else math.inf,
        )


def _promised(section: StreamSection) -> float:
    """Frames per second that a stream is admitted with, whatever it sends just now."""
    return section.frame_rate or section.rate
