"""The seam between the engine and whatever runs the network.

N: rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamexit.tasks.readout import HostAnswer

RowState = Any
"""What a waiting row carries to its next stage: the picture (uint8 [H, W, 3]) before stage 0,
later something that only its backend understands. The engine stores it and never looks inside."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage, run on one batch.

    Attributes:
        scores: [N], exit scores on the host.
        answer: For `Task.prediction`.
        states: [N], what each row carries on if it stays; empty after the last stage.
    """

    scores: list[float]
    answer: HostAnswer
    states: Sequence[RowState]


class Pending(Protocol):
    """A batch that was handed to the device."""

    def result(self) -> StageResult:
        """Wait until it is done."""
        ...


class Backend(Protocol):
    """Runs stages on batches.

    Attributes:
        num_stages: K.
        max_batch: Rows per batch at most.
        depth: Batches that may be in flight at once.
        device: For people.
    """

    num_stages: int
    max_batch: int
    depth: int
    device: str

    def submit(self, stage: int, states: Sequence[RowState]) -> Pending:
        """Start stage `stage` on a batch; batches are finished in the order of submission."""
        ...
