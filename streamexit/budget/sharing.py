"""One device for many streams: who is admitted, and who gets how much of its time.

Shares of compute are shares of a stream's full network; time is milliseconds of the device per second.
What a stream gains from more compute comes from its shadow frames: an early answer that the last exit
contradicts is a loss, but only as far as the last exit is sure. A camera with a dirty lens, whose exits
contradict each other all the time and are never sure, gains little and is given little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from streamexit.budget.shadow import ShadowFrame, curve
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.search import concave_hull

STEP = 0.2
"""Share of the way to the best allocation that one round goes, so that no window feels it."""

PRIOR_FRAMES = 40
"""A stream counts as an average one until it has more shadow frames than this."""

SURE_POWER = 12
"""Of the last exit's score, as the weight of what it contradicts: 0.99 counts 0.89, 0.7 counts 0.01.
Under bad light networks are surer than they should be."""

POINTS = 9
"""Of a curve of gain over compute."""

Admission = Literal["shrink", "refuse"]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a stream asks of the device.

    Attributes:
        stream_id: Which.
        rate: Frames per second that it promises; where more come, each gets less.
        full_ms: What a frame that goes all the way takes.
        fraction: The budget it asks for, per frame.
        low: The least that it can live with: first exit, or floor.
        cap: The most; not below `low`.
        weight: How much its answers count.
        limit: More per second than this it must not have, in full networks: of a budget per second.
    """

    stream_id: str
    rate: float
    full_ms: float
    fraction: float
    low: float
    cap: float
    weight: float = 1.0
    limit: float = math.inf

    def time(self, fraction: float) -> float:
        """Milliseconds per second at a budget."""
        return self.rate * self.full_ms * fraction

    @property
    def wanted(self) -> float:
        """The budget that it is admitted with where there is room; a frame takes the least of it anyhow."""
        return max(self.low, min(self.fraction, self.cap))

    @property
    def per_second(self) -> bool:
        """Whether the budget that it asks for is one per second."""
        return self.limit < math.inf

    def at(self, rate: float) -> Claim:
        """The same at the rate that was measured.

        A stream that sends more frames than it promised has the same time for them, and they count
        no more together; one that sends fewer still gets no more per frame than it asked for, unless
        it asked per second. Frames beyond those that its time is enough for at the least (a recording
        read as fast as it can be) are nobody else's matter: they wait or are dropped.
        """
        rate = min(rate, self.rate * max(1.0, self.fraction / self.low))
        if not rate:
            return replace(self, rate=rate)
        times, cap = self.rate / rate, max(min(self.cap, self.limit / rate), self.low)
        part = min(1.0, times)
        return replace(
            self,
            rate=rate,
            fraction=min((times if self.per_second else part) * self.fraction, cap),
            cap=cap,
            weight=part * self.weight,
        )


@dataclass(frozen=True, slots=True)
class Admitted:
    """Whether a stream may come, and with what.

    Attributes:
        fraction: The budget it gets; None if it is refused.
        reason: If it is not what was asked for: why.
    """

    fraction: float | None
    reason: str = ""


