"""Every exit's evidence on frames, through the same network and readout that the node runs.

N: frames, K: exits, C: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.models.network import MultiExitNetwork
from streamexit.preprocessing import Preprocessing
from streamexit.scheduling.evidence import Calibration, concatenate
from streamexit.tasks.readout import Target, Task, to_host
from streamexit.training.labelled import LabelledImages

MOST_PIXELS = 4_000_000
MOST_FRAMES = 256


@dataclass(frozen=True)
class ExitReadings:
    """What all exits say about N frames.

    Attributes:
        evidence: See `Calibration`.
        label: int [N], where a frame has one right answer; its last exit's, where none was given.
        counts: int32 [N, K, 3, C], see `Task.counts`.
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
    size = rows or batch_size(network.preprocessing)
    parts = []
    for start in range(0, len(pictures.labels), size):
        images = torch.from_numpy(pictures.images[start : start + size])
        labels = list(pictures.labels[start : start + size])
        parts.append(read_exits(network, task, images, labels).evidence)
    return concatenate(parts)


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
    device = next(network.parameters()).device
    carry: Tensor | None = None
    readouts, branches = [], []
    with torch.inference_mode():
        for output in network(images.to(device)):
            readouts.append(task.read(output.logits, carry))
            carry = readouts[-1].carry
            if output.confidence is not None:
                branches.append(output.confidence.float())
        distribution = torch.stack([r.distribution for r in readouts], 1).cpu().clone()
        confidence = torch.stack([r.confidence for r in readouts], 1).cpu().clone()
        answers = [to_host(r.answer) for r in readouts]
        predictions = [
            [task.prediction(answer, row) for answer in answers] for row in range(len(images))
        ]
    if targets is None:
        targets = [task.target(row[-1]) for row in predictions]
    pairs = list(zip(predictions, targets, strict=True))
    quality = [[task.quality(p, target) for p in row] for row, target in pairs]
    counts = [[task.counts(p, target) for p in row] for row, target in pairs]
    label = np.asarray(targets) if np.ndim(targets[0]) == 0 else None
    right = None
    if label is not None:
        truth = torch.from_numpy(label.astype(np.int64))[:, None, None]
        right = distribution.gather(2, truth.expand(-1, len(answers), 1)).squeeze(2)
    evidence = Calibration(
        distribution,
        confidence,
        torch.tensor(quality, dtype=torch.float32),
        torch.stack(branches, 1).cpu().clone() if branches else None,
        right,
    )
    counted = counts[0][0] is not None
    return ExitReadings(evidence, label, np.asarray(counts, np.int32) if counted else None)
