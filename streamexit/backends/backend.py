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
        answer: For `Task.prediction`; good until the next batch is submitted.
        states: [N], what each row carries on if it stays; empty after the last stage.
    """

    scores: list[float]
    answer: HostAnswer
    states: Sequence[RowState]


class Pending(Protocol):
    """A batch that was handed to the device."""

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        ...

    def result(self) -> StageResult:
        """Wait until it is done."""
        ...


class Backend(Protocol):
    """Runs stages on batches.

    Attributes:
        num_stages: K.
        sizes: Rows of a full batch, per stage; `submit` takes any number up to that.
        depth: Batches that may be in flight at once, so that the device never waits for a decision.
        device: For people: where, with what, how precisely.
        notes: For people: what the device could not do as wanted.
    """

    num_stages: int
    sizes: tuple[int, ...]
    depth: int
    device: str
    notes: list[str]

    def submit(self, stage: int, states: Sequence[RowState]) -> Pending:
        """Start stage `stage` on a batch; batches are asked for in the order of submission.

        The states are used up: what they held on the device may be overwritten.
        """
        ...

    def release(self, states: Sequence[RowState]) -> None:
        """Give back what rows held that will not go to another stage."""
        ...
