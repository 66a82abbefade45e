"""The joint loss of all exits (EENet, WACV 2024, as its code has it), mended.

Published: sum_k gamma_k CE_k with gamma_k = k / (K (K + 1)), plus distillation from the last exit
whose teacher was not detached and whose weight, divided by batch and classes, was close to nothing.
Here the weights sum to one, the teacher is detached, and the distillation term is a true mean over
the batch with a weight that matters.

N: rows, C: classes, K: exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def exit_weights(num_exits: int, *, rising: bool = True) -> list[float]:
    """Weights that sum to one: all equal (MSDNet), or proportional to k, later exits counting more."""
    if not rising:
        return [1 / num_exits] * num_exits
    total = num_exits * (num_exits + 1) / 2
    return [k / total for k in range(1, num_exits + 1)]


def class_weights(labels: NDArray[np.integer[Any]], num_classes: int) -> Tensor:
    """Rare classes count more: 1 / ln(1.02 + share) (ENet; Paszke et al. 2016, section 5.1).

    Args:
        labels: Class indices of any shape; those from `num_classes` on are left out.
        num_classes: C.

    Returns:
        [C]; their mean over the labels is 1, so that the loss keeps its scale.
    """
    counts = np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]
    share = counts / max(counts.sum(), 1)
    weights = 1 / np.log(1.02 + share)
    return torch.from_numpy(weights / max((weights * share).sum(), 1e-9)).float()


def multi_exit_loss(
    logits: Sequence[Tensor],
    labels: Tensor,
    *,
    distillation: float,
    temperature: float,
    rising: bool = True,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The joint loss.

    Args:
        logits: K tensors [N, C].
        labels: int64 [N].
        distillation: In [0, 1]: how much of an early exit's loss is agreement with the last exit.
        temperature: T; the distillation term carries T squared (Hinton et al. 2015).
        rising: Weights rise with the exit; else all count the same.
        class_weights: [C], for the cross-entropy with the labels.

    Returns:
        A scalar.
    """
    teacher = functional.log_softmax(logits[-1].detach().float() / temperature, dim=1)
    loss = torch.zeros((), device=labels.device)
    for k, weight in enumerate(exit_weights(len(logits), rising=rising)):
        own = logits[k].float()
        term = functional.cross_entropy(own, labels, class_weights)
        if distillation and k < len(logits) - 1:
            student = functional.log_softmax(own / temperature, dim=1)
            divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
            term = (1 - distillation) * term + distillation * temperature**2 * divergence
        loss = loss + weight * term
    return loss


def cost_aware_loss(
    logits: Sequence[Tensor],
    confidence: Sequence[Tensor],
    labels: Tensor,
    costs: Sequence[float],
    *,
    version: str,
    cost_weight: float,
) -> Tensor:
    """EENets' losses v0, v1 and v2 (Demir and Akbas, arXiv 2409.05336, section 3).

    With Y the answer and c the cost of leaving at exit i or later, and h the confidence:
    Y_i = h_i y_i + (1 - h_i) Y_{i+1} and c_i = h_i cost_i + (1 - h_i) c_{i+1}; at the last exit,
    which takes all that come, Y and c are its own.

    Args:
        logits: K tensors [N, C].
        confidence: K tensors [N] in [0, 1]; the last one's is not used.
        labels: int64 [N].
        costs: [K], as shares of the full cost.
        version: "v0", the sum of all exits' losses; "v1", the loss and the cost of the mixture that
            starts at the first exit; "v2", of the mixtures that start at each exit, summed.
        cost_weight: Lambda, what a whole network's cost weighs against a nat of loss.

    Returns:
        A scalar.
    """
    if version == "v0":
        return torch.stack([functional.cross_entropy(z.float(), labels) for z in logits]).sum()
    log_answer = functional.log_softmax(logits[-1].float(), dim=1)
    cost = torch.full_like(labels, costs[-1], dtype=torch.float32)
    terms = [functional.nll_loss(log_answer, labels) + cost_weight * cost.mean()]
    for k in reversed(range(len(logits) - 1)):
        h = confidence[k].float().clamp(1e-6, 1 - 1e-6)
        own = functional.log_softmax(logits[k].float(), dim=1)
        log_answer = torch.logaddexp(h.log()[:, None] + own, (1 - h).log()[:, None] + log_answer)
        cost = h * costs[k] + (1 - h) * cost
        terms.append(functional.nll_loss(log_answer, labels) + cost_weight * cost.mean())
    return terms[-1] if version == "v1" else torch.stack(terms).sum()
