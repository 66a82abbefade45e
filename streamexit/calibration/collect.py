"""Every exit's evidence on a labelled set, through the same stages that the node runs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.evidence import Calibration
from streamexit.tasks.readout import Task


def collect_evidence(
    network: MultiExitNetwork,
    task: Task,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    batch_size: int = 250,
) -> Calibration:
    """Run all exits on un-augmented pictures.

    Args:
        network: In eval mode.
        task: Reads the logits.
        images: uint8 [N, H, W, 3], at the network's input size.
        labels: int64 [N].
        batch_size: Pictures at a time.
    """
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(labels), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size]).to(device)
            truth = torch.from_numpy(labels[start : start + batch_size]).to(device)
            parts.append(_read_exits(network, task, batch, truth))
    columns = [torch.cat(column).cpu().clone() for column in zip(*parts, strict=True)]
    return Calibration(*columns)


def _read_exits(
    network: MultiExitNetwork, task: Task, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(distribution [N, K, C], confidence [N, K, F], quality [N, K])."""
    carry: Tensor | None = None
    distributions, confidences, qualities = [], [], []
    for output in network(images):
        readout = task.read(output.logits, carry)
        carry = readout.carry
        distributions.append(readout.distribution)
        confidences.append(readout.confidence)
        qualities.append((readout.distribution.argmax(1) == labels).float())
    return torch.stack(distributions, 1), torch.stack(confidences, 1), torch.stack(qualities, 1)
