"""What a comparison finds, and how sure it is.

N: frames, K: exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamexit.calibration.trace import Trace
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.thresholds import exits_taken

STREAM_BLOCK = 50
"""Consecutive frames of a stream are alike, so intervals are drawn from blocks of them."""

FEW_BLOCKS = 20
"""With fewer, a bootstrap interval is rough, and rather too narrow."""

MOST_BLOCKS = 10_000
RESAMPLES = 1000
COST_TOLERANCE = 0.005


@dataclass(frozen=True)
class Outcome:
    """One method at one budget with one seed, on acceptance frames.

    Attributes:
        budget: Asked for, as a share of the full cost; None where the method has no budget.
        cost: Realised mean.
        accuracy: Mean quality.
        exit_shares: [K].
        on_target: Whether the cost is within half a per cent of the budget.
        frames: How many were judged.
        blocks: Sum of quality per block of frames.
        sizes: Frames per block.
    """

    budget: float | None
    cost: float
    accuracy: float
    exit_shares: tuple[float, ...]
    on_target: bool
    frames: int
    blocks: Floats = field(repr=False)
    sizes: Floats = field(repr=False)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% of the accuracy, by bootstrap over blocks of frames."""
        return interval(self.blocks, self.sizes)


@dataclass(frozen=True)
class Difference:
    """Of one method's accuracy to another's, at one budget, on the same frames.

    Attributes:
        gap: Mean over seeds.
        low: Of the paired 95% interval over the frames that are judged; the spread between seeds is
            not in it.
        high: Likewise.
        on_target: Whether both spent the budget; else they do not compare.
    """

    gap: float
    low: float
    high: float
    on_target: bool

    @property
    def sure(self) -> bool:
        """Whether both spent the same, and the interval leaves 0 out."""
        return self.on_target and (self.low > 0 or self.high < 0)


@dataclass
class MethodReport:
    """One method over all seeds and budgets.

    Attributes:
        name: As asked for.
        scorer: Of what it is made.
        share_rule: Of what it is made.
        fit_seconds: Mean over seeds.
        parameters: Of the scorer.
        microseconds_per_frame: What scoring at all exits takes, in batches of 32, on this machine.
        outcomes: Budget -> one outcome per seed.
        frozen: The same with the calibration's thresholds as they are, whatever that costs.
        own_points: The method's own operating points, first seed: name -> outcome.
        reliability: Of the first seed: [K-1][bin] (mean score, mean quality, share of frames).
    """

    name: str
    scorer: str
    share_rule: str
    fit_seconds: float
    parameters: int
    microseconds_per_frame: float
    outcomes: dict[float, list[Outcome]]
    frozen: dict[float, list[Outcome]]
    own_points: dict[str, Outcome]
    reliability: list[list[tuple[float, float, float]]]


@dataclass
class Comparison:
    """All methods on one trace.

    Attributes:
        trace: Of the acceptance frames.
        calibration: The trace that was fitted on, where that was another one.
        acceptance_frames: How many each seed was judged on.
        calibration_frames: How many each seed was fitted on.
        seeds: How many.
        methods: Reports in the order asked for.
        reference: Name of the method that the others' differences are to.
        references: Per budget, what an oracle and exits at random (geometric shares) would reach.
        full: Mean quality of the last exit.
        exit_accuracy: [K], of the acceptance frames of the first seed.
        leaving: Of the first method, first seed: (budget nearest the middle, group names,
            [group][K] shares): which frames leave where, by class or by time.
    """

    trace: Trace
    calibration: Trace | None
    acceptance_frames: int
    calibration_frames: int
    seeds: int
    methods: list[MethodReport]
    reference: str
    full: float
    references: dict[float, dict[str, float]]
    exit_accuracy: tuple[float, ...]
    leaving: tuple[float, tuple[str, ...], Floats]

    @property
    def blocks(self) -> int:
        """How many blocks of frames intervals are drawn from: fewest of all seeds."""
        runs = next(iter(self.methods[0].outcomes.values()))
        return min(len(run.blocks) for run in runs)


