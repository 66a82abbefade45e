"""What holding a budget tightly costs: `python -m benchmarks.controller_cost TRACE PIPELINE`.

On the frames of a trace in their order: top-1 with frozen thresholds whose mean cost on these very
frames is the budget (which nobody can know beforehand), against the controller, which holds every
window. Both in one run, from the same scores. The trace is of `streamexit record PIPELINE test`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from streamexit.budget.controller import BudgetController
from streamexit.budget.terms import Terms
from streamexit.budget.windows import worst_window_error
from streamexit.calibration.compare import scores_of
from streamexit.calibration.trace import Trace
from streamexit.models.pipeline import load_pipeline
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.thresholds import (
    ThresholdTable,
    exits_taken,
    spread_all,
    thresholds_within,
)

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.8)


def frozen_exits(table: ThresholdTable, scores: Floats, budget: float) -> list[int]:
    """Exits under the one setting of the table that costs `budget` on these frames."""
    spread = spread_all(scores)
    return [int(k) for k in exits_taken(spread, thresholds_within(table, spread, budget))]


def controlled_exits(table: ThresholdTable, scores: Floats, budget: float) -> list[int]:
    """Exits under the controller, frame by frame."""
    controller = BudgetController(table, Terms(budget))
    return [controller.walk(0.0, row)[1] for row in scores.tolist()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("pipeline", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trace, pipeline = Trace.open(arguments.trace), load_pipeline(arguments.pipeline)
    print("| policy | budget | frozen: top-1 | worst window | controlled: top-1 | worst window |")
    print("|---|---|---|---|---|---|")
    for name, file in pipeline.policies.items():
        policy = load_policy(file, pipeline.costs.fractions)
        scores = scores_of(policy.scorer, trace, np.arange(len(trace)), spread=False)
        for budget in BUDGETS:
            cells = [name, f"{budget:.0%}"]
            for method in (frozen_exits, controlled_exits):
                exits = method(policy.table, scores, budget)
                costs = [pipeline.costs.fractions[k] for k in exits]
                worst = worst_window_error(costs, budget, 300)
                top1 = trace.quality[np.arange(len(exits)), exits].mean()
                cells += [f"{top1:.2%}", f"{worst:.2%}"]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
