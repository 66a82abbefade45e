"""A table, and streams of scores that are played against controllers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import numpy as np

from streamexit.budget.controller import BudgetController
from streamexit.budget.passage import Passage
from streamexit.scheduling.shares import GeometricShares
from streamexit.scheduling.thresholds import ThresholdTable, build_table

COSTS = (0.25, 0.6, 1.0)
Scores = Callable[[int, int], float]


def make_table(seed: int = 0) -> ThresholdTable:
    """A table whose calibration scores are uniform."""
    scores = np.random.default_rng(seed).random((1000, 3))
    rows = [GeometricShares(COSTS).shares(b) for b in np.linspace(0.28, 0.97, 17)]
    return build_table(scores, COSTS, rows)


TABLE = make_table()


def play(
    controller: BudgetController,
    scores: Scores,
    frames: int,
    *,
    begin: int = 0,
    seconds: Callable[[int], float] = float,
) -> list[float]:
    """Costs of frames that are decided one after the other; frame i comes at `seconds(i)`."""
    costs = []
    for i in range(begin, begin + frames):
        passage, k = controller.walk(seconds(i), (scores(i, k) for k in range(len(COSTS))))
        controller.settled(passage, k)
        costs.append(COSTS[k])
    return costs


def play_delayed(
    controller: BudgetController, scores: Scores, frames: int, delay: int
) -> list[float]:
    """The same when each stage waits until `delay` frames are there, as batching does."""
    costs = [0.0] * frames
    waiting: list[deque[tuple[int, Passage]]] = [deque(), deque(), deque()]

    def run(k: int) -> None:
        while waiting[k]:
            i, passage = waiting[k].popleft()
            if controller.leaves(passage, k, scores(i, k)):
                costs[i] = COSTS[k]
            else:
                waiting[k + 1].append((i, passage))

    for i in range(frames):
        waiting[0].append((i, controller.enter(float(i))))
        for k in range(3):
            if len(waiting[k]) >= delay or i == frames - 1:
                run(k)
    return costs


def uniform(seed: int) -> Scores:
    """Scores as in calibration."""
    values = np.random.default_rng(seed).random((5000, 3))
    return lambda i, k: float(values[i % 5000, k])


DRIFT, SURENESS = uniform(2), uniform(3)

PATTERNS: dict[str, Scores] = {
    "as calibrated": uniform(1),
    "always sure": lambda i, k: 1.0,
    "never sure": lambda i, k: 0.0,
    "constant": lambda i, k: 0.5,
    "NaN": lambda i, k: float("nan"),
    "alternating extremes": lambda i, k: float(i % 2),
    "blocks": lambda i, k: float(i // 100 % 2),
    "drifting": lambda i, k: min(1.0, i / 3000 + 0.2 * DRIFT(i, k)),
    "mostly sure": lambda i, k: 0.9 + 0.1 * SURENESS(i, k),
}


def regimes(seed: int, switch: int) -> Scores:
    """An adversary: scores jump between extremes, NaN among them, every `switch` frames."""
    chance = random.Random(seed)
    levels = [chance.choice([0.0, 0.3, 0.5, 0.999, 1.0, float("nan")]) for _ in range(2000)]
    return lambda i, k: levels[i // switch] if k == 0 else levels[(i // switch + k) % 2000]