def block_starts(count: int, stream: NDArray[np.integer[Any]] | None) -> NDArray[np.int64]:
    """Where each block of frames begins.

    Args:
        count: N.
        stream: [N], whose frame each is, each stream's frames in their order and together: they are
            like their neighbours. None for independent pictures.
    """
    least = -(-count // MOST_BLOCKS)
    if stream is None:
        return np.arange(0, count, least)
    borders = [0, *(np.flatnonzero(np.diff(stream)) + 1).tolist(), count]
    size = max(STREAM_BLOCK, least)
    return np.concatenate([np.arange(a, b, size) for a, b in pairwise(borders)])


def judge_thresholds(
    scores: Floats,
    thresholds: Floats,
    quality: Floats,
    costs: Floats,
    budget: float | None,
    starts: NDArray[np.int64],
) -> Outcome:
    """What thresholds come to.

    Args:
        scores: [N, K], ties spread.
        thresholds: [K].
        quality: [N, K].
        costs: [K], as shares of the full cost.
        budget: See `Outcome`.
        starts: See `block_starts`.
    """
    taken = exits_taken(scores, thresholds)
    reached = quality[np.arange(len(taken)), taken]
    cost = float(costs[taken].mean())
    shares = np.bincount(taken, minlength=len(costs)) / len(taken)
    return Outcome(
        budget,
        cost,
        float(reached.mean()),
        tuple(shares.tolist()),
        budget is None or abs(cost - budget) <= COST_TOLERANCE * budget,
        len(taken),
        np.add.reduceat(reached, starts),
        np.diff(starts, append=len(taken)).astype(float),
    )


def difference(one: Sequence[Outcome], other: Sequence[Outcome]) -> Difference:
    """Accuracy of `one` minus `other` on the same frames (paired bootstrap).

    Args:
        one: An outcome per seed.
        other: Likewise, at the same budget.
    """
    parts = []
    for a, b in zip(one, other, strict=True):
        parts.append((a.accuracy - b.accuracy, *interval(a.blocks - b.blocks, a.sizes)))
    gap, low, high = np.mean(parts, axis=0).tolist()
    return Difference(gap, low, high, all(run.on_target for run in (*one, *other)))


def differences(comparison: Comparison) -> dict[str, dict[float, Difference]]:
    """Every other method against the reference: name -> budget -> `difference`."""
    outcomes = {method.name: method.outcomes for method in comparison.methods}
    base = outcomes.pop(comparison.reference)
    return {
        name: {budget: difference(runs, base[budget]) for budget, runs in by_budget.items()}
        for name, by_budget in outcomes.items()
    }


def oracle_accuracy(quality: Floats, costs: Floats, budget: float) -> float:
    """The best mean quality that any choice of exits could have within the budget.

    Every frame leaves at its earliest best exit as far as the money goes, cheapest gain first; that
    is the best of all choices where quality is 0 or 1.

    Args:
        quality: [N, K].
        costs: [K].
        budget: In the unit of `costs`.
    """
    best = quality.argmax(1)
    every = np.arange(len(quality))
    gain = quality[every, best] - quality[:, 0]
    price = costs[best] - costs[0]
    wanted = np.flatnonzero(gain > 0)
    order = wanted[np.argsort(-(gain[wanted] / price[wanted]), kind="stable")]
    money = (budget - costs[0]) * len(quality)
    bought = order[np.cumsum(price[order]) <= money]
    return float((quality[:, 0].sum() + gain[bought].sum()) / len(quality))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain values."""
    header = comparison.trace.header
    budget, groups, shares = comparison.leaving
    return {
        "trace": str(comparison.trace.path),
        "pipeline": header.pipeline,
        "data": header.data,
        "label_source": header.label_source,
        "weights_sha256": header.provenance.get("weights_sha256"),
        "calibration": None if comparison.calibration is None else str(comparison.calibration.path),
        "streamexit": version("streamexit"),
        "fractions": list(header.costs.fractions),
        "acceptance_frames": comparison.acceptance_frames,
        "calibration_frames": comparison.calibration_frames,
        "seeds": comparison.seeds,
        "blocks": comparison.blocks,
        "exit_accuracy": list(comparison.exit_accuracy),
        "full": comparison.full,
        "references": {f"{b:g}": values for b, values in comparison.references.items()},
        "methods": {method.name: _method_json(method) for method in comparison.methods},
        "reference": comparison.reference,
        "differences": {
            name: {f"{budget:g}": asdict(found) for budget, found in by_budget.items()}
            for name, by_budget in differences(comparison).items()
        },
        "leaving": {
            "method": comparison.methods[0].name,
            "budget": budget,
            "exit_shares": dict(zip(groups, shares.tolist(), strict=True)),
        },
    }


def _method_json(method: MethodReport) -> dict[str, Any]:
    return {
        "scorer": method.scorer,
        "share_rule": method.share_rule,
        "fit_seconds": round(method.fit_seconds, 3),
        "parameters": method.parameters,
        "microseconds_per_frame": round(method.microseconds_per_frame, 3),
        "budgets": {
            f"{budget:g}": [_outcome_json(run) for run in runs]
            for budget, runs in method.outcomes.items()
        },
        "frozen": {
            f"{budget:g}": [_frozen_json(run) for run in runs]
            for budget, runs in method.frozen.items()
        },
        "own_points": {name: _outcome_json(run) for name, run in method.own_points.items()},
        "reliability": [
            [dict(zip(("score", "quality", "share"), one, strict=True)) for one in bins]
            for bins in method.reliability
        ],
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {**_frozen_json(outcome), "interval": list(outcome.interval)}


def _frozen_json(outcome: Outcome) -> dict[str, Any]:
    content = asdict(outcome)
    del content["blocks"], content["sizes"]
    return content


def interval(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """95% interval of a mean over frames, by the percentile bootstrap over blocks of them.

    A resample's mean is sum over size, so that short blocks count for what they hold. Blocks that are
    alike are drawn together: with right and wrong answers few are not.

    Args:
        sums: Per block.
        sizes: Frames per block.
    """
    alike, counts = np.unique(sums + 1j * sizes, return_counts=True)
    chance = np.random.default_rng(0)
    drawn = chance.multinomial(len(sums), counts / len(sums), RESAMPLES)
    means = (drawn @ alike.real) / (drawn @ alike.imag)
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    return low, high
