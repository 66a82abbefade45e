"""Every exit's evidence on frames, through the same network and readout that the node runs."""

from __future__ import annotations

import torch
from torch import Tensor

from streamexit.models.network import MultiExitNetwork
from streamexit.scheduling.evidence import Calibration, concatenate
from streamexit.tasks.readout import Task
from streamexit.training.datasets import LabelledImages


def collect_evidence(
    network: MultiExitNetwork, task: Task, pictures: LabelledImages, *, batch_size: int = 250
) -> Calibration:
    """Run all exits on un-augmented pictures.

    Args:
        network: In eval mode.
        task: Reads the logits.
        pictures: At the network's input size.
        batch_size: Pictures at a time.
    """
    parts = []
    for start in range(0, len(pictures.labels), batch_size):
        images = torch.from_numpy(pictures.images[start : start + batch_size])
        labels = torch.from_numpy(pictures.labels[start : start + batch_size])
        parts.append(read_exits(network, task, images, labels))
    return concatenate(parts)


def read_exits(
    network: MultiExitNetwork, task: Task, images: Tensor, labels: Tensor | None
) -> Calibration:
    """Run all exits on one batch.

    Args:
        network: In eval mode.
        task: Reads the logits.
        images: uint8 [N, H, W, 3].
        labels: int64 [N]; None measures quality as agreement with the last exit.
    """
    device = next(network.parameters()).device
    carry: Tensor | None = None
    distributions, confidences, branches = [], [], []
    with torch.inference_mode():
        for output in network(images.to(device)):
            readout = task.read(output.logits, carry)
            carry = readout.carry
            distributions.append(readout.distribution)
            confidences.append(readout.confidence)
            if output.confidence is not None:
                branches.append(output.confidence.float())
        distribution = torch.stack(distributions, 1).cpu()
    answers = distribution.argmax(2)
    truth = answers[:, -1] if labels is None else labels
    likelihood = distribution.gather(2, truth[:, None, None].expand(-1, distribution.shape[1], 1))
    return Calibration(
        distribution.clone(),
        torch.stack(confidences, 1).cpu().clone(),
        (answers == truth[:, None]).float(),
        torch.stack(branches, 1).cpu().clone() if branches else None,
        likelihood.squeeze(2).clone(),
    )
