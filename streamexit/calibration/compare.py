"""Comparing exit policies on a trace: same frames, same realised cost, disjoint parts.

What makes a comparison fair here: policies are fitted, and their tables of thresholds solved, on
calibration frames alone. On the acceptance frames only the place in the table is chosen, by the cost
that the frames cause, in hindsight but without a look at any label, so that all methods spend the
same. A budget controller comes near that without hindsight (`benchmarks.controller_cost` says how
near); what thresholds that are frozen on calibration would cost and reach is reported beside it.

N: frames, K: exits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from streamexit.calibration.outcomes import (
    Comparison,
    MethodReport,
    Outcome,
    block_starts,
    judge_thresholds,
    oracle_accuracy,
)
from streamexit.calibration.threads import one_thread
from streamexit.calibration.trace import Trace
from streamexit.errors import BudgetError, DataError, InputError
from streamexit.scheduling.evidence import Calibration, Evidence, Floats
from streamexit.scheduling.methods import find_method, fit_scorer
from streamexit.scheduling.policy import ExitPolicy, fit_policy
from streamexit.scheduling.scorers import Scorer, score_all_exits
from streamexit.scheduling.shares import GeometricShares
from streamexit.scheduling.thresholds import exits_taken, spread_all, thresholds_within

MOST_CALIBRATION_FRAMES = 50_000
KEPT_SHARE = 0.8
"""Of the calibration frames, drawn anew for each seed, when they come from a trace of their own."""

RELIABILITY_BINS = 10

USUAL_REFERENCE = "msdnet"
"""The highest probability with geometric shares: nothing is learned, and everybody has it."""

Rows = NDArray[np.int64]
Scorers = dict[tuple[str, int], tuple[Scorer, float]]
"""(kind, seed) -> (scorer, the seconds that it took)."""


@one_thread()
def compare(
    trace: Trace,
    *,
    calibration: Trace | None,
    methods: Sequence[str],
    budgets: Sequence[float],
    seeds: int = 3,
    against: str | None = None,
    on_method: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Fit every method on calibration frames and judge it on the others.

    Args:
        trace: Acceptance frames; without `calibration`, split in two halves: streams by time,
            pictures at random within each class.
        calibration: A trace of the same network on other frames.
        methods: Keys of `METHODS`, or "scorer+rule".
        budgets: Shares of the full cost.
        seeds: How often to repeat with other splits or draws and other initial weights.
        against: The method that the others' differences are to; `USUAL_REFERENCE` unless told, or
            the first.
        on_method: Called before each method.

    Raises:
        BudgetError: A budget outside the first exit's cost and 1.
        InputError: `methods` or `against` make no sense.
        DataError: Traces that do not belong together, or too few frames or classes.
        PipelineError: An unknown method.
    """
    fractions = trace.header.costs.fractions
    _check_request(trace, methods, budgets)
    reference = _reference(methods, against)
    _check_traces(trace, calibration)
    splits = [_split(trace, calibration, seed) for seed in range(seeds)]
    fitted, num_exits = len(splits[0][0]), trace.num_exits
    if fitted < num_exits:
        raise DataError(
            f"{(calibration or trace).path}: leaves {fitted} frames of {num_exits} exits to fit "
            "on; record more"
        )
    evidence = [(calibration or trace).load(rows) for rows, _ in splits]
    judged = [np.asarray(trace.quality[rows], dtype=float) for _, rows in splits]
    scorers: Scorers = {}
    reports, first_policy = [], None
    for name in methods:
        on_method(name)
        policies, seconds = _fit(name, evidence, fractions, scorers)
        first_policy = first_policy or policies[0]
        report = _judge(name, policies, trace, splits, judged, budgets)
        report.fit_seconds = seconds
        report.microseconds_per_frame = scoring_time(policies[0].scorer, evidence[0])
        reports.append(report)
    assert first_policy is not None
    return Comparison(
        trace,
        calibration,
        len(splits[0][1]),
        len(splits[0][0]),
        seeds,
        reports,
        reference,
        float(np.mean([quality[:, -1].mean() for quality in judged])),
        {budget: _references(judged, np.asarray(fractions), budget) for budget in budgets},
        tuple(judged[0].mean(0).tolist()),
        _leaving(first_policy, trace, splits[0][1], budgets),
    )


def scores_of(scorer: Scorer, trace: Trace, rows: Rows, *, spread: bool = True) -> Floats:
    """[N, K] exit scores, reading the trace a chunk at a time.

    Args:
        scorer: Of a policy.
        trace: See `Trace`.
        rows: [N].
        spread: Whether ties are drawn apart; a budget controller does that itself.
    """
    scores = np.empty((len(rows), trace.num_exits))
    for part, evidence in trace.chunks(rows):
        scores[part] = score_all_exits(scorer, evidence).detach().numpy()
    return spread_all(scores) if spread else scores