class DeviceShare:
    """Shares a device's time out to streams.

    Args:
        capacity: Milliseconds per second.
        admission: What happens to a stream for whose budget there is no room.

    Attributes:
        fractions: Budget per stream, now.
    """

    def __init__(self, capacity: float, admission: Admission = "shrink") -> None:
        self.capacity = capacity
        self.fractions: dict[str, float] = {}
        self._admission = admission
        self._claims: dict[str, Claim] = {}
        self._rates: dict[str, float] = {}

    def join(self, claim: Claim) -> Admitted:
        """Admit a stream, if what the others were promised leaves room."""
        taken = sum(other.time(other.fraction) for other in self._claims.values())
        free = self.capacity - taken
        granted, needed, reason = claim.wanted, claim.time(claim.wanted), ""
        if needed > free + 1e-9:
            reason = (
                f"{claim.rate:g} frames per second at {granted:.1%} of {claim.full_ms:.3g} ms take "
                f"{needed:.1f} ms/s of the device, of whose {self.capacity:.0f} {max(free, 0):.1f} are free"
            )
            granted = free / claim.time(1.0)
            if self._admission == "refuse" or granted < claim.low:
                return Admitted(
                    None, f"{reason}; at the least it takes {claim.time(claim.low):.1f}"
                )
            reason += f"; it gets {granted:.1%}"
        claim = self._claims[claim.stream_id] = replace(claim, fraction=granted)
        rate = self._rates.setdefault(claim.stream_id, claim.rate)
        self.fractions[claim.stream_id] = claim.at(rate).fraction if claim.per_second else granted
        self._take_back()
        return Admitted(granted, reason)

    def change(self, claim: Claim) -> Admitted:
        """A stream asks for something else; if it is refused, it keeps what it had."""
        before = self._claims.pop(claim.stream_id, None)
        had = dict(self.fractions), dict(self._rates)
        self.fractions.pop(claim.stream_id, None)
        if before is not None and before.rate != claim.rate:
            del self._rates[claim.stream_id]  # what was measured was the rate of another promise
        admitted = self.join(claim)
        if admitted.fraction is None and before is not None:
            self._claims[claim.stream_id] = before
            self.fractions, self._rates = had
        return admitted

    def rise(self, claim: Claim) -> float:
        """Milliseconds per second that a claim asks for beyond what its stream was promised so far."""
        had = self._claims.get(claim.stream_id)
        return claim.time(claim.wanted) - (had.time(had.fraction) if had else 0.0)

    def leave(self, stream_id: str) -> None:
        """A stream is gone; what it had is given to others in later rounds."""
        for known in (self._claims, self._rates, self.fractions):
            known.pop(stream_id, None)

    @property
    def allocated(self) -> float:
        """Milliseconds per second that all budgets add up to."""
        return sum(c.time(self.fractions[c.stream_id]) for c in self._now())

    def measured(self, stream_id: str, rate: float) -> None:
        """What a stream's frame rate really is; what it was promised stays the same in time.

        So does what a stream has whose budget is one per second.
        """
        claim, before = self._claims[stream_id], self._rates[stream_id]
        self._rates[stream_id] = rate
        if claim.per_second and before and rate:
            now = claim.at(rate)
            had = self.fractions[stream_id] * claim.at(before).rate / now.rate
            self.fractions[stream_id] = min(max(had, now.low), now.cap)

    def amount(self, stream_id: str) -> float:
        """What a stream may spend now, in full networks: per frame, or per second if it asked so."""
        claim, fraction = self._claims[stream_id], self.fractions[stream_id]
        if not claim.per_second:
            return fraction
        rate = claim.at(self._rates[stream_id]).rate or claim.rate  # for when it comes back
        return min(claim.limit, fraction * rate)

    def rebalance(
        self, seen: Mapping[str, Sequence[ShadowFrame]], costs: Mapping[str, Sequence[float]]
    ) -> None:
        """One round: go some way to the allocation under which answers gain most.

        Args:
            seen: Shadow frames per stream.
            costs: [K] cost of each exit per stream, as a share of its full network's.
        """
        claims = self._now()
        if not claims:
            return
        best = allocate(claims, gains(claims, seen, costs), self.capacity)
        for claim in claims:
            now = self.fractions[claim.stream_id]
            self.fractions[claim.stream_id] = now + STEP * (best[claim.stream_id] - now)
        self._take_back()

    def _take_back(self) -> None:
        """Where more was given than there is: first what was lent, then what was promised."""
        for claim in self._now():
            self.fractions[claim.stream_id] = min(self.fractions[claim.stream_id], claim.cap)
        promised = {c.stream_id: max(c.fraction, c.low) for c in self._now()}
        self._shrink(promised)
        self._shrink({claim.stream_id: claim.low for claim in self._now()})

    def _now(self) -> list[Claim]:
        """The claims at the rates that were measured."""
        return [claim.at(self._rates[name]) for name, claim in self._claims.items()]

    def _shrink(self, least: Mapping[str, float]) -> None:
        """All give back alike of what they have above their least, as far as it is needed."""
        claims, given = self._now(), self.fractions
        above = {c.stream_id: max(0.0, given[c.stream_id] - least[c.stream_id]) for c in claims}
        surplus = sum(claim.time(above[claim.stream_id]) for claim in claims)
        missing = self.allocated - self.capacity
        if missing <= 0 or surplus <= 0:
            return
        part = min(1.0, missing / surplus)
        for name, extra in above.items():
            given[name] -= part * extra


