"""What precision costs: `python -m benchmarks.precision PIPELINE ... --data FOLDER`.

Every exit on the test pictures, by each backend and precision that this machine has, beside eager
float32: the figure that counts for the task, how many answers are the same, and how far scores move.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamexit.backends.backend import Backend
from streamexit.backends.opening import BackendOptions, open_backend
from streamexit.errors import ConfigurationError
from streamexit.models.pipeline import Pipeline, load_pipeline
from streamexit.scheduling.policy import load_policy
from streamexit.tasks.readout import Task
from streamexit.training.datasets import load_part
from streamexit.training.labelled import LabelledImages

ROWS = 8
OPTIONS = (
    BackendOptions("torch", "cpu", "float32", batch=ROWS),
    BackendOptions("openvino", "cpu", "float32", batch=ROWS),
    BackendOptions("openvino", "cpu", "bf16", batch=ROWS),
    BackendOptions("torch", "cuda:0", "float32", batch=ROWS),
    BackendOptions("cuda", "cuda:0", "bf16", batch=ROWS),
)


@dataclass(frozen=True)
class Answers:
    """Of all pictures at all exits.

    Attributes:
        figures: [K], as `Tally.figures` puts it first.
        targets: [K][N], as the task compares them.
        scores: [K, N].
    """

    figures: list[float]
    targets: list[list[Any]]
    scores: np.ndarray


def answers(backend: Backend, task: Task, pictures: LabelledImages) -> Answers:
    """Run every picture through all exits."""
    stages = range(backend.num_stages)
    tallies = [task.tally() for _ in stages]
    targets: list[list[Any]] = [[] for _ in stages]
    scores: list[list[float]] = [[] for _ in stages]
    for begin in range(0, len(pictures.labels), ROWS):
        states: Sequence[Any] = list(pictures.images[begin : begin + ROWS])
        for k in stages:
            result = backend.submit(k, states).result()
            scores[k] += result.scores
            for i in range(len(states)):
                prediction = task.prediction(result.answer, i)
                tallies[k].add(prediction, task.as_target(pictures.labels[begin + i]))
                targets[k].append(task.target(prediction))
            states = result.states
    figures = [next(iter(tally.figures().values())) for tally in tallies]
    return Answers(figures, targets, np.array(scores))


def rows(pipeline: Pipeline, data: Path) -> Iterator[str]:
    """One line per backend."""
    task = pipeline.build_task()
    assert pipeline.calibration is not None
    pictures = load_part(
        pipeline.calibration.dataset,
        data,
        "test",
        calibration_size=pipeline.calibration.calibration_size,
    )
    scorer = load_policy(pipeline.policy_file(None), pipeline.costs.fractions).scorer
    plain: Answers | None = None
    for options in OPTIONS:
        try:
            backend = open_backend(pipeline, scorer, options)
        except ConfigurationError:
            continue  # not on this machine
        found = answers(backend, task, pictures)
        plain = plain or found
        same = [
            np.mean([np.mean(np.asarray(a) == np.asarray(b)) for a, b in zip(x, y, strict=True)])
            for x, y in zip(found.targets, plain.targets, strict=True)
        ]
        moved = np.abs(found.scores - plain.scores)
        yield (
            f"| {pipeline.name} | {options.kind} {options.device} {options.precision} | "
            f"{' / '.join(f'{100 * figure:.2f}' for figure in found.figures)} | "
            f"{' / '.join(f'{share:.2%}' for share in same)} | "
            f"{moved.mean():.5f} | {moved.max():.4f} |"
        )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipelines", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    print(
        "| pipeline | backend | test figure per exit | same answer | score: mean | largest change |"
    )
    print("|---|---|---|---|---|---|")
    for folder in options.pipelines:
        for row in rows(load_pipeline(folder), options.data):
            print(row, flush=True)


if __name__ == "__main__":
    main()
