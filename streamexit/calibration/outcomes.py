"""What a comparison finds, and how sure it is.

N: frames, K: exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from streamexit.calibration.trace import Trace
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.thresholds import exits_taken

STREAM_BLOCK = 50
"""Consecutive frames of a stream are alike, so intervals are drawn from blocks of them."""

MOST_BLOCKS = 20_000
RESAMPLES = 1000
COST_TOLERANCE = 0.005


@dataclass(frozen=True)
class Outcome:
    """One method at one budget with one seed, on acceptance frames.

    Attributes:
        budget: Asked for, as a share of the full cost; None where the method has no budget.
        cost: Realised mean.
        accuracy: Mean quality.
        interval: 95%, by bootstrap over blocks of frames.
        exit_shares: [K].
        on_target: Whether the cost is within half a per cent of the budget.
        frames: How many were judged.
        blocks: Sum of quality per block of frames, for paired differences.
    """

    budget: float | None
    cost: float
    accuracy: float
    interval: tuple[float, float]
    exit_shares: tuple[float, ...]
    on_target: bool
    frames: int
    blocks: Floats = field(repr=False)


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
    acceptance_frames: int
    calibration_frames: int
    seeds: int
    methods: list[MethodReport]
    reference: str
    full: float
    references: dict[float, dict[str, float]]
    exit_accuracy: tuple[float, ...]
    leaving: tuple[float, tuple[str, ...], Floats]


def judge_thresholds(
    scores: Floats,
    thresholds: Floats,
    quality: Floats,
    costs: Floats,
    budget: float | None,
    *,
    stream: bool,
) -> Outcome:
    """What thresholds come to.

    Args:
        scores: [N, K], ties spread.
        thresholds: [K].
        quality: [N, K].
        costs: [K], as shares of the full cost.
        budget: See `Outcome`.
        stream: Whether neighbouring frames are alike.
    """
    taken = exits_taken(scores, thresholds)
    reached = quality[np.arange(len(taken)), taken]
    cost = float(costs[taken].mean())
    size = max(STREAM_BLOCK if stream else 1, -(-len(reached) // MOST_BLOCKS))
    blocks = np.add.reduceat(reached, np.arange(0, len(reached), size))
    shares = np.bincount(taken, minlength=len(costs)) / len(taken)
    return Outcome(
        budget,
        cost,
        float(reached.mean()),
        _interval(blocks * len(blocks) / len(reached)),
        tuple(shares.tolist()),
        budget is None or abs(cost - budget) <= COST_TOLERANCE * budget,
        len(taken),
        blocks,
    )


def difference(one: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[float, float, float]:
    """Accuracy of `one` minus `other` on the same frames, and its 95% interval (paired bootstrap).

    Args:
        one: An outcome per seed.
        other: Likewise, at the same budget.
    """
    parts = []
    for a, b in zip(one, other, strict=True):
        gap = (a.blocks - b.blocks) * len(a.blocks) / a.frames
        parts.append((a.accuracy - b.accuracy, *_interval(gap)))
    mean, low, high = np.mean(parts, axis=0).tolist()
    return mean, low, high


def differences(comparison: Comparison) -> dict[str, dict[float, tuple[float, float, float]]]:
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
    return {
        "trace": str(comparison.trace.path),
        "pipeline": header.pipeline,
        "data": header.data,
        "label_source": header.label_source,
        "fractions": list(header.costs.fractions),
        "acceptance_frames": comparison.acceptance_frames,
        "calibration_frames": comparison.calibration_frames,
        "seeds": comparison.seeds,
        "exit_accuracy": list(comparison.exit_accuracy),
        "full": comparison.full,
        "references": {f"{b:g}": values for b, values in comparison.references.items()},
        "methods": {method.name: _method_json(method) for method in comparison.methods},
        "reference": comparison.reference,
        "differences": {
            name: {f"{budget:g}": list(found) for budget, found in by_budget.items()}
            for name, by_budget in differences(comparison).items()
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
            f"{budget:g}": [_outcome_json(run) for run in runs]
            for budget, runs in method.frozen.items()
        },
        "own_points": {name: _outcome_json(run) for name, run in method.own_points.items()},
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    content = asdict(outcome)
    del content["blocks"]
    return content


def _interval(blocks: Floats) -> tuple[float, float]:
    """95% interval of the mean, by the percentile bootstrap."""
    draw = np.random.default_rng(0)
    means = [blocks[draw.integers(0, len(blocks), len(blocks))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    return low, high