def scoring_time(scorer: Scorer, evidence: Calibration, *, rows: int = 32) -> float:
    """Microseconds per frame that the scorer takes at all exits, best of several runs."""
    sample = evidence.rows(torch.arange(rows) % len(evidence.quality))
    past = [torch.zeros(rows, k) for k in range(evidence.num_exits)]
    inputs: list[Evidence] = [sample.at(k, past[k]) for k in range(evidence.num_exits)]
    taken = []
    with torch.inference_mode():
        for _ in range(30):
            begun = time.perf_counter()
            for k, known in enumerate(inputs):
                scorer.score(k, known)
            taken.append(time.perf_counter() - begun)
    return 1e6 * min(taken) / rows


def _check_request(trace: Trace, methods: Sequence[str], budgets: Sequence[float]) -> None:
    if not methods or len(set(methods)) < len(methods):
        raise InputError(f"methods: {', '.join(methods) or 'none'}; name each once, at least one")
    for name in methods:
        if find_method(name).scorer == "branch" and trace.branch is None:
            raise DataError(f"{trace.path}: its network has no confidence branch for {name!r}")
    if not budgets:
        raise BudgetError("budgets: none; name at least one, as in 0.5")
    first = trace.header.costs.fractions[0]
    for budget in budgets:
        if not first <= budget <= 1:
            raise BudgetError(
                f"budgets: {budget:g} lies outside {math.ceil(1e4 * first) / 1e4:g} (all leave at "
                "the first exit) and 1 (none leaves early)"
            )


def _reference(methods: Sequence[str], against: str | None) -> str:
    reference = against or (USUAL_REFERENCE if USUAL_REFERENCE in methods else methods[0])
    if reference not in methods:
        raise InputError(
            f"against: {reference!r} is not compared; write one of {', '.join(methods)}"
        )
    return reference


def _check_traces(trace: Trace, calibration: Trace | None) -> None:
    for part in (trace, calibration):
        if part is None:
            continue
        if part.label is not None and len(np.unique(part.label)) < 2:
            raise DataError(f"{part.path}: all frames are of one class; nothing can be compared")
        if part.header.provenance.get("part") == "train":
            raise DataError(
                f"{part.path}: holds the pictures that the network was trained on, where its exits "
                "look better than they are; record the calibration or the test part"
            )
    if calibration is None:
        return
    ours, theirs = trace.header, calibration.header
    weights = [h.provenance.get("weights_sha256") for h in (ours, theirs)]
    if ours.costs != theirs.costs or ours.labels != theirs.labels or weights[0] != weights[1]:
        raise DataError(
            f"{calibration.path}: is of another network than {trace.path} "
            f"({theirs.pipeline} and {ours.pipeline}, or other weights); record both anew"
        )
    if _same_frames(trace, calibration):
        raise DataError(
            f"{calibration.path}: holds the frames of {trace.path}; policies must be fitted on "
            "others, or leave --calibration out to split the trace"
        )


def _same_frames(trace: Trace, calibration: Trace) -> bool:
    if calibration.path.samefile(trace.path):
        return True
    return calibration.header.data == trace.header.data and np.array_equal(
        calibration.quality, trace.quality
    )


