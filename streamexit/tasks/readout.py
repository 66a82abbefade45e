"""The seam between networks and everything that is task-blind.

N: rows, C: columns of the distribution, F: confidence features.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from streamexit.prediction import Prediction


class Readout(NamedTuple):
    """What a task makes of one exit's logits, still on the device.

    Attributes:
        answer: Tensors [N, ...] from which `Task.prediction` builds the answer on the host.
        distribution: [N, C]: class probabilities (classification).
        confidence: [N, F] in [0, 1], higher is surer; the first four columns are named in
            `scheduling.evidence`, more may follow.
        carry: Tensor [N, ...] that the next exit's readout wants back.
    """

    answer: tuple[Tensor, ...]
    distribution: Tensor
    confidence: Tensor
    carry: Tensor


class Task(Protocol):
    """A task: classification now; an exit is per frame in all of them."""

    kind: str
    labels: tuple[str, ...]

    def read(self, logits: Tensor, carry: Tensor | None) -> Readout:
        """Turn exit logits into a `Readout`; `carry` is the previous exit's, None at the first."""
        ...

    def prediction(self, answer: tuple[object, ...], row: int) -> Prediction:
        """The answer of one row, from the `answer` tensors brought to the host as lists."""
        ...

    def same_answer(self, one: Prediction, other: Prediction) -> bool:
        """Whether two answers to the same frame agree."""
        ...

    def is_correct(self, prediction: Prediction, label: int) -> bool:
        """Whether an answer is right."""
        ...
