"""Classification: one label per frame.

N: rows, C: classes, K: exits so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from streamexit.errors import PipelineError
from streamexit.prediction import Classification, Prediction
from streamexit.preprocessing import Preprocessing
from streamexit.tasks.readout import (
    HostAnswer,
    Judgement,
    Readout,
    Target,
    certainty,
    rank_agreement,
)


class ClassificationTask:
    """Softmax, top-k, the confidence features of EENet (WACV 2024, section 3) and of PABEE.

    Args:
        labels: Class names in index order.
        top_k: How many classes an answer names.
    """

    kind = "classification"
    gives_maps = False

    def __init__(self, *, labels: Sequence[str], top_k: int = 3) -> None:
        self.labels = tuple(labels)
        self.top_k = min(top_k, len(self.labels))

    @classmethod
    def from_options(
        cls, options: dict[str, Any], labels: Sequence[str], preprocessing: Preprocessing
    ) -> Self:
        """From a pipeline's `task` mapping; how pictures are scaled does not matter here.

        Raises:
            PipelineError: A value that is not allowed.
        """
        top_k = options.get("top_k", 3)
        if not isinstance(top_k, int) or top_k < 1:
            raise PipelineError(f"task.top_k: {top_k!r} must be a whole number of at least 1")
        return cls(labels=labels, **options)

    def read(self, logits: Tensor, carry: Tensor | None) -> Readout:
        """Turn logits [N, C] into a `Readout`.

        Confidence columns: the largest probability; 1 + sum p log p / log C, which is 1 for a
        certain and 0 for a uniform distribution; the share of exits so far that agree with the
        most frequent prediction; the share that agree with this one without a break (PABEE's
        counter). `carry` holds the predictions so far, int64 [N, K].
        """
        p = functional.softmax(logits.float(), dim=1)
        top = p.topk(self.top_k, dim=1)
        current = top.indices[:, :1]
        predictions = current if carry is None else torch.cat([carry, current], dim=1)
        votes, run = rank_agreement(predictions)
        confidence = torch.stack([top.values[:, 0], certainty(p).clamp(0, 1), votes, run], dim=1)
        return Readout((top.indices, top.values), p, confidence, predictions)

    def for_host(self, answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """All of it: it is small."""
        return answer

    def prediction(
        self, answer: HostAnswer, row: int, frame_size: tuple[int, int] | None = None
    ) -> Classification:
        """The answer of `row`; `answer` is (indices [N][top_k], probabilities [N][top_k])."""
        indices, probabilities = answer[0][row], answer[1][row]
        top = tuple(
            (self.labels[i], round(p, 6)) for i, p in zip(indices, probabilities, strict=True)
        )
        return Classification(top[0][0], indices[0], top[0][1], top)

    def as_target(self, label: Target | None) -> int | None:
        """A class index as it is."""
        return int(label) if isinstance(label, int | np.integer) else None

    def target(self, prediction: Prediction) -> int:
        """The index of the named class."""
        assert isinstance(prediction, Classification)
        return prediction.index

    def judge(self, prediction: Prediction, target: Target) -> Judgement:
        """1 if the named class is the true one, else 0."""
        return Judgement(float(self.target(prediction) == target))

    def tally(self) -> ClassificationTally:
        """An empty one."""
        return ClassificationTally(self)

    def training_rows(
        self, logits: Sequence[Tensor], labels: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Logits [N, C] and labels [N] as they are."""
        return list(logits), labels


class ClassificationTally:
    """How many were right."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task = task
        self._right = 0.0
        self._answers = 0

    def add(self, prediction: Prediction, target: Target) -> None:
        """Count one answer."""
        self._right += self._task.judge(prediction, target).quality
        self._answers += 1

    def figures(self) -> dict[str, Any]:
        """`accuracy`, in [0, 1]; None without answers."""
        return {"accuracy": self._right / self._answers if self._answers else None}
