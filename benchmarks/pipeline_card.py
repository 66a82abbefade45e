"""The card of a trained pipeline: `python -m benchmarks.pipeline_card PIPELINE`.

Records a trace of the test pictures, sends it frame by frame through every policy of the folder
under the budget controller, and writes the pipeline's README.md from what came out. Nothing in the
card is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.controller_cost import controlled_exits
from streamexit.budget.windows import worst_window_error
from streamexit.calibration.compare import scores_of
from streamexit.calibration.record import record_part, record_trace
from streamexit.calibration.trace import Trace
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.scheduling.policy import load_policy

FRACTIONS = (0.2, 0.3, 1 / 3, 0.4, 0.5, 0.6, 0.8)
WINDOW = 300

DATA = {
    "cifar10": "CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "2009). The data set's page states no licence and asks for that citation.",
    "cifar100": "CIFAR-100 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, "
    "2009), in JPEG copies of about 34 dB, not lossless: figures are not comparable with those on "
    "the original to a tenth of a point. The data set's page states no licence and asks for that "
    "citation.",
}


def budget_rows(pipeline: Pipeline, trace: Trace) -> Iterator[str]:
    """One line per policy and budget."""
    costs = np.asarray(pipeline.costs.fractions)
    every = np.arange(len(trace))
    for name, file in pipeline.policies.items():
        policy = load_policy(file, pipeline.costs.fractions)
        scores = scores_of(policy.scorer, trace, every, spread=False)
        label = f"{name} (default)" if name == pipeline.default_policy else name
        for budget in (f for f in FRACTIONS if f > costs[0]):
            exits = np.array(controlled_exits(policy.table, scores, budget))
            worst = worst_window_error(costs[exits].tolist(), budget, WINDOW)
            shares = np.bincount(exits, minlength=len(costs)) / len(exits)
            agreed = trace.predictions[every, exits] == trace.predictions[:, -1]
            yield (
                f"| {label} | {budget:.1%} | {costs[exits].mean():.2%} | {worst:.2%} | "
                f"{trace.quality[every, exits].mean():.2%} | {agreed.mean():.2%} | "
                f"{' / '.join(f'{100 * s:.0f}' for s in shares)} |"
            )


def card(pipeline: Pipeline, trace: Trace, folder: str) -> str:
    """The card as Markdown."""
    training: dict[str, Any] = json.loads((pipeline.folder / "training.json").read_text("utf-8"))
    recipe = training["recipe"]
    network = ", ".join(f"{k} {v}" for k, v in recipe["network"].items())
    reached = [figures["accuracy"] for figures in training["test_figures_per_exit"]]
    best = max(reached)
    interval = 1.96 * math.sqrt(best * (1 - best) / training["test_pictures"])
    shown = ", ".join(pipeline.labels[:10]) + (" ..." if len(pipeline.labels) > 10 else "")
    lines = [
        f"# {pipeline.name}",
        "",
        f"{network}. Trained from scratch by `streamexit train {folder}/train.yaml` "
        f"({recipe['optimiser']['epochs']} epochs on {training['train_pictures']:,} pictures, "
        f"{recipe['precision']} autocast, on {training['device'].upper()}, {training['date']}, "
        f"torch {training['versions']['torch'].split('+')[0]}). Policies: `streamexit fit {folder}` "
        f"on {recipe['data']['calibration_size']:,} training pictures that the network never saw.",
        "",
        f"Answers one of {len(pipeline.labels)}: {shown}. It knows 32x32 pictures of single "
        "objects; on camera footage its answers mean little. It is here to show the machinery.",
        "",
        "## Each exit alone",
        "",
        f"Top-1 on the {training['test_pictures']:,} test pictures; cost includes passed heads.",
        "",
        "| exit | GFLOPs per frame | share of full | top-1 |",
        "|---|---|---|---|",
    ]
    for k, accuracy in enumerate(reached):
        cost, share = pipeline.costs.per_exit[k], pipeline.costs.fractions[k]
        lines.append(f"| {k + 1} | {cost:.4f} | {share:.1%} | {accuracy:.2%} |")
    lines += [
        "",
        "## Under a budget",
        "",
        f"The test pictures as one stream of {len(trace):,} frames, decided one after the other "
        f"under the budget controller (window {WINDOW}). Agreement is with the last exit's answers.",
        "",
        "| policy | budget | mean cost | worst window | top-1 | agreement | exit shares |",
        "|---|---|---|---|---|---|---|",
        *budget_rows(pipeline, trace),
        "",
        f"Made by `python -m benchmarks.pipeline_card {folder}`. The 95% interval of a top-1 figure "
        f"is about +-{100 * interval:.1f} points.",
        "",
        "## Data",
        "",
        DATA[recipe["data"]["dataset"]],
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline(arguments.pipeline)
    out = Path("out/traces") / f"{pipeline.name}-test.npz"
    recording = record_part(pipeline, "test", arguments.data)
    trace = record_trace(pipeline, recording, out, device=torch.device("cpu"))
    text = card(pipeline, trace, arguments.pipeline.as_posix())
    (arguments.pipeline / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
