"""Classification: one label per frame.

N: rows, C: classes, K: exits so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.prediction import Classification, Prediction
from streamexit.tasks.readout import Readout, Task


class ClassificationTask:
    """Softmax, top-k, the confidence features of EENet (WACV 2024, section 3) and of PABEE.

    Args:
        labels: Class names in index order.
        top_k: How many classes an answer names.
    """

    kind = "classification"

    def __init__(self, *, labels: Sequence[str], top_k: int = 3) -> None:
        self.labels = tuple(labels)
        self.top_k = min(top_k, len(self.labels))

    def read(self, logits: Tensor, carry: Tensor | None) -> Readout:
        """Turn logits [N, C] into a `Readout`.

        Confidence columns: the largest probability; 1 + sum p log p / log C, which is 1 for a
        certain and 0 for a uniform distribution; the share of exits so far that agree with the
        most frequent prediction; the share that agree with this one without a break (PABEE's
        counter). `carry` holds the predictions so far, int64 [N, K].
        """
        p = functional.softmax(logits.float(), dim=1)
        entropy = torch.special.entr(p).sum(1)
        certainty = (1 - entropy / math.log(max(p.shape[1], 2))).clamp(0, 1)
        top = p.topk(self.top_k, dim=1)
        current = top.indices[:, :1]
        predictions = current if carry is None else torch.cat([carry, current], dim=1)
        votes = (predictions[:, :, None] == predictions[:, None, :]).sum(2).amax(1)
        run = (predictions == current).flip(1).cumprod(1).sum(1)
        exits = predictions.shape[1]
        confidence = torch.stack([top.values[:, 0], certainty, votes / exits, run / exits], dim=1)
        return Readout((top.indices, top.values), p, confidence, predictions)

    def prediction(self, answer: tuple[Any, ...], row: int) -> Classification:
        """The answer of `row`; `answer` is (indices [N][top_k], probabilities [N][top_k])."""
        indices, probabilities = answer[0][row], answer[1][row]
        top = tuple(
            (self.labels[i], round(p, 6)) for i, p in zip(indices, probabilities, strict=True)
        )
        return Classification(top[0][0], indices[0], top[0][1], top)

    def same_answer(self, one: Prediction, other: Prediction) -> bool:
        """Whether both name the same class."""
        return one.index == other.index

    def is_correct(self, prediction: Prediction, label: int) -> bool:
        """Whether the named class is the true one."""
        return prediction.index == label


def build_task(spec: dict[str, Any], labels: Sequence[str]) -> Task:
    """Build a task from a pipeline's `task` mapping.

    Raises:
        PipelineError: Unknown kind or option.
    """
    options = dict(spec)
    kind = options.pop("kind", None)
    if kind != ClassificationTask.kind:
        raise PipelineError(f"task.kind: {kind!r} is unknown; known is 'classification'")
    unknown = set(options) - {"top_k"}
    if unknown:
        raise PipelineError(f"task.{sorted(unknown)[0]}: unknown option; known is 'top_k'")
    if not isinstance(options.get("top_k", 3), int) or options.get("top_k", 3) < 1:
        raise PipelineError(
            f"task.top_k: {options['top_k']!r} must be a whole number of at least 1"
        )
    return ClassificationTask(labels=labels, **options)
