"""The joint loss of all exits (EENet, WACV 2024, as its code has it), mended.

Published: sum_k gamma_k CE_k with gamma_k = k / (K (K + 1)), plus distillation from the last exit
whose teacher was not detached and whose weight, divided by batch and classes, was close to nothing.
Here the weights sum to one, the teacher is detached, and the distillation term is a true mean over
the batch with a weight that matters.

N: rows, C: classes, K: exits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def exit_weights(num_exits: int) -> list[float]:
    """gamma_k proportional to k (from 1), summing to one: later exits count more."""
    total = num_exits * (num_exits + 1) / 2
    return [k / total for k in range(1, num_exits + 1)]


def multi_exit_loss(
    logits: Sequence[Tensor], labels: Tensor, *, distillation: float, temperature: float
) -> Tensor:
    """The joint loss.

    Args:
        logits: K tensors [N, C].
        labels: int64 [N].
        distillation: In [0, 1]: how much of an early exit's loss is agreement with the last exit.
        temperature: T; the distillation term carries T squared (Hinton et al. 2015).

    Returns:
        A scalar.
    """
    teacher = functional.log_softmax(logits[-1].detach().float() / temperature, dim=1)
    loss = torch.zeros((), device=labels.device)
    for k, weight in enumerate(exit_weights(len(logits))):
        own = logits[k].float()
        term = functional.cross_entropy(own, labels)
        if distillation and k < len(logits) - 1:
            student = functional.log_softmax(own / temperature, dim=1)
            divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
            term = (1 - distillation) * term + distillation * temperature**2 * divergence
        loss = loss + weight * term
    return loss
