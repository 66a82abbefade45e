"""Synthetic calibration sets, read by the real task, for tests of policies and comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from streamexit.scheduling.evidence import Calibration
from streamexit.tasks.classification import ClassificationTask


def synthetic(
    frames: int, *, skills: Sequence[float] = (1.0, 2.0, 4.0), classes: int = 4, seed: int = 0
) -> tuple[Calibration, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Frames of varying ease, and their labels; an exit of skill 0 guesses.

    All exits see the same noise and some of their own, as the exits of one network do.
    """
    random = np.random.default_rng(seed)
    label = random.integers(0, classes, frames)
    ease = random.gamma(2.0, 0.7, frames)
    shared = random.normal(0, 0.7, (frames, classes))
    task = ClassificationTask(labels=[str(i) for i in range(classes)])
    carry, distributions, confidences = None, [], []
    for skill in skills:
        logits = shared + random.normal(0, 0.7, (frames, classes))
        logits[np.arange(frames), label] += skill * ease
        readout = task.read(torch.tensor(logits), carry)
        carry = readout.carry
        distributions.append(readout.distribution)
        confidences.append(readout.confidence)
    distribution = torch.stack(distributions, 1)
    truth = torch.from_numpy(label)[:, None]
    quality = (distribution.argmax(2) == truth).float()
    branch = torch.sigmoid(4 * distribution.amax(2) - 2)
    likelihood = distribution.gather(2, truth[:, None].expand(-1, len(skills), 1)).squeeze(2)
    evidence = Calibration(distribution, torch.stack(confidences, 1), quality, branch, likelihood)
    return evidence, label
