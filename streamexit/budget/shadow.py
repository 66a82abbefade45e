"""Shadow frames: a few that go to the last exit whatever their scores say, to see what leaving early costs.

Which frames they are does not depend on their content, so they are a random sample: what holds for
them holds for the stream, within an interval that follows from their number.

K: exits, G: other budgets, M: shadow frames that are kept, n: how many there are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.thresholds import ThresholdTable

KEPT = 400
"""M: at one in a hundred, the last 40,000 frames of a stream."""

SAME_BUDGET = 0.05
ENOUGH = 50
"""Frames under the present budget, give or take `SAME_BUDGET`, before older ones are left out."""

GRID = 7
"""G: other budgets that are tried on each shadow frame."""

Z_95 = 1.959964
"""Standard deviations on either side that hold 95% of a normal distribution."""


def is_shadow(stream_id: str, seq: int, share: float) -> bool:
    """Whether frame `seq` of a stream is one: the same frames in every run."""
    digest = hashlib.blake2b(f"{stream_id}/{seq}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32


def grid(table: ThresholdTable) -> tuple[float, ...]:
    """[G] coordinates at which it is tried where shadow frames would leave."""
    step = (table.high - table.low) / (GRID + 1)
    return tuple(table.low + step * (j + 1) for j in range(GRID))


@dataclass(frozen=True, slots=True)
class ShadowFrame:
    """A frame of which every exit's answer is known.

    Attributes:
        scores: [K].
        agreement: [K], of each exit's answer with the last one's, in [0, 1].
        leaves_at: Where it would have left.
        elsewhere: [G] where it would have left at each of the coordinates of `grid`.
        budget: Per frame, that was held then.
    """

    scores: tuple[float, ...]
    agreement: tuple[float, ...]
    leaves_at: int
    elsewhere: tuple[int, ...]
    budget: float


class ShadowLog:
    """The last M shadow frames of a stream.

    One thread adds, others may read `frames`, which is replaced whole.

    Attributes:
        frames: Oldest first.
        total: How many there were.
    """

    def __init__(self) -> None:
        self.frames: tuple[ShadowFrame, ...] = ()
        self.total = 0

    def add(self, frame: ShadowFrame) -> None:
        """Keep a frame; the oldest goes."""
        self.frames = (*self.frames[-KEPT + 1 :], frame)
        self.total += 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over a stream's frames, estimated from its shadow frames.

    Attributes:
        fraction: Mean cost that it holds at, as a share of the full network's.
        value: In [0, 1].
        low: Lower end of the 95% interval.
        high: Upper end.
        frames: How many shadow frames it is from.
    """

    fraction: float
    value: float
    low: float
    high: float
    frames: int


def interval(mean: float, n: int) -> tuple[float, float]:
    """95% confidence interval of a mean of n values in [0, 1] (Wilson, JASA 1927).

    For values that are 0 or 1; wider than need be for values between, whose variance is smaller.
    """
    mean, z2 = min(max(mean, 0.0), 1.0), Z_95**2  # sums of many ones may come to more
    middle = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _estimate(fraction: float, mean: float, n: int) -> Estimate:
    return Estimate(fraction, min(mean, 1.0), *interval(mean, n), n)


def agreement_now(
    frames: Sequence[ShadowFrame], fractions: Sequence[float], budget: float | None = None
) -> Estimate | None:
    """Agreement with the full network of the answers that go out; None without shadow frames.

    Frames that were decided under another budget tell of other answers. While there are few others,
    what all frames say of this budget stands in; see `agreement_at`.

    Args:
        frames: Of one stream.
        fractions: [K], cost of each exit as a share of the full network's.
        budget: Per frame, that is held now; the latest frame's when left out.
    """
    if not frames:
        return None
    budget = frames[-1].budget if budget is None else budget
    alike = [frame for frame in frames if abs(frame.budget - budget) <= SAME_BUDGET * budget]
    if len(alike) < min(ENOUGH, len(frames)):
        inside = min(max(budget, fractions[0]), fractions[-1])
        return agreement_at(frames, fractions, [inside])[0]
    frames = alike
    value = sum(frame.agreement[frame.leaves_at] for frame in frames) / len(frames)
    cost = sum(fractions[frame.leaves_at] for frame in frames) / len(frames)
    return _estimate(cost, value, len(frames))


def agreement_at(
    frames: Sequence[ShadowFrame], fractions: Sequence[float], budgets: Sequence[float]
) -> list[Estimate]:
    """Agreement with the full network if the budget were another.

    Args:
        frames: At least one.
        fractions: [K], cost of each exit as a share of the full network's.
        budgets: Mean costs between the first exit's and 1.
    """
    costs, values = curve(frames, fractions, [frame.agreement for frame in frames])
    means = np.interp(budgets, costs, values).tolist()
    return [_estimate(b, m, len(frames)) for b, m in zip(budgets, means, strict=True)]


def curve(
    frames: Sequence[ShadowFrame], fractions: Sequence[float], values: Sequence[Sequence[float]]
) -> tuple[Floats, Floats]:
    """What some quality of the answers is at other mean costs.

    Each shadow frame was tried at several coordinates under the thresholds of its time, so the cost
    of a coordinate is not assumed but seen.

    Args:
        frames: At least one.
        fractions: [K].
        values: [n][K], of each frame's answers.

    Returns:
        Mean costs, rising, and mean values, from the first exit's cost to 1.
    """
    value, cost = np.asarray(values, float), np.asarray(fractions)
    every = np.arange(len(frames))
    exits = np.array([frame.elsewhere for frame in frames]).T
    inner = [(float(cost[taken].mean()), float(value[every, taken].mean())) for taken in exits]
    ends = [(cost[0], value[:, 0].mean()), (cost[-1], value[:, -1].mean())]
    points = np.array(sorted([*inner, *ends]))
    return points[:, 0], points[:, 1]
