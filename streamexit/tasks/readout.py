"""The seam between networks and everything that is task-blind.

N: rows, C: columns of the distribution, F: confidence features, K: exits so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamexit.prediction import Prediction

Target = Any
"""What an answer is compared with: a class index (classification), or a map of class indices, uint8
[H, W] with `VOID` where there is none (segmentation)."""

HostAnswer = tuple[Any, ...]
"""`Readout.answer` as a backend hands it on: small tensors as lists, larger ones as they are."""


class Readout(NamedTuple):
    """What a task makes of one exit's logits, still on the device.

    Attributes:
        answer: Tensors [N, ...] from which `Task.prediction` builds the answer. Those of at most two
            dimensions come to the host for all rows at once; larger ones stay on the device, and
            only rows that leave are looked at.
        distribution: [N, C]: class probabilities (classification) or class shares (segmentation).
        confidence: [N, F] in [0, 1], higher is surer; the first four columns are named in
            `scheduling.evidence`, more may follow.
        carry: Tensor [N, ...] that the next exit's readout wants back.
    """

    answer: tuple[Tensor, ...]
    distribution: Tensor
    confidence: Tensor
    carry: Tensor


def to_host(answer: Sequence[Tensor]) -> HostAnswer:
    """Bring small answer tensors to the host."""
    return tuple(t.tolist() if t.ndim <= 2 else t for t in answer)


class Judgement(NamedTuple):
    """How good one answer is.

    Attributes:
        quality: In [0, 1]; 0 or 1 where an answer can only be wrong or right.
        counts: What a figure over many frames is made of, int32 [3, C]; None where the mean quality
            says it all.
    """

    quality: float
    counts: NDArray[np.int32] | None = None


class Tally(Protocol):
    """How good the answers of a run are."""

    def add(self, prediction: Prediction, target: Target) -> None:
        """Count one answer."""
        ...

    def figures(self) -> dict[str, Any]:
        """Names and values; the first is the one to look at."""
        ...


class Task(Protocol):
    """What differs between classification and segmentation. An exit is per frame in both."""

    kind: str
    gives_maps: bool
    labels: tuple[str, ...]

    def read(self, logits: Tensor, carry: Tensor | None) -> Readout:
        """Turn exit logits into a `Readout`; `carry` is the previous exit's, None at the first."""
        ...

    def for_host(self, answer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What of an answer has to leave the device, worked out for all rows at once.

        `prediction` takes either; this is for devices where work for rows that stay costs less than
        many small steps for those that leave.
        """
        ...

    def prediction(
        self, answer: HostAnswer, row: int, frame_size: tuple[int, int] | None = None
    ) -> Prediction:
        """The answer of one row.

        Args:
            answer: See `Readout.answer`.
            row: Which.
            frame_size: Width and height of the frame before it was scaled, if they matter.
        """
        ...

    def as_target(self, label: Target | None) -> Target | None:
        """What a source says of a frame, if it is of this task's kind; else None."""
        ...

    def target(self, prediction: Prediction) -> Target:
        """An answer, taken as the truth that others are compared with."""
        ...

    def judge(self, prediction: Prediction, target: Target) -> Judgement:
        """How good an answer is."""
        ...

    def tally(self) -> Tally:
        """An empty one."""
        ...

    def training_rows(
        self, logits: Sequence[Tensor], labels: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """K logits as rows [M, C], and class indices int64 [M], one row for all that has a label."""
        ...


def rank_agreement(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The features `VOTE` and `RUN` of the exits so far.

    Args:
        maps: Class indices [N, K, ...], one entry per exit.

    Returns:
        The share of exits that agree with the most frequent answer, and the share that agree with
        the last one without a break, both [N, ...].
    """
    exits = maps.shape[1]
    votes = torch.stack([(maps == maps[:, k : k + 1]).sum(1) for k in range(exits)], 1).amax(1)
    unbroken = torch.ones_like(maps[:, -1], dtype=torch.bool)
    run = torch.zeros_like(votes)
    for k in reversed(range(exits)):
        unbroken = unbroken & (maps[:, k] == maps[:, -1])
        run = run + unbroken
    return votes / exits, run / exits


def certainty(p: Tensor) -> Tensor:
    """1 + sum p log p / log C over dimension 1 of probabilities [N, C, ...]: 1 is certain, 0 uniform."""
    entropy = -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(1)
    return 1 - entropy / math.log(max(p.shape[1], 2))