def _split(trace: Trace, calibration: Trace | None, seed: int) -> tuple[Rows, Rows]:
    """Rows to fit on, of `calibration` if given, and rows of `trace` to judge on."""
    draw = np.random.default_rng(seed)
    if calibration is not None:
        kept = draw.permutation(len(calibration))[: max(1, round(KEPT_SHARE * len(calibration)))]
        every = np.arange(len(trace))
        if trace.header.kind == "stream":
            every = np.argsort(trace.stream, kind="stable")
        return _thinned(np.sort(kept)), every
    groups = trace.stream if trace.header.kind == "stream" else trace.groups
    fit, judge = [], []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if trace.header.kind == "images":
            rows = draw.permutation(rows)
        fit.append(rows[: len(rows) // 2])
        judge.append(rows[len(rows) // 2 :])
    if trace.header.kind == "images":
        return _thinned(np.sort(np.concatenate(fit))), np.sort(np.concatenate(judge))
    first_halves = np.concatenate(fit)
    kept = draw.permutation(len(first_halves))[: max(1, round(KEPT_SHARE * len(first_halves)))]
    return _thinned(first_halves[np.sort(kept)]), np.concatenate(judge)


def _thinned(rows: Rows) -> Rows:
    """At most as many rows as are held in memory at once, evenly spaced."""
    if len(rows) <= MOST_CALIBRATION_FRAMES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_CALIBRATION_FRAMES).astype(np.int64)]


def _fit(
    name: str, evidence: Sequence[Calibration], fractions: tuple[float, ...], scorers: Scorers
) -> tuple[list[ExitPolicy], float]:
    """A policy per seed, and the seconds that one takes; scorers that were fitted before are taken again."""
    kind = find_method(name).scorer
    policies, seconds = [], 0.0
    for seed, frames in enumerate(evidence):
        if (kind, seed) not in scorers:
            begun = time.perf_counter()
            scorer = fit_scorer(kind, frames, fractions, seed)
            scorers[kind, seed] = scorer, time.perf_counter() - begun
        scorer, taken = scorers[kind, seed]
        begun = time.perf_counter()
        policies.append(fit_policy(name, frames, fractions, seed=seed, scorer=scorer))
        seconds += taken + time.perf_counter() - begun
    return policies, seconds / len(evidence)


def _judge(
    name: str,
    policies: Sequence[ExitPolicy],
    trace: Trace,
    splits: Sequence[tuple[Rows, Rows]],
    judged: Sequence[Floats],
    budgets: Sequence[float],
) -> MethodReport:
    costs = np.asarray(trace.header.costs.fractions)
    outcomes: dict[float, list[Outcome]] = {budget: [] for budget in budgets}
    frozen: dict[float, list[Outcome]] = {budget: [] for budget in budgets}
    own: dict[str, Outcome] = {}
    reliability: list[list[tuple[float, float, float]]] = []
    for policy, (_, rows), quality in zip(policies, splits, judged, strict=True):
        scores = scores_of(policy.scorer, trace, rows)
        starts = block_starts(
            len(rows), trace.stream[rows] if trace.header.kind == "stream" else None
        )
        for budget in budgets:
            fixed = np.asarray(policy.table.at(budget))
            frozen[budget].append(judge_thresholds(scores, fixed, quality, costs, budget, starts))
            thresholds = thresholds_within(policy.table, scores, budget)
            outcomes[budget].append(
                judge_thresholds(scores, thresholds, quality, costs, budget, starts)
            )
        if policy is policies[0]:
            reliability = _reliability(scores, quality)
            for point, limits in policy.scorer.own_thresholds(len(costs)).items():
                thresholds = np.array([*limits, -np.inf])
                own[point] = judge_thresholds(scores, thresholds, quality, costs, None, starts)
    made = policies[0].provenance
    parameters = sum(p.numel() for p in policies[0].scorer.parameters())
    return MethodReport(
        name,
        made["scorer"],
        made["share_rule"],
        0.0,
        parameters,
        0.0,
        outcomes,
        frozen,
        own,
        reliability,
    )


def _references(judged: Sequence[Floats], costs: Floats, budget: float) -> dict[str, float]:
    shares = (
        GeometricShares(costs.tolist()).shares(budget) if budget < 1 else np.eye(len(costs))[-1]
    )
    return {
        "oracle": float(np.mean([oracle_accuracy(q, costs, budget) for q in judged])),
        "random": float(np.mean([q.mean(0) @ shares for q in judged])),
    }


def _reliability(scores: Floats, quality: Floats) -> list[list[tuple[float, float, float]]]:
    result = []
    for k in range(scores.shape[1] - 1):
        bins = np.clip((scores[:, k] * RELIABILITY_BINS).astype(int), 0, RELIABILITY_BINS - 1)
        result.append(
            [
                (float(scores[at, k].mean()), float(quality[at, k].mean()), float(at.mean()))
                for at in (bins == b for b in range(RELIABILITY_BINS))
                if at.any()
            ]
        )
    return result


def _leaving(
    policy: ExitPolicy, trace: Trace, rows: Rows, budgets: Sequence[float]
) -> tuple[float, tuple[str, ...], Floats]:
    """Exit shares by class, or by twentieths of time."""
    budget = sorted(budgets)[len(budgets) // 2]
    scores = scores_of(policy.scorer, trace, rows)
    taken = exits_taken(scores, thresholds_within(policy.table, scores, budget))
    group: Rows
    if trace.header.kind == "images":
        group = trace.groups[rows].astype(np.int64)
        names = trace.header.labels
    else:
        group = np.arange(len(rows)) * 20 // len(rows)
        names = tuple(f"{5 * i}%" for i in range(20))
    table = np.zeros((len(names), trace.num_exits))
    np.add.at(table, (group, taken), 1)
    return budget, names, table / np.maximum(table.sum(1, keepdims=True), 1)
