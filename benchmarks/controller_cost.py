"""What holding a budget tightly costs: `python -m benchmarks.controller_cost PIPELINE`.

On the test pictures in their canonical order: top-1 with frozen thresholds whose mean cost on these
very pictures is the budget (which nobody can know beforehand), against the controller, which holds
every window. Both in one run, from the same scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from streamexit.budget.controller import BudgetController
from streamexit.calibration.collect import collect_evidence
from streamexit.models.pipeline import load_pipeline
from streamexit.replay import worst_window_error
from streamexit.scheduling.evidence import Floats
from streamexit.scheduling.policy import load_policy
from streamexit.scheduling.scorers import score_all_exits
from streamexit.scheduling.thresholds import ThresholdTable, exits_taken
from streamexit.tasks.classification import build_task
from streamexit.training.datasets import load_part

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.8)


def frozen_exits(table: ThresholdTable, scores: Floats, budget: float) -> list[int]:
    """Exits under the one setting of the table that costs `budget` on these frames."""
    costs = np.asarray(table.fractions)
    low, high = table.low, table.high
    for _ in range(50):
        middle = (low + high) / 2
        mean = costs[exits_taken(scores, np.asarray(table.at(middle)))].mean()
        low, high = (middle, high) if mean < budget else (low, middle)
    return [int(k) for k in exits_taken(scores, np.asarray(table.at(low)))]


def controlled_exits(table: ThresholdTable, scores: Floats, budget: float) -> list[int]:
    """Exits under the controller, frame by frame."""
    controller = BudgetController(table, budget=budget)
    exits = []
    for row in scores:
        k = 0
        while not controller.leaves(k, float(row[k])):
            k += 1
        exits.append(k)
    return exits


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline(arguments.pipeline)
    test = load_part("cifar10", arguments.data, "test", calibration_size=1)
    task = build_task(pipeline.task, pipeline.labels)
    evidence = collect_evidence(pipeline.network, task, test)
    quality = evidence.quality.numpy()
    print("| policy | budget | frozen: top-1 | worst window | controlled: top-1 | worst window |")
    print("|---|---|---|---|---|---|")
    for name, file in pipeline.policies.items():
        policy = load_policy(file, pipeline.costs.fractions)
        scores = score_all_exits(policy.scorer, evidence).detach().double().numpy()
        for budget in BUDGETS:
            cells = [name, f"{budget:.0%}"]
            for method in (frozen_exits, controlled_exits):
                exits = method(policy.table, scores, budget)
                costs = [pipeline.costs.fractions[k] for k in exits]
                worst = worst_window_error(costs, budget, 300)
                top1 = quality[np.arange(len(exits)), exits].mean()
                cells += [f"{top1:.2%}", f"{worst:.2%}"]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