def gains(
    claims: Sequence[Claim],
    seen: Mapping[str, Sequence[ShadowFrame]],
    costs: Mapping[str, Sequence[float]],
) -> dict[str, tuple[Floats, Floats]]:
    """Compute and worth of the answers, as points of a concave curve, per stream.

    A stream with few shadow frames is taken for an average of the others; without any, for one whose
    gain falls evenly.
    """
    places = np.linspace(0, 1, POINTS)
    grids, own, average = {}, {}, np.zeros(POINTS)
    known = 0
    for claim in claims:
        first = costs[claim.stream_id][0]
        grids[claim.stream_id] = first + places * (1 - first)
        frames = seen.get(claim.stream_id, ())
        if frames:
            at, worth = curve(frames, costs[claim.stream_id], [_worth(frame) for frame in frames])
            own[claim.stream_id] = np.interp(grids[claim.stream_id], at, worth)
            average = average + len(frames) * own[claim.stream_id]
            known += len(frames)
    prior = average / known if known else 1 - (1 - places) ** 2
    found = {}
    for claim in claims:
        n = len(seen.get(claim.stream_id, ()))
        mixed = (n * own.get(claim.stream_id, prior) + PRIOR_FRAMES * prior) / (n + PRIOR_FRAMES)
        grid = grids[claim.stream_id]
        hull = concave_hull(grid, mixed)
        found[claim.stream_id] = grid, np.interp(grid, grid[hull], mixed[hull])
    return found


def allocate(
    claims: Sequence[Claim], curves: Mapping[str, tuple[Floats, Floats]], capacity: float
) -> dict[str, float]:
    """The fractions that make the weighted sum of worth largest within the capacity.

    Everybody has the least; the rest goes, piece by piece of the concave curves, to where a millisecond
    gains most. That is optimal for such curves.
    """
    given = {claim.stream_id: claim.low for claim in claims}
    left = capacity - sum(claim.time(given[claim.stream_id]) for claim in claims)
    pieces: list[tuple[float, float, Claim]] = []
    for claim in claims:
        at, worth = curves[claim.stream_id]
        ends = np.unique(np.clip([claim.low, *at, claim.cap], claim.low, claim.cap))
        values = np.interp(ends, at, worth)
        slopes = np.diff(values) / np.diff(ends) * claim.weight / claim.full_ms
        widths = np.diff(ends).tolist()
        pieces += [(s, w, claim) for s, w in zip(slopes.tolist(), widths, strict=True)]
    for _, width, claim in sorted(pieces, key=lambda piece: -piece[0]):
        if left <= 0:
            break
        part = min(width, left / claim.time(1.0)) if claim.rate else width
        given[claim.stream_id] += part
        left -= claim.time(part)
    return given


def _worth(frame: ShadowFrame) -> list[float]:
    """[K], what the answers of the exits are worth: 1, less what a sure last exit contradicts."""
    sure = frame.scores[-1] if frame.scores[-1] > 0 else 0.0  # NaN is not sure
    return [1 - min(sure, 1.0) ** SURE_POWER * (1 - agreed) for agreed in frame.agreement]


def jain_index(values: Sequence[float]) -> float:
    """1 if all are equal, 1/n if one has everything (Jain, Chiu and Hawe, DEC-TR-301, 1984)."""
    squares = sum(value * value for value in values)
    return min(1.0, sum(values) ** 2 / (len(values) * squares)) if squares else 1.0
