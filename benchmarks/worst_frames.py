"""Where a budget hurts most: `python -m benchmarks.worst_frames` draws docs/segmentation-worst.jpg.

Plays each recording through the segmentation pipeline twice, at half of the compute and at all of it,
and draws the frames on which the two maps differ most: left what the budget gave, right what the
full network says. Nothing is picked by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.segmentation_table import VIDEOS, pipeline_and_data
from streamexit.drawing import Annotator
from streamexit.exits import Budget, ExitRecord
from streamexit.models.pipeline import Pipeline
from streamexit.playback import Replay
from streamexit.preprocessing import Image
from streamexit.scheduling.policy import load_policy
from streamexit.sources.opening import open_source

OUT = Path("docs/segmentation-worst.jpg")
PER_VIDEO = 2
APART = 25
"""Frames between two that are shown, so that they are not the same scene."""

BUDGET = 0.5
WIDTH, HEIGHT = 560, 315


def play(pipeline: Pipeline, file: Path, budget: float) -> list[ExitRecord]:
    """All answers to a recording."""
    records: list[ExitRecord] = []
    source = open_source(
        str(file), preprocessing=pipeline.network.preprocessing, labels=pipeline.labels
    )
    policy = load_policy(pipeline.policy_file(None), pipeline.costs.fractions)
    Replay(
        {file.stem[:24]: source},
        pipeline=pipeline,
        policy=policy,
        budget=Budget(budget),
    ).run(records.append)
    return records


def worst(
    pipeline: Pipeline, ours: Sequence[ExitRecord], full: Sequence[ExitRecord]
) -> list[tuple[float, int]]:
    """(agreement, frame) of the worst frames, the worst first."""
    task = pipeline.build_task()
    agreement = sorted(
        (task.judge(a.prediction, task.target(b.prediction)).quality, i)
        for i, (a, b) in enumerate(zip(ours, full, strict=True))
    )
    found: list[tuple[float, int]] = []
    for quality, i in agreement:
        if len(found) < PER_VIDEO and all(abs(i - j) >= APART for _, j in found):
            found.append((quality, i))
    return found


def rows(pipeline: Pipeline, file: Path) -> list[Image]:
    """A row of pictures for each of a recording's worst frames."""
    ours, full = play(pipeline, file, BUDGET), play(pipeline, file, 1.0)
    found = worst(pipeline, ours, full)
    print(file.name, [(f"frame {i}", f"agreement {quality:.1%}") for quality, i in found])
    shown = {i for _, i in found}
    source = open_source(
        str(file),
        preprocessing=pipeline.network.preprocessing,
        labels=pipeline.labels,
        own_size=True,
    )
    pictures = {
        i: picture.image
        for i, picture in enumerate(source.pictures(lambda reason: None))
        if i in shown
    }
    drawn = []
    for _, i in found:
        pair = []
        for budget, records in ((BUDGET, ours), (1.0, full)):
            draw = Annotator(
                pipeline.costs,
                budget=budget,
                window=1,
                preprocessing=pipeline.network.preprocessing,
            )
            pair.append(cv2.resize(draw(np.asarray(pictures[i]), records[i]), (WIDTH, HEIGHT)))
        drawn.append(np.hstack(pair).astype(np.uint8))
    return drawn


def main() -> None:
    """Play, choose, draw."""
    pipeline, data = pipeline_and_data(__doc__)
    drawn = [row for name in VIDEOS for row in rows(pipeline, data / "videos" / name)]
    picture = cv2.cvtColor(np.vstack(drawn), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(OUT), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
