"""Every exit's evidence on frames, through the same network and readout that the node runs.

N: frames, K: exits, C: classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.models.network import MultiExitNetwork, StageOutput
from streamexit.prediction import Prediction
from streamexit.preprocessing import Preprocessing
from streamexit.scheduling.evidence import Calibration, concatenate
from streamexit.tasks.readout import Readout, Target, Task, to_host
from streamexit.training.labelled import LabelledImages

MOST_PIXELS = 4_000_000
MOST_FRAMES = 256


@dataclass(frozen=True)
class ExitReadings:
    """What all exits say about N frames.

    Attributes:
        evidence: See `Calibration`.
        label: int [N], where a frame has one right answer; its last exit's, where none was given.
        counts: int32 [N, K, 3, C], see `Judgement`.
    """

    evidence: Calibration
    label: NDArray[np.integer[Any]] | None
    counts: NDArray[np.int32] | None


def batch_size(preprocessing: Preprocessing) -> int:
    """How many frames to run at once, so that their maps fit into memory."""
    pixels = preprocessing.height * preprocessing.width
    return max(1, min(MOST_FRAMES, MOST_PIXELS // pixels))


def collect_evidence(
    network: MultiExitNetwork, task: Task, pictures: LabelledImages, *, rows: int | None = None
) -> Calibration:
    """Run all exits on un-augmented pictures.

    Args:
        network: In eval mode.
        task: Reads the logits.
        pictures: At the network's input size.
        rows: Pictures at a time.
    """
    return concatenate(
        [
            read_exits(network, task, images, labels).evidence
            for images, labels in _batches(network, pictures, rows)
        ]
    )


def exit_figures(
    network: MultiExitNetwork, task: Task, pictures: LabelledImages, *, rows: int | None = None
) -> list[dict[str, Any]]:
    """What each exit reaches on un-augmented pictures: K times `Tally.figures`.

    Args:
        network: In eval mode.
        task: Reads the logits.
        pictures: At the network's input size.
        rows: Pictures at a time.
    """
    tallies = [task.tally() for _ in range(network.num_exits)]
    for images, labels in _batches(network, pictures, rows):
        answered = _run(task, _outputs(network, images)).predictions
        for predictions, label in zip(answered, labels, strict=True):
            for tally, prediction in zip(tallies, predictions, strict=True):
                tally.add(prediction, label)
    return [tally.figures() for tally in tallies]


def read_exits(
    network: MultiExitNetwork, task: Task, images: Tensor, targets: Sequence[Target] | None
) -> ExitReadings:
    """Run all exits on one batch.

    Args:
        network: In eval mode.
        task: Reads the logits.
        images: uint8 [N, H, W, 3].
        targets: [N]; None measures quality as agreement with the last exit.
    """
    return read_outputs(task, _outputs(network, images), targets)


def read_outputs(
    task: Task, outputs: Sequence[StageOutput], targets: Sequence[Target] | None
) -> ExitReadings:
    """The same of what all exits of a network have said.

    Args:
        task: Reads the logits.
        outputs: [K].
        targets: [N]; None measures quality as agreement with the last exit.
    """
    run = _run(task, outputs)
    distribution = torch.stack([r.distribution for r in run.readouts], 1).cpu().clone()
    confidence = torch.stack([r.confidence for r in run.readouts], 1).cpu().clone()
    if targets is None:
        targets = [task.target(row[-1]) for row in run.predictions]
    judged = [
        [task.judge(prediction, target) for prediction in row]
        for row, target in zip(run.predictions, targets, strict=True)
    ]
    label = np.asarray(targets) if np.ndim(targets[0]) == 0 else None
    right = None
    if label is not None:
        truth = torch.from_numpy(label.astype(np.int64))[:, None, None]
        right = distribution.gather(2, truth.expand(-1, len(run.readouts), 1)).squeeze(2)
    evidence = Calibration(
        distribution,
        confidence,
        torch.tensor([[one.quality for one in row] for row in judged], dtype=torch.float32),
        torch.stack(run.branches, 1).cpu().clone() if run.branches else None,
        right,
    )
    counts = None
    if judged[0][0].counts is not None:
        counts = np.asarray([[one.counts for one in row] for row in judged], np.int32)
    return ExitReadings(evidence, label, counts)


class _Run(NamedTuple):
    """All exits on one batch: [K] readouts, [K] branches or none, [N][K] predictions."""

    readouts: list[Readout]
    branches: list[Tensor]
    predictions: list[list[Prediction]]


def _outputs(network: MultiExitNetwork, images: Tensor) -> list[StageOutput]:
    with torch.inference_mode():
        outputs: list[StageOutput] = network(images.to(next(network.parameters()).device))
    return outputs


def _run(task: Task, outputs: Sequence[StageOutput]) -> _Run:
    carry: Tensor | None = None
    readouts, branches = [], []
    with torch.inference_mode():
        for output in outputs:
            readouts.append(task.read(output.logits, carry))
            carry = readouts[-1].carry
            if output.confidence is not None:
                branches.append(output.confidence.float())
        answers = [to_host(r.answer) for r in readouts]
        predictions = [
            [task.prediction(answer, row) for answer in answers]
            for row in range(len(outputs[0].logits))
        ]
    return _Run(readouts, branches, predictions)


def _batches(
    network: MultiExitNetwork, pictures: LabelledImages, rows: int | None
) -> Iterator[tuple[Tensor, list[Target]]]:
    size = rows or batch_size(network.preprocessing)
    for start in range(0, len(pictures.labels), size):
        images = torch.from_numpy(pictures.images[start : start + size])
        yield images, list(pictures.labels[start : start + size])
